"""review: a person decides on a page, in a real browser, or gives decisions in a file."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Page, expect

import patchlake as library
from patchlake.pipeline.driver import compact, review, worst
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.reviews.table import read
from patchlake.pipeline.score_table.parts import bind_source
from patchlake.pipeline.storage.folder import Folder
from tests.browsers import Watched, chromium
from tests.conftest import output_files, read_scores, write_part


@dataclass
class Server:
    """A `patchlake review` that runs, and its link."""

    process: subprocess.Popen[str]
    link: str

    def finish(self) -> tuple[int, str]:
        """Wait for its end; return the exit code and what it printed."""
        out, _ = self.process.communicate(timeout=20)
        return self.process.returncode, out


@contextmanager
def serving(*arguments: object) -> Iterator[Server]:
    command = [sys.executable, "-m", "patchlake", "review", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process, ended(process):
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            found = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", line)
            if found:
                yield Server(process, found[0])
                return
        raise AssertionError("".join(lines))


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a process with the block."""
    try:
        yield
    finally:
        process.kill()


def rows_of(folder: Path) -> list[dict]:
    return read(Folder.at(str(folder))).to_pylist()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


def shown(page: Page, name: str) -> None:
    """Wait until an image is shown, with its photo."""
    expect(page.locator("#name")).to_have_text(name)
    with_photo(page)


def with_photo(page: Page) -> None:
    """Wait for a photo; the first one takes processes that have to be started."""
    photo = page.locator("#photo")
    expect(photo).to_have_attribute("href", re.compile("/photo/"), timeout=20_000)


def drag(page: Page, begin: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag on the picture, from and to shares of its sides."""
    box = page.locator("#photo").bounding_box()
    assert box is not None
    for at, step in ((begin, page.mouse.down), (end, page.mouse.up)):
        page.mouse.move(box["x"] + at[0] * box["width"], box["y"] + at[1] * box["height"])
        step()


def back_to(page: Page, names: list[str]) -> None:
    """Go back, over images of these names."""
    for name in names:
        page.keyboard.press("Backspace")
        shown(page, name)


@pytest.mark.browser
@pytest.mark.slow
def test_a_person_reviews_with_keys(browser: Browser, scores: Path, tmp_path: Path) -> None:
    reviews = tmp_path / "reviews"
    before = output_files(scores)
    images = worst.run(str(scores), 4).images
    ids = [image.image_id for image in images]
    with serving(scores, reviews, "-n", 4, "--reviewer", "ann", "--json") as server:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        watched = Watched.of(context)
        page = watched.page
        page.goto(server.link)
        shown(page, ids[0])
        assert page.url == server.link.partition("?")[0]
        page.keyboard.press("g")
        shown(page, ids[1])
        expect(page.locator("#said")).to_have_text(f"{ids[0]}: good. 1 of 4 decided.")
        # Whatever the model has drawn is taken away, and a box is drawn.
        for _ in images[1].regions or ():
            page.get_by_role("button", name="Remove region 1").click()
        drag(page, (0.25, 0.5), (0.75, 0.875))
        expect(page.locator(".region")).to_have_count(1)
        page.keyboard.press("ArrowRight")  # It moves the box, which has the focus.
        page.keyboard.press("h")
        expect(page.locator("#heat")).to_have_attribute("visibility", "visible")
        page.keyboard.press("d")
        shown(page, ids[2])
        page.keyboard.press("u")
        shown(page, ids[3])
        # On second thoughts, the first one is defective.
        back_to(page, ids[2::-1])
        expect(page.locator("#good-button")).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("d")
        shown(page, ids[1])
        expect(page.locator(".region")).to_have_count(1)
        page.keyboard.press("q")
        expect(page.locator("#summary")).to_contain_text("2 defective, 0 good, 1 unsure; 1 not")
        page.keyboard.press("Enter")
        expect(page.locator("#summary")).to_contain_text("The session has ended")
        code, out = server.finish()
        context.close()
    assert watched.complaints == []
    assert {url.split("/")[2] for url in watched.asked} == {server.link.split("/")[2]}
    assert code == 0
    told = json.loads(out)
    assert told == {
        "reviews": str(reviews),
        "reviewer": "ann",
        "images": 4,
        "decisions": 4,
        "defective": 2,
        "good": 0,
        "unsure": 1,
        "left": 1,
    }
    rows = rows_of(reviews)
    assert [(row["image_id"], row["verdict"]) for row in rows] == [
        *((ids[0], "good"), (ids[1], "defective"), (ids[2], "unsure"), (ids[0], "defective"))
    ]
    assert [row["regions"] for row in rows[::2]] == [None, None]
    (box,) = rows[1]["regions"]
    wide, high = images[1].width, images[1].height
    step = max(1, round(max(wide, high) / 100))
    expected = (0.25 * wide + step, 0.5 * high, 0.5 * wide, 0.375 * high)
    assert tuple(box.values()) == pytest.approx(expected, abs=1.5)
    assert all(re.fullmatch("[0-9a-f]{64}", row["sha256"]) for row in rows)
    assert output_files(scores) == before


@pytest.mark.browser
@pytest.mark.slow
def test_on_a_phone_fingers_do(browser: Browser, scores: Path, tmp_path: Path) -> None:
    reviews = tmp_path / "reviews"
    with serving(scores, reviews, "-n", 2, "--order", "random") as server:
        context = browser.new_context(
            viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True
        )
        watched = Watched.of(context)
        page = watched.page
        page.goto(server.link)
        with_photo(page)
        wide = page.locator("body").evaluate("body => body.scrollWidth")
        assert wide <= 390
        for word in ("Defective", "Good"):
            button = page.get_by_role("button", name=re.compile(word))
            box = button.bounding_box()
            assert box is not None
            assert box["height"] >= 44
            assert box["y"] + box["height"] <= 844
            button.tap()
        expect(page.locator("#ending")).to_be_visible()
        page.get_by_role("button", name="End the session").tap()
        assert server.finish()[0] == 0
        context.close()
    assert watched.complaints == []
    assert [row["verdict"] for row in rows_of(reviews)] == ["defective", "good"]


HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\u202e${alert(3)}"


@pytest.mark.browser
@pytest.mark.slow
def test_hostile_names_do_not_run_and_lost_images_say_so(browser: Browser, tmp_path: Path) -> None:
    scores, lake = tmp_path / "scores", tmp_path / "lake"
    lake.mkdir()
    pq.write_table(pa.table({"image": [b"no image"], "group": ["a"]}), lake / "a.parquet")
    bind_source(Folder.at(str(scores)), Folder.at(str(lake)))
    write_part(
        *(scores, "dt=<img src=x onerror=alert(4)>"),
        image_id=[HOSTILE] * 2,
        group=["<b>a</b>"] * 2,
        part_id=["</script>"] * 2,
        source_path=["<svg onload=alert(5)>.parquet", "a.parquet"],
        source_row=[0, 0],
    )
    reviews = tmp_path / "reviews"
    with serving(scores, reviews, "--reviewer", "<i>ann</i>") as server:
        context = browser.new_context()
        watched = Watched.of(context)
        page = watched.page
        page.goto(server.link)
        expect(page.locator("#name")).to_have_text(HOSTILE)
        reason = page.locator("#instead")
        expect(reason).to_contain_text("<svg onload=alert(5)>.parquet is not there", timeout=20_000)
        page.keyboard.press("d")
        expect(reason).to_contain_text("No photo: the bytes are not an image", timeout=20_000)
        expect(page.locator("#told")).to_contain_text("<img src=x onerror=alert(4)>")
        page.keyboard.press("u")
        expect(page.locator("#ending")).to_be_visible()
        page.get_by_role("button", name="End the session").click()
        assert server.finish()[0] == 0
        assert page.locator("main img, main script, main b, #help i").count() == 0
        context.close()
    # What a browser says of a photo that the server does not have.
    assert {said for said in watched.complaints if "404" not in said} == set()
    assert {row["image_id"] for row in rows_of(reviews)} == {HOSTILE}


class Pressing:
    """Somebody with the link and no browser."""

    def __init__(self, link: str, client: httpx2.Client) -> None:
        self.client = client
        page = self.client.get(link)
        write = re.search(r'name="patchlake-write" content="([^"]+)"', page.text)
        assert write is not None
        self.root = link.partition("/?")[0]
        self.headers = {"x-patchlake-write": write[1], "origin": self.root}

    def images(self) -> list[dict]:
        """Return what the page shows."""
        return self.client.get(f"{self.root}/images").json()

    def decide(self, number: int, verdict: str) -> bool:
        """Return whether the server has confirmed it."""
        said = {"number": number, "verdict": verdict}
        try:
            answer = self.client.post(f"{self.root}/decide", json=said, headers=self.headers)
        except httpx2.TransportError:
            return False
        return answer.status_code == 200


@pytest.mark.slow
def test_nothing_that_was_confirmed_is_lost_by_a_kill(scores: Path, tmp_path: Path) -> None:
    """Two servers at once on one folder; one is killed in the middle of its decisions."""
    reviews = tmp_path / "reviews"
    asked = (scores, reviews, "-n", 40)
    confirmed = []
    with (
        serving(*asked, "--reviewer", "ann") as ann,
        serving(*asked, "--reviewer", "bob") as bob,
        httpx2.Client(timeout=10) as client,
    ):
        hers, his = Pressing(ann.link, client), Pressing(bob.link, client)
        for number in range(40):
            if number == 25:
                os.kill(ann.process.pid, signal.SIGKILL)
            for who, name in ((hers, "ann"), (his, "bob")):
                if who.decide(number, "good" if number % 3 else "defective"):
                    confirmed.append((name, number))
        bob.process.send_signal(signal.SIGINT)
        code, out = bob.finish()
        assert code == 4
        assert "40 decisions of bob" in out
    assert len(confirmed) == 65
    ids = [image.image_id for image in worst.run(str(scores), 40).images]
    found = {(row["reviewer"], row["image_id"]) for row in rows_of(reviews)}
    assert {(name, ids[number]) for name, number in confirmed} <= found
    assert len(rows_of(reviews)) == 65


def test_what_a_reviewer_has_decided_is_not_shown_again(scores: Path, tmp_path: Path) -> None:
    reviews = tmp_path / "reviews"
    given = tmp_path / "given.csv"
    images = worst.run(str(scores), 10).images
    lines = [f"{one.image_id},{one.group},good,ann" for one in images[:3]]
    lines += [f"{one.image_id},{one.group},good,bob" for one in images[3:5]]
    given.write_text("\n".join(["image_id,group,verdict,reviewer", *lines]))
    review.take(str(scores), str(reviews), str(given))
    asked = (scores, reviews, "-n", 4, "--reviewer", "ann")
    for more, expected in (((), images[3:7]), (("--again",), images[:4])):
        with serving(*asked, *more) as server, httpx2.Client() as client:
            cards = Pressing(server.link, client).images()
            assert [card["image_id"] for card in cards] == [one.image_id for one in expected]


# --- out of a file


def test_a_file_of_decisions_is_joined_with_the_scores(
    patchlake, scores: Path, tmp_path: Path
) -> None:
    reviews = tmp_path / "reviews"
    rows = read_scores(scores).sort_by("image_id").to_pylist()
    chosen = [row for row in rows if row["group"] == "woven_cloth"][:3]
    given = tmp_path / "morning.csv"
    words = ("defective", "Good", " unsure ")
    lines = [f"{row['image_id']},woven_cloth,{w}" for row, w in zip(chosen, words, strict=True)]
    given.write_text("\n".join(["image_id,group,verdict", *lines]))
    done = patchlake("review", scores, reviews, "--from", given, "--reviewer", "ann")
    assert done.code == 0, done.err
    assert "3 decisions of ann" in done.out
    found = {row["image_id"]: row for row in rows_of(reviews)}
    for row, word in zip(chosen, words, strict=True):
        told = found[row["image_id"]]
        assert told["verdict"] == word.strip().lower()
        for name in ("group", "source_path", "source_row", "model_id", "image_score", "p_value"):
            assert told[name] == row[name], name
        assert told["scores"] == str(scores)
        assert told["root"] is not None
    again = patchlake("review", scores, reviews, "--from", given, "--reviewer", "ann", "--json")
    assert json.loads(again.out)["unsure"] == 1
    assert len(rows_of(reviews)) == 3


def test_the_query_of_the_page_counts_the_last_word_of_each_reviewer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, reviews = tmp_path / "scores", tmp_path / "reviews"
    write_part(
        scores,
        image_id=["0", "1", "2", "3", "4"],
        is_anomalous=[True, True, False, False, None],
        threshold=[1.0] * 4 + [None],
    )
    said = ["0,good,ann", "0,defective,bob", "1,good,ann", "2,defective,ann", "2,defective,bob"]
    said += ["3,good,ann", "3,unsure,bob", "4,good,ann", "4,unsure,cy"]
    for number, lines in enumerate((said, ["0,good,bob", "2,good,ann"])):
        given = tmp_path / f"{number}.csv"
        given.write_text("\n".join(["image_id,verdict,reviewer", *lines]))
        os.utime(given, (number + 1, number + 1))
        review.take(str(scores), str(reviews), str(given))
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "reviews.md"
    queries = re.findall(r"```sql\n(.*?)```", page.read_text(), re.DOTALL)
    asked = next(query for query in queries if "AS people" in query)
    assert duckdb.sql(asked).fetchall() == [
        *(("tile", "disputed", 0, 1, 0), ("tile", "good", 2, 1, 1))
    ]


def test_ids_that_are_of_several_images_or_of_none_are_refused(tmp_path: Path) -> None:
    scores, reviews = tmp_path / "scores", tmp_path / "reviews"
    write_part(scores, "g=a", image_id=["1.png", "2.png"], group=["a"] * 2)
    write_part(scores, "g=b", image_id=["1.png", "1.png"], group=["b"] * 2)

    def given(text: str) -> str:
        path = tmp_path / "given.csv"
        path.write_text(text)
        return str(path)

    with pytest.raises(ConfigError, match=r"1 decision of 2 are on images .* as \['9.png'\]"):
        review.take(str(scores), str(reviews), given("image_id,verdict\n2.png,good\n9.png,good"))
    with pytest.raises(ConfigError, match=r"'1.png' is .*; add a column group"):
        review.take(str(scores), str(reviews), given("image_id,verdict\n1.png,good"))
    with pytest.raises(ConfigError, match=r"'1.png' is .*'b: g=b/images.parquet'"):
        review.take(str(scores), str(reviews), given("image_id,group,verdict\n1.png,b,good"))
    with pytest.raises(ConfigError, match="has no decision"):
        review.take(str(scores), str(reviews), given("image_id,verdict\n"))
    with pytest.raises(ConfigError, match="row 1: verdict 'bad'"):
        review.take(str(scores), str(reviews), given("image_id,verdict\n2.png,bad"))
    assert not reviews.exists()
    text = "image_id,group,source_row,verdict\n1.png,b,1,good\n1.png,a,,defective"
    done = review.take(str(scores), str(reviews), given(text))
    assert (done.decisions, done.good, done.defective) == (2, 1, 1)
    assert [row["reviewer"] for row in rows_of(reviews)] == ["given.csv"] * 2


def test_a_compacted_table_is_reviewed_as_its_score_table(scores: Path, tmp_path: Path) -> None:
    compact.run(str(scores), str(tmp_path / "compacted"))
    row = read_scores(scores).to_pylist()[0]
    given = tmp_path / "given.parquet"
    pq.write_table(
        pa.table({"image_id": [row["image_id"]], "group": [row["group"]], "verdict": ["good"]}),
        given,
    )
    library.review(tmp_path / "compacted", tmp_path / "reviews", given=given)
    (found,) = rows_of(tmp_path / "reviews")
    assert found["scores"] == str(scores)
    assert found["source_row"] == row["source_row"]


@pytest.mark.parametrize("where", ["scores", "scores/reviews", "images", "images/reviews", "model"])
def test_reviews_do_not_go_where_something_else_is(
    images: Path, model: Path, scores: Path, tmp_path: Path, where: str
) -> None:
    first, _, rest = where.partition("/")
    folder = {"scores": scores, "images": images, "model": model}[first] / rest
    asked = review.Asked(reviewer="ann")
    with pytest.raises(ConfigError, match="name"):
        review.run(str(scores), str(folder), asked)


def test_what_cannot_be_reviewed_is_said_before_a_page_is_there(
    patchlake, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews = tmp_path / "reviews"
    assert "no row of group" in patchlake("review", scores, reviews, "--group", "tiel").err
    assert "not the name of a rev" in patchlake("review", scores, reviews, "--reviewer", " ").err
    assert patchlake("review", tmp_path / "none", reviews).code == 2
    write_part(tmp_path / "plain", image_score=[1.0])
    done = patchlake("review", tmp_path / "plain", reviews, "--order", "near")
    assert "no row has a threshold" in done.err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = patchlake("review", scores, reviews)
    assert done.code == 2
    assert "pip install 'patchlake[review]'" in done.err
    assert not reviews.exists()
