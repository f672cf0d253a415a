"""docs/analyst.md: its queries and snippets run as they stand, and say what is true."""

import shutil
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import patchlake as library
from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import compact, score
from tests.conftest import LOCAL, TINY, read_scores, write_part
from tests.guide import PYTHON, SQL, ask, ask_duckdb

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


def _newest(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    newest = max(row["scored_at"] for row in rows)
    return [row for row in rows if row["scored_at"] == newest]


def test_the_page_has_its_queries():
    assert set(SQL) == {
        *("open", "open_without_keys", "drift", "alarms", "worst", "boxes", "regions", "places"),
        *("unreadable", "versions", "discoveries", "parts", "shots"),
    }
    assert set(PYTHON) == {"nights.py", "pictures", "zipfile", "discovered", "parts", "s3"}


def test_drift_of_quantiles_by_line_and_night(table, rows):
    by_night = defaultdict(list)
    for row in _newest(rows):
        if row["status"] == "ok":
            by_night[row["group"], row["line"], row["dt"]].append(row["image_score"])
    answer = ask_duckdb("drift")
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
    answer = ask_duckdb("worst")
    assert [found["image_score"] for found in answer] == [r["image_score"] for r in of_night]
    assert {f["picture"] for f in answer} == {f"scores/{r['heatmap_path']}" for r in of_night}
    assert all(library.picture(plant / found["picture"]) for found in answer)


def test_places_of_the_worst_tenth(table, rows):
    ranked = defaultdict(list)
    for row in _newest(rows):
        if row["status"] == "ok":
            ranked[row["group"]].append(row)
    expected = Counter()
    for group, members in ranked.items():
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
    answer = ask_duckdb("places")
    assert {(f["group"], f["row"], f["column"]): f["images"] for f in answer} == expected


def test_regions_by_the_ninth_of_the_part_that_their_middle_is_in(tmp_path: Path, monkeypatch):
    """Of pictures of 300 x 150: by the position of each box, and only of what is anomalous."""
    corners = [
        (200, 10, 20, 20, 1.0),
        (199, 0, 2, 2, 3.0),
        (198, 0, 2, 2, 2.0),
        (0, 149, 1, 1, 9.0),
    ]
    names = ("x", "y", "width", "height", "peak")
    boxes = [dict(zip(names, c, strict=True)) | {"area": 1} for c in corners]
    write_part(
        tmp_path / "scores",
        is_anomalous=[True, True, False, None],
        regions=[boxes[:3], [boxes[3]], [], None],
        width=[300] * 4,
        height=[150] * 4,
    )
    monkeypatch.chdir(tmp_path)
    answer = ask_duckdb("regions")
    assert [tuple(found.values()) for found in answer] == [
        ("tile", 0, 2, 2, 3.0),
        ("tile", 0, 1, 1, 2.0),
        ("tile", 2, 0, 1, 9.0),
    ]


def test_boxes_of_the_worst_that_are_anomalous(tmp_path: Path, monkeypatch):
    """Twenty images of the night at most, the worst first, and of each its largest region."""
    rng = np.random.default_rng(0)
    names = ("x", "y", "width", "height", "area")
    regions = [
        [dict(zip(names, rng.integers(0, 99, 5).tolist(), strict=True)) | {"peak": 1.0}] * count
        for count in rng.integers(1, 4, 60)
    ]
    scores = rng.integers(0, 30, 60).astype(float).tolist()
    is_anomalous = (rng.random(60) < 0.7).tolist()
    for night in NIGHTS:
        write_part(
            *(tmp_path / "scores", f"dt={night}"),
            image_score=scores,
            is_anomalous=is_anomalous,
            regions=[some if bad else [] for some, bad in zip(regions, is_anomalous, strict=True)],
        )
    monkeypatch.chdir(tmp_path)
    worst = sorted(np.flatnonzero(is_anomalous), key=lambda n: (-scores[n], n))[:20]
    expected = [
        (scores[n], place + 1, *box.values()) for n in worst for place, box in enumerate(regions[n])
    ]
    answer = ask_duckdb("boxes")
    assert [tuple(found.values())[2:] for found in answer] == expected
    assert all(found["image_id"].startswith(f"dt={NIGHTS[1]}/") for found in answer)


def test_alarms_beside_the_promised_rate(tmp_path: Path, monkeypatch):
    """Images without a verdict do not count, and a night of them has no share."""
    verdicts = {"21": [True, False, None, True], "22": [None, None]}
    for night, is_anomalous in verdicts.items():
        write_part(tmp_path / "scores", f"dt=2026-11-{night}", is_anomalous=is_anomalous)
    monkeypatch.chdir(tmp_path)
    first, second = (tuple(found.values()) for found in ask_duckdb("alarms"))
    assert first == ("tile", "2026-11-21", 3, 2, pytest.approx(2 / 3), 0.05)
    assert second[:4] == ("tile", "2026-11-22", 0, 0)


def test_the_first_shots_of_one_part(tmp_path: Path, monkeypatch):
    for night in reversed(NIGHTS):
        write_part(
            *(tmp_path / "scores", f"dt={night}/line=L1"),
            part_id=["test-scratch-0", "test-scratch-1"] * 8,
            group=["brushed_plate"] * 16,
        )
    monkeypatch.chdir(tmp_path)
    shots = [f"dt={night}/line=L1/{n}.png" for night in NIGHTS for n in range(0, 16, 2)]
    assert [found["image_id"] for found in ask_duckdb("shots")] == shots[:10]


def test_unreadable_rates_by_line_and_night(table, rows):
    counts = Counter((row["line"], row["dt"], row["status"] == "ok") for row in _newest(rows))
    answer = ask_duckdb("unreadable")
    assert len(answer) == 4
    for found in answer:
        ok, bad = (counts[found["line"], str(found["dt"]), is_ok] for is_ok in (True, False))
        assert (found["images"], found["without_score"]) == (ok + bad, bad) == (5, 1)
        assert found["percent"] == 20
        assert found["an_error"] in {row["error"] for row in _newest(rows)}


def test_versions_are_compared_by_rank(table, rows):
    answer = ask_duckdb("versions")
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
    asked = [(row["image_id"], row["p_value"]) for row in ask_duckdb("discoveries")]
    for engine in ("polars", "pandas"):
        found = ask(engine, "discoveries")
        assert [(row["image_id"], row["p_value"]) for row in found] == asked
    ours: dict[str, object] = {}
    exec(PYTHON["discovered"], ours)
    frame = ours["discovered"]
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
    asked = ask_duckdb("parts")
    parts = library.parts("scores", settings=library.settings(verdict={"false_alarm_rate": 0.05}))
    names = {"part_p_value": "p_value"}
    expected = [row for row in parts.to_pylist() if row["tested"]]
    assert len(asked) == len(expected) > 70
    for found, row in zip(asked, expected, strict=True):
        assert found == {name: row[names.get(name, name)] for name in found}
    assert 0 < sum(row["is_anomalous"] for row in asked) < len(asked)
    monkeypatch.setattr("patchlake.pipeline.driver.parts._false_alarm_rate", lambda *_: 0.05)
    scope: dict[str, object] = {}
    exec(PYTHON["parts"], scope)
    assert len(scope["shown"]) == sum(row["is_anomalous"] for row in asked)


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
