"""docs/analyst.md: its queries and snippets run as they stand, and say what is true."""

import re
import shutil
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import compact, library, score
from tests.conftest import LOCAL, TINY, read_scores, write_part

PAGE = (Path(__file__).parents[1] / "docs" / "analyst.md").read_text()
SQL = dict(re.findall(r"```sql\n-- (\w+)\n(.*?)```", PAGE, re.DOTALL))
PYTHON = dict(re.findall(r"```python\n# (\w+)\n(.*?)```", PAGE, re.DOTALL))
NIGHTS = ("2026-11-21", "2026-11-22")
LINES = ("L1", "L2")


@pytest.fixture(scope="module")
def plant(
    images: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Settings
) -> Path:
    """Two lines and two nights, one image in each of them cut short, under two versions."""
    root = tmp_path_factory.mktemp("plant")
    files = sorted(images.glob("g=*/*.parquet"))
    rows = pa.concat_tables([pq.ParquetFile(file).read().slice(12) for file in files])
    for number, (night, line) in enumerate((n, ln) for n in NIGHTS for ln in LINES):
        folder = root / "images" / f"dt={night}" / f"line={line}"
        folder.mkdir(parents=True)
        some = rows.take(list(range(number, len(rows), 4)))
        content = some.column("image").to_pylist()
        content[0] = content[0][:100]
        pq.write_table(some.set_column(1, "image", pa.array(content)), folder / "images.parquet")
    settings = tiny.model_copy(update={"max_failed": 1.0})
    score.run(str(root / "images"), str(model), str(root / "scores"), settings, LOCAL)
    later = load_settings(
        flags=TINY
        | {"fragment_images": 3, "max_failed": 1.0}
        | {
            "score": {
                "scored_at": datetime(2026, 1, 2, tzinfo=UTC),
                "heatmap_store": "packed",
                "heatmaps": "all",
            }
        }
    )
    score.run(str(root / "images"), str(model), str(root / "scores"), later, LOCAL)
    return root


@pytest.fixture(scope="module")
def rows(plant: Path) -> list[dict[str, object]]:
    """All rows with the keys of their path."""
    found = read_scores(plant / "scores").to_pylist()
    for row in found:
        row |= dict(part.split("=") for part in row["source_path"].split("/")[:2])
    return found


@pytest.fixture(params=["parts", "compacted"])
def table(request: pytest.FixtureRequest, plant: Path, tmp_path: Path, monkeypatch) -> None:
    """The page's folder: a score table, or its compacted twin, named scores."""
    if request.param == "parts":
        shutil.copytree(plant / "scores", tmp_path / "scores")
    else:
        compact.run(str(plant / "scores"), str(tmp_path / "scores"))
    monkeypatch.chdir(tmp_path)


def _ask(name: str) -> list[dict[str, object]]:
    return duckdb.sql(SQL[name]).to_arrow_table().to_pylist()


def _newest(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    newest = max(row["scored_at"] for row in rows)
    return [row for row in rows if row["scored_at"] == newest]


def test_the_page_has_its_queries():
    assert set(SQL) == {
        *("drift", "worst", "places", "regions", "unreadable", "versions", "discoveries", "parts"),
    }
    assert set(PYTHON) == {
        *("polars", "pandas", "pictures", "zipfile", "discoveries", "discovered", "parts"),
    }


def test_drift_of_quantiles_by_line_and_night(table, rows):
    by_night = defaultdict(list)
    for row in _newest(rows):
        if row["status"] == "ok":
            by_night[row["group"], row["line"], row["dt"]].append(row["image_score"])
    answer = _ask("drift")
    assert len(answer) == len(by_night) == 8
    for found in answer:
        scores = by_night[found["group"], found["line"], str(found["dt"])]
        assert found["images"] == len(scores)
        quantiles = np.quantile(scores, [0.5, 0.95, 0.99])
        np.testing.assert_allclose(
            [found["median"], found["p95"], found["p99"]], quantiles, rtol=1e-5
        )
        if str(found["dt"]) == NIGHTS[0]:
            assert found["moved"] is None
        else:
            before = np.median(by_night[found["group"], found["line"], NIGHTS[0]])
            assert found["moved"] == pytest.approx(quantiles[0] / before - 1, rel=1e-4)


def test_the_worst_with_their_pictures(table, rows, plant: Path):
    of_night = [row for row in _newest(rows) if (row["status"], row["dt"]) == ("ok", NIGHTS[1])]
    of_night.sort(key=lambda r: (-r["image_score"], r["source_path"], r["source_row"]))
    answer = _ask("worst")
    assert [found["image_score"] for found in answer] == [r["image_score"] for r in of_night]
    assert {f["picture"] for f in answer} == {f"scores/{r['heatmap_path']}" for r in of_night}
    assert all(library.picture(plant / found["picture"]) for found in answer)


def test_places_of_the_worst_tenth(table, rows):
    ranked = defaultdict(list)
    for row in rows:
        if row["status"] == "ok":
            ranked[row["model_id"], row["group"]].append(row)
    expected = Counter()
    for (_, group), members in ranked.items():
        scores = np.array([row["image_score"] for row in members])
        for row in members:
            share = (scores < row["image_score"]).sum() / (len(scores) - 1)
            if share >= 0.9:
                y, x = divmod(int(np.argmax(row["anomaly_map"])), row["map_width"])
                place = (
                    ("upper", "middle", "lower")[3 * y // 8],
                    ("left", "centre", "right")[3 * x // 8],
                )
                expected[group, *place] += 1
    answer = _ask("places")
    assert {(f["group"], f["row"], f["column"]): f["images"] for f in answer} == expected


def test_regions_are_not_filled_yet_but_the_query_counts_what_there_will_be(table, tmp_path: Path):
    assert _ask("regions") == []
    part = next(tmp_path.glob("scores/version=*/**/*.parquet"))
    filled = pq.ParquetFile(part).read()
    place = filled.schema.get_field_index("regions")
    field = filled.schema.field("regions")
    box = {"x": 200, "y": 10, "width": 20, "height": 20, "area": 400, "peak": 1.0}
    ok = [status == "ok" for status in filled.column("status").to_pylist()]
    boxes = pa.array([[box] if is_ok else None for is_ok in ok], field.type)
    pq.write_table(filled.set_column(place, field, boxes), part)
    # The pictures are 256 x 256: the upper third, on the right.
    answer = _ask("regions")
    assert {(found["row"], found["column"]) for found in answer} == {(0, 2)}
    assert sum(found["defects"] for found in answer) == sum(ok)


def test_unreadable_rates_by_line_and_night(table, rows):
    counts = Counter((row["line"], row["dt"], row["status"] == "ok") for row in _newest(rows))
    answer = _ask("unreadable")
    assert len(answer) == 4
    for found in answer:
        ok, bad = (counts[found["line"], str(found["dt"]), is_ok] for is_ok in (True, False))
        assert (found["images"], found["without_score"]) == (ok + bad, bad) == (5, 1)
        assert found["percent"] == 20
        assert found["commonest_error"]


def test_versions_are_compared_by_rank(table, rows):
    answer = _ask("versions")
    assert [found["group"] for found in answer] == ["brushed_plate", "woven_cloth"]
    assert sum(found["images"] for found in answer) == 16
    for found in answer:
        # The same model under another cut into fragments: the same judge.
        assert found["rank_correlation"] == pytest.approx(1)
        assert found["in_both_worst_hundreds"] == found["images"]
        assert found["old_version"] != found["new_version"]


@pytest.mark.parametrize("seed", range(6))
def test_discoveries_are_the_same_in_all_engines(seed: int, tmp_path: Path, monkeypatch):
    """Of two nights, with ties, images without a p-value, and a share of defects by the seed."""
    rng = np.random.default_rng(seed)
    for night in NIGHTS:
        parts = 199
        ranks = rng.integers(1, parts + 2, 300)
        ranks[: 20 * seed] = rng.integers(1, 4, 20 * seed)
        p = [None if rng.random() < 0.1 else rank / (parts + 1) for rank in ranks]
        write_part(tmp_path / "scores", f"dt={night}", p_value=p, image_score=rng.random(300))
    monkeypatch.chdir(tmp_path)
    asked = [(row["image_id"], row["p_value"]) for row in _ask("discoveries")]
    pandas: dict[str, object] = {}
    exec(PYTHON["discoveries"], pandas)
    ours: dict[str, object] = {}
    exec(PYTHON["discovered"], ours)
    frames = [scope[name] for scope, name in ((pandas, "found"), (ours, "discovered"))]
    for frame in frames:
        assert list(zip(frame["image_id"], frame["p_value"], strict=True)) == asked
    assert "anomaly_map" not in ours["discovered"]
    assert bool(asked) == (seed > 2)


def test_parts_are_the_same_in_sql(tmp_path: Path, monkeypatch):
    """Of 40 parts with up to some 20 images, at the rate of the page."""
    rng = np.random.default_rng(3)
    for night in NIGHTS:
        ranks = rng.integers(1, 400, 200) ** 2 // 400 + 1
        write_part(
            *(tmp_path / "scores", f"dt={night}"),
            part_id=[None if n == 40 else f"P{n}" for n in rng.integers(0, 41, 200)],
            p_value=[None if rng.random() < 0.1 else rank / 401 for rank in ranks],
            image_score=(1 / ranks).tolist(),
            group=[("plate", "tile")[n] for n in rng.integers(0, 2, 200)],
        )
    monkeypatch.chdir(tmp_path)
    asked = _ask("parts")
    parts = library.parts("scores", settings=library.settings(verdict={"false_alarm_rate": 0.01}))
    names = {"part_p_value": "p_value"}
    expected = [row for row in parts.to_pylist() if row["tested"]]
    assert len(asked) == len(expected) > 70
    for found, row in zip(asked, expected, strict=True):
        assert found == {name: row[names.get(name, name)] for name in found}
    assert 0 < sum(row["is_anomalous"] for row in asked) < len(asked)
    monkeypatch.setattr("patchlake.pipeline.driver.parts._false_alarm_rate", lambda *_: 0.01)
    scope: dict[str, object] = {}
    exec(PYTHON["parts"], scope)
    assert len(scope["shown"]) == sum(row["is_anomalous"] for row in asked)


def test_the_snippet_for_polars(table, rows):
    scope: dict[str, object] = {}
    exec(PYTHON["polars"], scope)
    of_line = [row for row in rows if row["line"] == "L1" and row["status"] == "ok"]
    assert sum(scope["worst"]["images"].to_list()) == len(of_line)
    assert set(scope["worst"]["group"]) == {"brushed_plate", "woven_cloth"}


def test_the_snippet_for_pandas(table, rows):
    scope: dict[str, object] = {}
    exec(PYTHON["pandas"], scope)
    of_line = [row for row in rows if row["line"] == "L1" and row["status"] == "ok"]
    assert len(scope["worst"]) == len(of_line)
    assert scope["worst"]["image_score"].max() == max(row["image_score"] for row in of_line)


def test_the_snippets_that_show_pictures(plant: Path, tmp_path: Path, monkeypatch):
    """Of two versions, of which the later one has its pictures in zips."""
    shutil.copytree(plant / "scores", tmp_path / "scores")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(PYTHON["pictures"], scope)
    assert [picture.width for picture in scope["shown"]] == [256] * 4
    # The photo, and its strip of one to four lines.
    assert {picture.height - 256 for picture in scope["shown"]} <= {20, 40, 60, 80}
    exec(PYTHON["zipfile"], scope)
    assert scope["jpeg"].startswith(b"\xff\xd8\xff")
