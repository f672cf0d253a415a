// The review page. Texts of strangers (ids, groups) are only ever set as text, never as HTML.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const WORDS = ["defective", "good", "unsure"];
const SMALLEST = 4; // Pixels of the screen: a shorter drag is a click, and draws nothing.
const AHEAD = 3;
const KEPT = 32; // Pictures.
const at = (id) => document.getElementById(id);
const WRITE = document.querySelector('meta[name="patchlake-write"]').content;

let images = [];
let current = 0;
let boxes = []; // Of the image that is shown: {x, y, width, height}, in its own pixels.
let edited = false;
let size = null; // [width, height] of the image that is shown.
let heatShown = false;
let heatThere = false;
let ended = false;
const pictures = new Map(); // path -> the promise of an image.
const kept = new Map(); // number -> {boxes, edited} of images that were left, decided or not.
const unsaved = new Map(); // number -> decision that the server has not confirmed.
const saving = new Map(); // number -> the last request for it.

function say(text) { at("said").textContent = text; }

function trouble(text) {
  at("trouble").textContent = text;
  at("trouble").hidden = !text;
}

async function asked(path, body) {
  const answer = await fetch(path, body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json", "x-patchlake-write": WRITE },
    body: JSON.stringify(body),
  });
  const told = await answer.json();
  if (!answer.ok) { throw new Error(told.error || `status ${answer.status}`); }
  return told;
}

// --- what is shown

function number(value, digits) {
  return value === null ? "–" : Number(value.toPrecision(digits)).toString();
}

function fact(name, value) {
  const term = document.createElement("dt");
  const text = document.createElement("dd");
  term.textContent = name;
  text.textContent = value;
  at("told").append(term, text);
}

function show(index) {
  if (!images.length) { return; }
  if (size !== null || boxes.length) { kept.set(current, { boxes, edited }); }
  current = Math.min(Math.max(index, 0), images.length - 1);
  const image = images[current];
  const before = kept.get(current);
  const decided = image.decision && image.decision.regions;
  boxes = before ? before.boxes : (decided || image.regions || []).map((box) => ({ ...box }));
  edited = before ? before.edited : Boolean(decided);
  at("name").textContent = image.image_id;
  at("told").replaceChildren();
  fact("Group", image.group);
  fact("Night", image.night || "–");
  fact("Score", image.threshold === null ? number(image.image_score, 4)
    : `${number(image.image_score, 4)}, threshold ${number(image.threshold, 4)}`);
  fact("p-value", number(image.p_value, 2));
  fact("Model says", image.is_anomalous === null ? "no verdict"
    : image.is_anomalous ? "anomalous" : "normal");
  if (image.part_id !== null) { fact("Part", image.part_id); }
  fact("Image", `${current + 1} of ${images.length}`);
  at("back-button").disabled = current === 0;
  at("forward-button").disabled = current === images.length - 1;
  showDecision();
  showPicture();
  ahead();
}

// Only what the server has confirmed is called decided.
function written() {
  return images.filter((image, index) => image.decision && !unsaved.has(index)).length;
}

function showDecision() {
  const decision = images[current].decision;
  const word = decision ? decision.verdict : null;
  const isOpen = unsaved.has(current);
  at("mine").textContent = word === null ? "Not decided"
    : `You say: ${word}${isOpen ? " (being written…)" : ""}`;
  at("mine").className = word || "";
  for (const one of WORDS) { at(`${one}-button`).setAttribute("aria-pressed", String(one === word)); }
  at("counted").textContent = `${written()} of ${images.length} decided`;
  at("progress").max = images.length;
  at("progress").value = written();
}

// Each picture is asked for once, ahead or when it is shown, and the last ones are kept.
function loaded(path) {
  if (!pictures.has(path)) {
    pictures.set(path, new Promise((resolve, reject) => {
      const picture = new Image();
      picture.onload = () => resolve(picture);
      picture.onerror = () => asked(path).then(() => reject(new Error("it cannot be shown")), reject);
      picture.src = path;
    }));
    pictures.get(path).catch(() => {}); // Whoever shows it says so.
    if (pictures.size > KEPT) { pictures.delete(pictures.keys().next().value); }
  }
  return pictures.get(path);
}

async function showPicture() {
  const mine = current;
  const image = images[mine];
  size = image.width && image.height ? [image.width, image.height] : null;
  at("photo").removeAttribute("href");
  at("heatmap").removeAttribute("href");
  heatThere = false;
  at("heat-button").disabled = true;
  at("instead").hidden = true;
  drawFrame();
  const isHere = () => mine === current;
  const heat = image.heatmap_path === null || !size ? Promise.resolve()
    : loaded(`/heatmap/${mine}`).then((picture) => { if (isHere()) { showHeatmap(picture, image); } }, () => {});
  try {
    const photo = await loaded(`/photo/${mine}`);
    if (isHere()) { showPhoto(photo); }
  } catch (error) {
    await heat;
    if (isHere()) { showInstead(`No photo: ${error.message}`); }
  }
}

function showPhoto(photo) {
  size = size || [photo.naturalWidth, photo.naturalHeight];
  at("photo").setAttribute("href", photo.src);
  drawFrame();
}

function showHeatmap(heat, image) {
  heatThere = true;
  at("heatmap").setAttribute("href", heat.src);
  at("heatmap").setAttribute("width", heat.naturalWidth);
  at("heatmap").setAttribute("height", heat.naturalHeight);
  at("heat").setAttribute("viewBox", `0 0 ${image.picture_width} ${image.picture_height}`);
  at("heat-button").disabled = false;
  drawFrame();
}

// Where the photo is gone the heatmap is shown, if there is one.
function showInstead(text) {
  if (!heatThere) { size = null; }
  at("instead").textContent = text;
  at("instead").hidden = heatThere;
  say(text);
  drawFrame();
}

function drawFrame() {
  const stage = at("stage");
  stage.toggleAttribute("hidden", size === null);
  if (size === null) { drawBoxes(); return; }
  stage.setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
  for (const id of ["photo", "heat"]) {
    at(id).setAttribute("width", size[0]);
    at(id).setAttribute("height", size[1]);
  }
  const isHeat = heatThere && (heatShown || !at("photo").hasAttribute("href"));
  at("heat").setAttribute("visibility", isHeat ? "visible" : "hidden");
  stage.setAttribute("aria-label", isHeat ? "Heatmap" : "Photo");
  at("heat-button").setAttribute("aria-pressed", String(isHeat));
  drawBoxes();
}

function ahead() {
  for (let next = current + 1; next <= Math.min(current + AHEAD, images.length - 1); next += 1) {
    loaded(`/photo/${next}`);
    if (images[next].heatmap_path !== null) { loaded(`/heatmap/${next}`); }
  }
}

// --- regions

function described(box) { return `${box.x}, ${box.y}; ${box.width} × ${box.height} px`; }

function part(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) { element.setAttribute(key, value); }
  parent.append(element);
  return element;
}

function drawBoxes() {
  at("boxes").replaceChildren();
  at("regions").replaceChildren();
  at("new-button").disabled = size === null;
  boxes.forEach((box, index) => {
    if (size !== null) { drawBox(box, index); }
    const line = document.createElement("li");
    const text = document.createElement("span");
    const remove = document.createElement("button");
    text.textContent = `${index + 1}: ${described(box)}`;
    remove.type = "button";
    remove.className = "small";
    remove.textContent = "Remove";
    remove.setAttribute("aria-label", `Remove region ${index + 1}`);
    remove.addEventListener("click", () => removeBox(index));
    line.append(text, remove);
    at("regions").append(line);
  });
  if (!boxes.length) {
    const line = document.createElement("li");
    line.textContent = "none";
    at("regions").append(line);
  }
}

function scale() {
  const matrix = at("stage").getScreenCTM();
  return matrix ? 1 / matrix.a : 1;
}

function drawBox(box, index) {
  const group = part("g", {
    class: "region", tabindex: "0", role: "button", "data-box": index,
    "aria-label": `Region ${index + 1}: ${described(box)}`,
  }, at("boxes"));
  const place = { x: box.x, y: box.y, width: box.width, height: box.height };
  part("rect", { class: "shade", ...place }, group);
  part("rect", { class: "box", ...place }, group);
  const grip = 12 * scale();
  part("rect", {
    class: "handle", x: box.x + box.width - grip / 2, y: box.y + box.height - grip / 2,
    width: grip, height: grip,
  }, group);
}

function within(box) {
  const width = Math.min(Math.max(1, Math.round(box.width)), size[0]);
  const height = Math.min(Math.max(1, Math.round(box.height)), size[1]);
  return {
    x: Math.min(Math.max(0, Math.round(box.x)), size[0] - width),
    y: Math.min(Math.max(0, Math.round(box.y)), size[1] - height),
    width, height,
  };
}

function focusBox(index) {
  const found = at("boxes").querySelector(`[data-box="${index}"]`);
  if (found) { found.focus({ preventScroll: true }); }
}

function change(index, box) {
  boxes = boxes.map((one, number) => (number === index ? within(box) : one));
  edited = true;
  drawBoxes();
  focusBox(index);
}

function addBox(box) {
  if (size === null) { return; }
  if (boxes.length >= 100) { say("An image has at most 100 regions."); return; }
  boxes = [...boxes, within(box)];
  edited = true;
  drawBoxes();
  focusBox(boxes.length - 1);
  say(`Region ${boxes.length} drawn: ${described(boxes[boxes.length - 1])}.`);
}

function removeBox(index) {
  boxes = boxes.filter((_, number) => number !== index);
  edited = true;
  drawBoxes();
  if (boxes.length) { focusBox(Math.min(index, boxes.length - 1)); } else { at("main").focus(); }
  say(`Region ${index + 1} removed.`);
}

function newBox() {
  if (size === null) { return; }
  const [width, height] = size;
  addBox({ x: width * 0.4, y: height * 0.4, width: width * 0.2, height: height * 0.2 });
}

function inImage(event) {
  const point = new DOMPoint(event.clientX, event.clientY);
  const inside = point.matrixTransform(at("stage").getScreenCTM().inverse());
  return [inside.x, inside.y];
}

let drag = null;

function grab(event) {
  if (size === null || event.button > 0 || drag !== null) { return; }
  const [x, y] = inImage(event);
  const group = event.target.closest(".region");
  drag = { pointer: event.pointerId, x, y, kind: "draw", index: -1 };
  if (group) {
    drag.index = Number(group.dataset.box);
    drag.kind = event.target.classList.contains("handle") ? "size" : "move";
    drag.box = boxes[drag.index];
    focusBox(drag.index);
  } else {
    drag.marker = part("rect", { class: "box", x, y, width: 0, height: 0 }, at("stage"));
  }
  at("stage").setPointerCapture(event.pointerId);
  event.preventDefault();
}

function pull(event) {
  if (drag === null || event.pointerId !== drag.pointer) { return; }
  const [x, y] = inImage(event);
  const [across, down] = [x - drag.x, y - drag.y];
  if (drag.kind === "draw") {
    const corner = [Math.max(0, Math.min(x, drag.x)), Math.max(0, Math.min(y, drag.y))];
    drag.drawn = {
      x: corner[0], y: corner[1],
      width: Math.min(Math.max(x, drag.x), size[0]) - corner[0],
      height: Math.min(Math.max(y, drag.y), size[1]) - corner[1],
    };
    for (const [key, value] of Object.entries(drag.drawn)) {
      drag.marker.setAttribute(key, Math.max(0, value));
    }
  } else if (Math.hypot(across, down) / scale() >= 2) {
    const { x: left, y: top, width, height } = drag.box;
    change(drag.index, drag.kind === "move"
      ? { x: left + across, y: top + down, width, height }
      : { x: left, y: top, width: Math.min(width + across, size[0] - left), height: Math.min(height + down, size[1] - top) });
  }
}

function release(event) {
  if (drag === null || event.pointerId !== drag.pointer) { return; }
  const { kind, marker, drawn } = drag;
  drag = null;
  if (marker) { marker.remove(); }
  const least = SMALLEST * scale();
  if (kind === "draw" && event.type === "pointerup" && drawn && drawn.width >= least && drawn.height >= least) {
    addBox(drawn);
  } else if (kind === "draw") {
    at("main").focus({ preventScroll: true });
  }
}

// --- decisions

function decide(word) {
  if (!images.length || ended) { return; }
  const mine = current;
  const regions = word !== "good" && edited ? boxes.map((box) => ({ ...box })) : null;
  images[mine].decision = { verdict: word, regions };
  unsaved.set(mine, { number: mine, verdict: word, regions });
  kept.set(mine, { boxes, edited });
  save(mine);
  const isOver = images.every((image) => image.decision);
  if (mine < images.length - 1) {
    at("main").focus({ preventScroll: true });
    show(mine + 1);
  } else {
    showDecision();
    if (isOver) { finish(); }
  }
}

// One request at a time for each image, so that the last decision is the last that is written.
function save(mine) {
  const before = saving.get(mine) || Promise.resolve();
  const now = before.then(async () => {
    const decision = unsaved.get(mine);
    if (!decision) { return; }
    try {
      await asked("/decide", decision);
      if (unsaved.get(mine) === decision) { unsaved.delete(mine); }
    } catch (error) {
      if (!ended) {
        trouble(`Not written: ${images[mine].image_id}, ${decision.verdict} (${error.message}). It is tried again with the next decision.`);
      }
      return;
    }
    if (!unsaved.size) { trouble(""); }
    if (!unsaved.has(mine)) {
      say(`${images[mine].image_id}: ${decision.verdict}. ${written()} of ${images.length} decided.`);
    }
    showDecision();
  });
  saving.set(mine, now);
  return now;
}

function saveAll() { return Promise.all([...unsaved.keys()].map(save)); }

function finish() {
  const counts = WORDS.map((word) => {
    const count = images.filter((image) => image.decision && image.decision.verdict === word).length;
    return `${count} ${word}`;
  });
  const open = images.filter((image) => !image.decision).length;
  at("summary").textContent = `${counts.join(", ")}${open ? `; ${open} not decided` : ""}.`;
  if (!at("ending").open) { at("ending").showModal(); }
}

async function end() {
  await saveAll();
  if (unsaved.size) {
    at("ending").close(); // What is in the way has been said.
    return;
  }
  ended = true;
  try { await asked("/done", {}); } catch { /* It ends before it has answered. */ }
  at("summary").textContent += " The session has ended, and all decisions are written; you can close this page.";
  at("ending-title").textContent = "Done";
  for (const button of document.querySelectorAll("button")) { button.disabled = true; }
}

// --- keys

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function keyOnBox(event, index) {
  if (event.key === "Delete" || event.key === "Backspace") { removeBox(index); return true; }
  if (event.key === "Escape") { at("main").focus(); return true; }
  const arrow = ARROWS[event.key];
  if (!arrow) { return false; }
  const step = Math.max(1, Math.round(Math.max(...size) / 100));
  const [across, down] = arrow.map((one) => one * step);
  const box = boxes[index];
  change(index, event.shiftKey
    ? { ...box, width: Math.min(box.width + across, size[0] - box.x), height: Math.min(box.height + down, size[1] - box.y) }
    : { ...box, x: box.x + across, y: box.y + down });
  say(`Region ${index + 1}: ${described(boxes[index])}.`);
  return true;
}

const KEYS = {
  d: () => decide("defective"),
  g: () => decide("good"),
  u: () => decide("unsure"),
  h: () => { heatShown = !heatShown; drawFrame(); say(heatShown && heatThere ? "Heatmap" : "Photo"); },
  n: newBox,
  q: finish,
  "?": () => at("help").showModal(),
  ArrowLeft: () => show(current - 1),
  Backspace: () => show(current - 1),
  ArrowRight: () => show(current + 1),
};

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || ended) { return; }
  if (document.querySelector("dialog[open]")) { return; }
  const group = event.target.closest ? event.target.closest(".region") : null;
  let taken = group ? keyOnBox(event, Number(group.dataset.box)) : false;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!taken && KEYS[key] && !(event.repeat && WORDS.some((word) => word[0] === key))) {
    KEYS[key]();
    taken = true;
  }
  if (taken) { event.preventDefault(); }
}

async function start() {
  document.addEventListener("keydown", press);
  for (const word of WORDS) { at(`${word}-button`).addEventListener("click", () => decide(word)); }
  at("back-button").addEventListener("click", KEYS.ArrowLeft);
  at("forward-button").addEventListener("click", KEYS.ArrowRight);
  at("heat-button").addEventListener("click", KEYS.h);
  at("new-button").addEventListener("click", newBox);
  at("help-button").addEventListener("click", KEYS["?"]);
  at("done-button").addEventListener("click", finish);
  at("end-button").addEventListener("click", end);
  for (const button of document.querySelectorAll("[data-close]")) {
    button.addEventListener("click", () => at(button.dataset.close).close());
  }
  at("stage").addEventListener("pointerdown", grab);
  at("stage").addEventListener("pointermove", pull);
  at("stage").addEventListener("pointerup", release);
  at("stage").addEventListener("pointercancel", release);
  window.addEventListener("resize", () => { if (drag === null) { drawBoxes(); } });
  window.addEventListener("beforeunload", (event) => { if (unsaved.size && !ended) { event.preventDefault(); } });
  // The token is in a cookie now: the address may be read over a shoulder, or copied.
  history.replaceState(null, "", "/");
  try {
    images = await asked("/images");
  } catch (error) {
    trouble(`The images cannot be listed: ${error.message}`);
    return;
  }
  if (!images.length) {
    at("counted").textContent = "0 images";
    at("instead").textContent = "There is nothing to review: all of these images are decided.";
    at("instead").hidden = false;
    return;
  }
  const open = images.findIndex((image) => !image.decision);
  show(open < 0 ? 0 : open);
  at("main").focus({ preventScroll: true });
}

start();
