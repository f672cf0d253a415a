"""The page of `report` in a real browser: nothing strange runs, and all that it offers works."""

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from patchlake.pipeline.driver import report
from patchlake.pipeline.score_table import heatmaps
from patchlake.pipeline.storage.folder import Folder
from tests.browsers import chromium
from tests.conftest import write_part
from tests.hostile import hostile_scores

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NIGHTS = ("2026-11-20", "2026-11-21", "2026-11-22")
# Of a phone, in pixels.
PHONE = 390


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


class Opened:
    """A page in a window of its own, and what it did that it should not."""

    def __init__(self, browser: Browser, path: Path, **window: Any) -> None:
        self.faults: list[str] = []
        self._context = browser.new_context(**window)
        self.page = self._context.new_page()
        self.page.on("console", lambda line: self._note(line.type, line.text))
        self.page.on("pageerror", lambda error: self.faults.append(f"error {error}"))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self._requested(request.url, path))
        self.page.goto(path.as_uri())

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.faults.append(f"{kind} {text}")

    def _dismiss(self, dialog: Any) -> None:
        self.faults.append(f"dialog {dialog.message}")
        dialog.dismiss()

    def _requested(self, url: str, path: Path) -> None:
        if url.partition("#")[0] != path.as_uri() and not url.startswith("data:image/jpeg;base64,"):
            self.faults.append(f"request {url[:200]}")

    def count(self, selector: str) -> int:
        """Return how many there are that can be seen."""
        return sum(one.is_visible() for one in self.page.query_selector_all(selector))

    def shown(self) -> str:
        return self.page.inner_text("#shown")

    def draw(self) -> None:
        """Scroll through the page, so that every chart is drawn, and wait for them."""
        for chart in self.page.query_selector_all(".chart"):
            chart.scroll_into_view_if_needed()
        self.page.wait_for_function(
            "document.querySelectorAll('.chart svg').length"
            " === document.querySelectorAll('.chart').length"
        )

    def close(self) -> None:
        self._context.close()
        assert self.faults == []


@pytest.fixture(scope="module")
def path(scores: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of three nights of two groups, with real heatmaps."""
    root = tmp_path_factory.mktemp("nights")
    shutil.copytree(scores / "_heatmaps", root / "scores" / "_heatmaps")
    drawn = sorted(
        str(found.relative_to(scores)) for found in (scores / "_heatmaps").rglob("*.jpg")
    )
    assert heatmaps.read(f"{scores}/{drawn[0]}", Folder.at(str(scores)).storage)
    for night in NIGHTS:
        for group in ("plate", "tile"):
            _part(root / "scores", night, group, drawn)
    report.run(str(root / "scores"), str(root / "page.html"))
    return root / "page.html"


def _part(root: Path, night: str, group: str, drawn: list[str]) -> None:
    rows = 20
    score = [1.0 + 0.1 * number for number in range(rows - 1)] + [None]
    alarm = [None if one is None else one > 2 for one in score]
    region = {"x": 4, "y": 4, "width": 9, "height": 8, "area": 50, "peak": 3.0}
    write_part(
        *(root, f"dt={night}/g={group}"),
        group=[group] * rows,
        status=["ok"] * (rows - 1) + ["unreadable"],
        error=[None] * (rows - 1) + [f"cut short in {night}"],
        image_score=score,
        threshold=[None if one is None else 2.0 for one in score],
        p_value=[None if one is None else 0.004 if one > 2 else 0.5 for one in score],
        is_anomalous=alarm,
        regions=[[region | {"centre_x": 8.0, "centre_y": 8.0}] if one else [] for one in alarm],
        heatmap_path=[drawn[number] for number in range(rows)],
        width=[64] * rows,
        height=[64] * rows,
        scored_at=[datetime(2026, 11, 23, tzinfo=UTC)] * rows,
    )


@pytest.fixture
def opened(browser: Any, path: Path) -> Iterator[Opened]:
    one = Opened(browser, path)
    yield one
    one.close()


def test_charts_are_drawn_and_nothing_is_asked_of_anybody(opened: Opened):
    opened.draw()
    # Two groups with five kinds of chart each; of nothing that drifts there is none.
    assert opened.count(".chart svg") == 10
    assert opened.count(".chart svg path") > 50


def test_the_filter_shows_what_matches_and_says_how_many(opened: Opened):
    page = opened.page
    # At first the last night.
    assert page.input_value("#night") == NIGHTS[-1]
    every = page.locator(".card").count()
    last = page.locator(f".card[data-night='{NIGHTS[-1]}']").count()
    assert f"{last} of {every} images" in opened.shown()
    page.select_option("#group", "tile")
    assert f"{last // 2} of {every} images" in opened.shown()
    assert "1 of 2 groups in charts" in opened.shown()
    assert opened.count("article.group") == 1
    page.fill("#text", f"cut short in {NIGHTS[-1]}")
    assert opened.count("#unreadable .sorted tbody tr") == 1
    assert opened.count(".card") == 0
    assert page.locator("#worst .empty").is_visible()
    page.click("button[type=reset]")
    assert f"{every} of {every} images" in opened.shown()
    assert opened.count("#summary tbody tr") == 6


def test_a_dozen_pictures_are_there_until_more_are_asked_for(opened: Opened):
    opened.page.click("button[type=reset]")
    every = opened.page.locator("#worst .card").count()
    assert opened.count("#worst .card") == 12 < every
    opened.page.click("#worst .more")
    assert opened.count("#worst .card") == every
    assert not opened.page.locator("#worst .more").is_visible()


def test_tables_and_pictures_are_put_in_order(opened: Opened):
    page = opened.page
    page.click("button[type=reset]")
    head = page.locator("#summary th").nth(1)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    nights = page.locator("#summary tbody td:nth-child(2)").all_inner_texts()
    assert nights == sorted(nights)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert page.locator("#summary tbody td:nth-child(2)").all_inner_texts() == sorted(nights)[::-1]
    page.select_option("#order", "group")
    groups = [card.get_attribute("data-group") for card in page.locator("#worst .card").all()]
    assert groups == sorted(groups)
    page.select_option("#order", "excess")
    worst = [
        float(card.get_attribute("data-excess")) for card in page.locator("#worst .card").all()
    ]
    assert worst == sorted(worst, reverse=True)


def test_the_keyboard_is_enough(opened: Opened):
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    focused = "document.activeElement.className"
    assert page.evaluate(focused) == "open"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] img").count() == 1
    assert page.locator("dialog[open] h2").inner_text() in page.content()
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.evaluate(focused) == "open"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_as_the_system_says_until_the_button_does(
    browser: Any, path: Path, scheme: str
):
    opened = Opened(browser, path, color_scheme=scheme)
    opened.draw()
    paper = "getComputedStyle(document.body).backgroundColor"
    bar = "document.querySelector('[data-kind=scores] svg .mark-rect path').getAttribute('fill')"
    before = [opened.page.evaluate(paper), opened.page.evaluate(bar)]
    assert before[0] == {"light": "rgb(251, 251, 250)", "dark": "rgb(20, 23, 27)"}[scheme]
    opened.page.click("#theme")
    # Charts follow.
    opened.page.wait_for_function(f"{bar} !== {before[1]!r}")
    assert opened.page.evaluate(paper) != before[0]
    opened.close()


def test_a_phone_has_nothing_to_scroll_sideways(browser: Any, path: Path):
    opened = Opened(browser, path, viewport={"width": PHONE, "height": 844})
    opened.draw()
    assert opened.page.evaluate("document.documentElement.scrollWidth") == PHONE
    opened.close()


def test_nothing_of_a_stranger_runs(browser: Any, tmp_path: Path):
    path = tmp_path / "page.html"
    report.run(str(hostile_scores(tmp_path / "scores")), str(path))
    opened = Opened(browser, path, viewport={"width": PHONE, "height": 844})
    opened.page.click("button[type=reset]")
    opened.draw()
    for item in opened.page.query_selector_all(".card .open"):
        if item.is_visible():
            item.click()
            opened.page.keyboard.press("Escape")
    opened.page.fill("#text", "onerror")
    assert opened.count("#unreadable tbody tr") > 0
    assert opened.page.evaluate("document.documentElement.scrollWidth") == PHONE
    opened.close()


def test_a_script_that_was_not_escaped_would_not_run(browser: Any, path: Path, tmp_path: Path):
    broken = tmp_path / "page.html"
    script = "<script>document.title = 'ran'</script><img src=x onerror=\"document.title='ran'\">"
    broken.write_text(path.read_text().replace("<main>", f"<main>{script}"))
    opened = Opened(browser, broken)
    opened.page.wait_for_timeout(200)
    assert opened.page.title() != "ran"
    assert any("Content Security Policy" in fault for fault in opened.faults)
    opened.faults.clear()
    opened.close()
