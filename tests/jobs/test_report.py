"""report: one page of a score table, whatever is in it."""

import re
import shutil
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import patchlake as library
from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import compact, drift, report, score
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.report import page
from patchlake.pipeline.tables import SCORES
from tests.conftest import LOCAL, TINY, Store, write_part
from tests.hostile import hostile_scores
from tests.jobs.conftest import WHERE

# The methods' own are in their models.
PLAIN = load_settings(flags={name: one for name, one in TINY.items() if name != "method"})
# Of the page's own; one has the numbers.
SCRIPTS = 3


class Parsed(HTMLParser):
    """A page as a browser reads it: tags with their attributes, and text outside of scripts."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._within = ""
        self.feed(content.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag if tag in ("script", "style") else ""

    def handle_endtag(self, _: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if not self._within:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def pictures(self) -> int:
        """Photos and heatmaps; suspects of the training set have small ones of their own."""
        is_small = [attrs.get("class") == "small" for name, attrs in self.tags if name == "img"]
        return is_small.count(False)


def _page(scores: Path, tmp_path: Path, **given: object) -> Parsed:
    return Parsed(_written(scores, tmp_path / "page.html", **given))


def _written(scores: Path, out: Path, **given: object) -> bytes:
    report.run(str(scores), str(out), **given)
    return out.read_bytes()


def test_the_command_writes_a_page_of_real_scores(scores: Path, tmp_path: Path, patchlake):
    out = tmp_path / "page.html"
    result = patchlake("report", scores, out)
    assert result.code == 0, result.err
    assert result.out.strip() == str(out)
    assert "a page of 44 images, night 2026-01-01" in result.err
    content = out.read_bytes()
    assert len(content) < page.MOST_BYTES
    parsed = Parsed(content)
    assert "44 images of 2 groups came in." in parsed.text
    assert "woven_cloth/test/hole/000.png" in parsed.text
    # A photo and a heatmap of each.
    cards = sum(tag == "article" and "card" in attrs["class"] for tag, attrs in parsed.tags)
    assert parsed.pictures() == 2 * (cards - parsed.text.count("No photo"))
    assert "resnet10t.c3_in1k" in parsed.text
    assert re.search("looks? anomalous", parsed.text)


def test_the_same_table_gives_the_same_bytes(scores: Path, tmp_path: Path):
    first = _written(scores, tmp_path / "a.html")
    found = library.report(scores, tmp_path / "b.html")
    assert (tmp_path / "b.html").read_bytes() == first
    assert found.bytes == len(first)
    assert found.images == 44


def test_a_compacted_table_has_the_same_pictures_and_facts(scores: Path, tmp_path: Path):
    compact.run(str(scores), str(tmp_path / "compacted"))
    ours = _page(scores, tmp_path)
    theirs = _page(tmp_path / "compacted", tmp_path)
    assert theirs.pictures() == ours.pictures() > 0
    assert theirs.text.replace(str(tmp_path / "compacted"), str(scores)) == ours.text


def test_without_the_images_there_are_heatmaps_and_it_says_so(scores: Path, tmp_path: Path):
    shutil.copytree(scores, tmp_path / "scores")
    (tmp_path / "scores" / "_source.json").write_text(str(tmp_path / "gone"))
    ours, theirs = _page(scores, tmp_path), _page(tmp_path / "scores", tmp_path)
    assert theirs.pictures() == ours.pictures() / 2
    assert "No photo: the images table cannot be opened" in theirs.text


def test_without_heatmaps_they_are_drawn_by_the_model_where_it_is_there(
    images: Path, model: Path, tiny, tmp_path: Path
):
    plain = tiny.model_copy(update={"score": tiny.score.model_copy(update={"heatmaps": "none"})})
    shutil.copytree(model, tmp_path / "model")
    score.run(str(images), [str(tmp_path / "model")], str(tmp_path / "scores"), plain, LOCAL)
    drawn = _page(tmp_path / "scores", tmp_path)
    shutil.rmtree(tmp_path / "model")
    without = _page(tmp_path / "scores", tmp_path)
    assert drawn.pictures() == 2 * without.pictures() > 0
    assert "No heatmap: none was drawn (score.heatmaps)" in without.text
    assert "The model cannot be opened" in without.text


def test_an_ensemble_has_a_page(images: Path, fitted_by, tmp_path: Path):
    both = [str(fitted_by(method)) for method in ("patchcore", "padim")]
    score.run(str(images), both, str(tmp_path / "scores"), PLAIN, LOCAL, where=WHERE)
    parsed = _page(tmp_path / "scores", tmp_path)
    assert "padim" in parsed.text
    assert "patchcore" in parsed.text
    assert parsed.pictures() > 0


def test_a_model_without_maps_has_a_page(images: Path, fitted_by, tmp_path: Path):
    model = str(fitted_by("dn2"))
    score.run(str(images), [model], str(tmp_path / "scores"), PLAIN, LOCAL, where=WHERE)
    parsed = _page(tmp_path / "scores", tmp_path)
    assert "Nothing to place." in parsed.text
    assert parsed.pictures() > 0


def test_one_row_is_enough(tmp_path: Path):
    write_part(tmp_path / "scores", image_id=["only.png"])
    parsed = _page(tmp_path / "scores", tmp_path)
    assert "1 image of 1 group came in." in parsed.text
    assert "only.png" in parsed.text


def test_a_night_without_a_score_has_a_page(tmp_path: Path):
    failed = {"status": ["unreadable"] * 2, "error": ["cut short"] * 2, "image_score": [None] * 2}
    write_part(tmp_path / "scores", **failed)
    parsed = _page(tmp_path / "scores", tmp_path)
    assert "No image has a score." in parsed.text
    assert "2 images could not be read." in parsed.text
    assert "cut short" in parsed.text
    assert parsed.pictures() == 0


def test_a_table_of_before_has_a_page(tmp_path: Path):
    path = write_part(tmp_path / "scores", image_score=[1.0, 2.0])
    rows = pq.ParquetFile(path).read()
    late = ("regions", "part_id", "p_value", "threshold", "pixel_threshold", "heatmap_path")
    pq.write_table(rows.drop_columns([n for n in late if n in rows.column_names]), path)
    assert "2 images were scored" in _page(tmp_path / "scores", tmp_path).text


def test_a_night_can_be_chosen(tmp_path: Path, patchlake):
    for night in ("2026-11-20", "2026-11-21"):
        write_part(tmp_path / "scores", f"dt={night}/g=tile", image_score=[1.0])
    out = tmp_path / "page.html"
    result = patchlake("report", tmp_path / "scores", out, "--night", "2026-11-20")
    assert result.code == 0, result.err
    assert "Night of 2026-11-20" in Parsed(out.read_bytes()).text
    result = patchlake("report", tmp_path / "scores", out, "--night", "2026-11-2")
    assert result.code == 2
    assert "no night '2026-11-2' (column dt); its last one is '2026-11-21'" in result.err


@pytest.mark.parametrize("out", ["page.pdf", "page", "scores/version=abc/page.html"])
def test_what_is_no_place_for_a_page_is_refused(tmp_path: Path, out: str):
    path = write_part(tmp_path / "scores", image_score=[1.0])
    with pytest.raises(ConfigError, match=r"end it with \.html|among the rows"):
        report.run(str(tmp_path / "scores"), str(tmp_path / out))
    assert list(tmp_path.rglob("page*")) == []
    assert path.exists()


def test_strangers_text_is_text(tmp_path: Path):
    content = _written(hostile_scores(tmp_path / "scores"), tmp_path / "page.html")
    parsed = Parsed(content)
    assert parsed.count("script") == SCRIPTS
    # None of a stranger's tags, nor attributes that run.
    assert not [attrs for _, attrs in parsed.tags if any(name.startswith("on") for name in attrs)]
    assert {tag for tag, _ in parsed.tags}.isdisjoint({"iframe", "object", "base", "link", "b2"})
    sources = {attrs.get("src") for tag, attrs in parsed.tags if tag in ("img", "script")}
    assert all(one is None or one.startswith("data:image/jpeg;base64,") for one in sources)
    assert "</script><script>alert(1)</script>" in parsed.text
    assert "{{7*7}}" in parsed.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", content.decode())
    assert "hunter2" not in content.decode()
    longest = max(len(word) for word in parsed.text.split())
    assert longest < 1000


def test_only_our_own_scripts_may_run(scores: Path, tmp_path: Path):
    policy = next(
        attrs["content"]
        for tag, attrs in _page(scores, tmp_path).tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"('sha256-[A-Za-z0-9+/]{43}='( |$)){2}", rules["script-src"])
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")


def test_pictures_without_room_are_left_out_and_it_says_so(
    scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = _written(scores, tmp_path / "whole.html")
    most = len(whole) - 60_000
    monkeypatch.setattr(page, "MOST_BYTES", most)
    content = _written(scores, tmp_path / "page.html")
    assert len(content) <= most
    parsed = Parsed(content)
    assert 0 < parsed.pictures() < Parsed(whole).pictures()
    assert "left out, so that the page stays small" in parsed.text


@pytest.mark.parametrize(
    "groups", [600, pytest.param(10_000, marks=pytest.mark.slow)], ids="{} groups".format
)
def test_many_groups_have_a_small_page(tmp_path: Path, groups: int):
    _many(tmp_path / "scores", groups, nights=30)
    content = _written(tmp_path / "scores", tmp_path / "page.html")
    assert len(content) < page.MOST_BYTES
    parsed = Parsed(content)
    assert f"{groups:,} images of {groups:,} groups came in." in parsed.text
    rows = sum(tag == "tr" and "item" in (attrs.get("class") or "") for tag, attrs in parsed.tags)
    assert rows >= 1500
    assert f"{groups * 30 - 1500:,} rows of groups and nights that matter less" in parsed.text
    # The one with alarms is first.
    assert "clearly above that, by defects or by a change" not in parsed.text
    first = next(a for tag, a in parsed.tags if tag == "article" and "group" in a["class"])
    assert first["data-group"] == "group-00300"


def _many(root: Path, groups: int, nights: int) -> None:
    """One image a group and night, of which one is anomalous in the last night."""
    for night in range(nights):
        score = np.full(groups, 1.0, np.float32)
        score[300] = 3.0 if night == nights - 1 else 1.0
        names = [f"group-{number:05}" for number in range(groups)]
        given = {
            "image_id": [f"{name}/{night}.png" for name in names],
            "source_path": ["images.parquet"] * groups,
            "source_row": np.arange(groups) + night * groups,
            "group": names,
            "status": ["ok"] * groups,
            "image_score": score,
            "threshold": np.full(groups, 2.0, np.float32),
            "is_anomalous": score > 2,
            "model_id": ["m"] * groups,
            "scored_at": [datetime(2026, 1, 1, tzinfo=UTC)] * groups,
        }
        arrays = [pa.array(given.get(f.name, [None] * groups), f.type) for f in SCORES]
        folder = root / "version=abc" / f"dt=2026-11-{night + 1:02}"
        folder.mkdir(parents=True)
        rows = pa.Table.from_arrays(arrays, schema=SCORES)
        pq.write_table(rows, folder / f"part-{night:012x}-{night:020x}.parquet")


@pytest.mark.slow
@pytest.mark.s3
def test_scores_and_page_may_be_in_s3(scores: Path, tmp_path: Path, store: Store):
    for path in scores.rglob("*"):
        if path.is_file():
            store.put(f"scores/{path.relative_to(scores)}", path.read_bytes())
    found = report.run(store.uri("scores"), store.uri("page.html"), settings=store.settings())
    assert found.path == store.uri("page.html")
    ours, theirs = _page(scores, tmp_path), Parsed(store.files()["page.html"])
    assert theirs.pictures() == ours.pictures()
    assert theirs.text.replace(store.uri("scores"), str(scores)) == ours.text


def test_the_page_has_what_drift_says_of_a_table_that_was_scored(scores: Path, tmp_path: Path):
    found = drift.run(str(scores)).to_pylist()
    assert {row["is_drift"] for row in found} <= {True, False}
    report.run(str(scores), str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    assert f"of {len(found)} groups drift" in text
    assert "no test for drift" not in text
