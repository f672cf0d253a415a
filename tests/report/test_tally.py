"""What is counted in one reading, against pandas on all the rows."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from patchlake.pipeline.driver.dataset import open_table
from patchlake.pipeline.report import tally as counting
from patchlake.pipeline.report.overview import SHARES, Overview
from patchlake.pipeline.report.tally import SIDE, Tally, read_tally
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import write_part

STATUSES = ["ok", "ok", "ok", "ok", "unreadable", "too_large", "no_model"]


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three nights of three groups, of every status, with and without verdicts and regions."""
    root, rng = tmp_path_factory.mktemp("scores"), np.random.default_rng(5)
    for night in ("2026-11-20", "2026-11-21", "2026-11-22"):
        for group in ("plate", "tile", "raw"):
            _part(root, night, group, rng)
    return root


def _part(root: Path, night: str, group: str, rng: np.random.Generator) -> None:
    rows = 60
    status = rng.choice(STATUSES, rows)
    score = [float(rng.normal(10, 2)) if one == "ok" else None for one in status]
    threshold = {"plate": 12.0, "tile": 11.0, "raw": None}[group]
    verdict = [None if s is None or threshold is None else s > threshold for s in score]
    regions = [
        [_region(rng) for _ in range(rng.integers(1, 4))] if one else [] if one is False else None
        for one in verdict
    ]
    write_part(
        *(root, f"dt={night}/g={group}"),
        group=[group] * rows,
        status=status.tolist(),
        error=[None if one == "ok" else "truncated" for one in status],
        image_score=score,
        threshold=[threshold if s is not None else None for s in score],
        is_anomalous=verdict,
        p_value=[None if one is None else 0.004 if one else 0.5 for one in verdict],
        regions=regions,
        width=[80 if s is not None else None for s in score],
        height=[40 if s is not None else None for s in score],
        scored_at=[datetime(2026, 11, 23, tzinfo=UTC)] * rows,
    )


def _region(rng: np.random.Generator) -> dict[str, object]:
    x, y = int(rng.integers(0, 70)), int(rng.integers(0, 30))
    return {
        "x": x,
        "y": y,
        "width": 10,
        "height": 10,
        "area": 100,
        "peak": 3.0,
        "centre_x": x + 4.0,
        "centre_y": y + 6.0,
    }


@pytest.fixture(scope="module")
def rows(scores: Path) -> pd.DataFrame:
    return open_table(Folder.at(str(scores)), None).to_table().to_pandas()


@pytest.fixture
def tally(scores: Path, monkeypatch: pytest.MonkeyPatch) -> Tally:
    # In many chunks, so that they have to merge.
    monkeypatch.setattr(counting, "_ROWS_AT_ONCE", 70)
    return read_tally(open_table(Folder.at(str(scores)), None), "dt")[0]


def test_the_counts_are_those_of_pandas(tally: Tally, rows: pd.DataFrame) -> None:
    assert len(tally.cells) == 9
    for (group, night), some in rows.groupby(["group", "dt"]):
        cell = tally.cells[tally.groups[group], tally.nights[night]]
        failed = ~some.status.isin(["ok", "no_model"])
        assert cell.images == len(some)
        assert cell.unreadable == failed.sum()
        assert cell.no_model == (some.status == "no_model").sum()
        assert cell.scored == some.image_score.notna().sum()
        assert cell.judged == some.is_anomalous.notna().sum()
        assert cell.alarms == some.is_anomalous.eq(True).sum()
    for (group, status), some in rows[rows.status != "ok"].groupby(["group", "status"]):
        assert tally.statuses[tally.groups[group], status] == len(some)


def test_quantiles_are_those_of_pandas(tally: Tally, rows: pd.DataFrame) -> None:
    overview = Overview.of(tally, {}, 0.01, None)
    for row in overview.rows([(g, n) for g in tally.groups for n in tally.nights]):
        some = rows[(rows.group == row.group) & (rows.dt == row.night)].image_score.dropna()
        exact = np.quantile(some, SHARES, method="inverted_cdf")
        np.testing.assert_allclose(row.quantiles, exact, rtol=1.001e-3)


def test_defects_are_counted_where_their_centres_are(tally: Tally, rows: pd.DataFrame) -> None:
    for group, place in tally.groups.items():
        expected = np.zeros((SIDE, SIDE), int)
        for one in rows[rows.group == group].regions.dropna():
            for region in one:
                down, across = region["centre_y"] / 40, region["centre_x"] / 80
                expected[int(down * SIDE), int(across * SIDE)] += 1
        assert tally.spots_of(place).tolist() == expected.tolist()
    assert tally.spots_of(tally.groups["tile"]).sum() > 0
    assert tally.shape_of(tally.groups["tile"]) == (80, 40)


def test_the_worst_and_the_nearest_are_those_of_pandas(tally: Tally, rows: pd.DataFrame) -> None:
    rows = rows.assign(excess=rows.image_score / rows.threshold)
    night = rows[rows.dt == "2026-11-22"]
    place = tally.nights["2026-11-22"]
    alarms = night[night.is_anomalous.eq(True)].sort_values("excess", ascending=False)
    found = [row for row in tally.worst.of_night(place) if row.group != tally.groups["raw"]]
    identities = list(zip(alarms.source_path, alarms.source_row, strict=True))
    assert [(row.source_path, row.source_row) for row in found] == identities[: len(found)]
    assert len(found) == len(alarms)
    # Without a verdict those that score highest.
    raw = night[(night.group == "raw") & night.image_score.notna()].image_score.nlargest(12)
    ranks = [-row.rank for row in tally.worst.of_night(place) if row.group == tally.groups["raw"]]
    np.testing.assert_allclose(ranks[:12], raw)
    passed = night[night.is_anomalous.eq(False)]
    nearest = sorted(passed.excess, reverse=True)[: len(tally.misses.of_night(place))]
    np.testing.assert_allclose([-row.rank for row in tally.misses.of_night(place)], nearest)


def test_the_promise_is_the_rate_or_what_the_p_values_allow(tally: Tally) -> None:
    assert Overview.of(tally, {}, 0.01, None).promised("tile") == 0.01
    assert Overview.of(tally, {}, 0.001, None).promised("tile") == pytest.approx(0.004)
    assert Overview.of(tally, {}, None, None).promised("tile") is None


def test_what_matters_most_is_first(tally: Tally) -> None:
    overview = Overview.of(tally, {}, 0.01, None)
    assert overview.night == "2026-11-22"
    first = overview.of_night()
    assert [row.is_above for row in first] == sorted((row.is_above for row in first), reverse=True)
    assert overview.groups[-1] == "raw"
