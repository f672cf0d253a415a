"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);
  const numbers = JSON.parse(one("numbers").textContent);
  const root = document.documentElement;

  // Light and dark: as the system says, until the button says otherwise.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  const config = () => {
    const [soft, line] = ["soft", "line"].map(colour);
    return {
      background: "transparent",
      font: getComputedStyle(document.body).fontFamily,
      view: { stroke: line },
      axis: { labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 11, titleFontWeight: "normal" },
      legend: { labelColor: soft, titleColor: soft, gradientLength: 90, titleFontWeight: "normal" },
    };
  };

  const drawn = new Map();
  const draw = (element) => {
    const of = numbers.groups[element.closest("[data-charts]").dataset.charts];
    const kind = element.dataset.kind;
    const spec = JSON.parse(JSON.stringify(numbers.charts[kind]).replace(/"@(\w+)"/g, (_, name) => JSON.stringify(colour(name))));
    const rows = kind === "scores" ? of.scores : kind === "spots" ? of.spots : of.nights;
    spec.datasets = { rows, threshold: of.threshold };
    spec.height = kind === "spots" ? Math.min(260, Math.max(110, (element.clientWidth - 90) / of.aspect)) : 160;
    if (kind === "spots") { spec.width = Math.round(spec.height * of.aspect); }
    const options = { ast: true, actions: false, renderer: "svg", logLevel: 1, config: config(), tooltip: { theme: isDark() ? "dark" : "light" } };
    return window.vegaEmbed(element, spec, options).then((result) => {
      drawn.get(element)?.finalize();
      drawn.set(element, result);
    }).catch((error) => { element.textContent = "This chart cannot be drawn."; console.error(error); });
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !drawn.has(entry.target)) { drawn.set(entry.target, null); draw(entry.target); }
    }
  }, { rootMargin: "600px" });
  all(".chart").forEach((element) => watcher.observe(element));
  const redraw = () => [...drawn.keys()].forEach(draw);
  addEventListener("beforeprint", () => all(".chart").filter((e) => !drawn.has(e)).forEach(draw));

  const button = one("theme");
  const themed = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(isDark()));
    redraw();
  };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; themed(); });
  system.addEventListener("change", themed);
  themed();

  // Of pictures a dozen, until more are asked for; on paper all.
  const FIRST = 12;
  const fold = () => {
    for (const cards of all(".cards")) {
      const wanted = all(".card", cards).filter((card) => !card.hidden);
      const more = cards.parentElement.querySelector(".more");
      const kept = more.dataset.open ? wanted.length : FIRST;
      wanted.forEach((card, place) => card.classList.toggle("beyond", place >= kept));
      more.hidden = wanted.length <= kept;
      more.textContent = `Show ${wanted.length - kept} more`;
    }
  };
  for (const more of all(".more")) {
    more.addEventListener("click", () => {
      const next = all(".card.beyond", more.parentElement)[0];
      more.dataset.open = "yes";
      fold();
      next.querySelector("button").focus();
    });
  }

  // The filter: what has no night is of all nights.
  const items = all(".item");
  const words = new Map(items.map((item) => [item, item.textContent.toLowerCase()]));
  const kinds = [["images", all(".card")], ["rows", all("tr.item")], ["groups in charts", all("article.group")]];
  const filter = () => {
    const [night, group, text] = ["night", "group", "text"].map((id) => one(id).value);
    const wanted = text.trim().toLowerCase();
    for (const item of items) {
      const { group: ofGroup, night: ofNight } = item.dataset;
      item.hidden = Boolean(
        (group && ofGroup !== group) || (night && ofNight !== undefined && ofNight !== night) ||
        (wanted && !item.classList.contains("group") && !words.get(item).includes(wanted)) ||
        (wanted && item.classList.contains("group") && !ofGroup.toLowerCase().includes(wanted) && !group));
    }
    fold();
    for (const section of all("section")) {
      const within = all(".item", section);
      const empty = section.querySelector(".empty");
      if (empty) { empty.hidden = within.length === 0 || within.some((item) => !item.hidden); }
    }
    one("shown").textContent = kinds.filter(([, list]) => list.length).map(([name, list]) =>
      `${list.filter((item) => !item.hidden).length} of ${list.length} ${name}`).join(", ");
  };
  for (const id of ["night", "group", "text"]) { one(id).addEventListener("input", filter); }
  const form = document.querySelector(".filter");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    one("night").value = one("group").value = one("text").value = "";
    filter();
  });
  filter();

  // The order of pictures, and of the rows of tables.
  const places = new Map(items.map((item, place) => [item, place]));
  const order = (list, key, down) => list.sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    const compared = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return (down ? -compared : compared) || places.get(a) - places.get(b);
  });
  one("order").addEventListener("input", () => {
    const by = one("order").value;
    const keys = { excess: (c) => -Number(c.dataset.excess), p: (c) => Number(c.dataset.p), group: (c) => c.dataset.group };
    for (const cards of all(".cards")) { cards.append(...order(all(".card", cards), keys[by], false)); }
    fold();
  });
  for (const table of all("table.sorted")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
      };
      table.tBodies[0].append(...order([...table.tBodies[0].rows], key, down));
    }));
  }

  // A picture, large. Escape closes a dialog by itself, and the focus goes back.
  const large = one("large");
  const enlarged = (frame) => {
    const copy = frame.cloneNode(true);
    const image = copy.querySelector("img");
    if (image) { copy.style.width = `min(100%, calc(72vh * ${image.width / image.height}))`; }
    return copy;
  };
  document.addEventListener("click", (event) => {
    if (event.target === large) { large.close(); return; }
    const card = event.target.closest(".open")?.closest(".card");
    if (!card) { return; }
    one("large-title").textContent = card.querySelector("h3").textContent;
    large.querySelector(".pair").replaceChildren(...all(".frame", card).map(enlarged));
    const told = [".where", ".numbers", "details"].map((s) => card.querySelector(s)).filter(Boolean).map((n) => n.cloneNode(true));
    large.querySelector(".told").replaceChildren(...told);
    large.showModal();
  });
})();
