"""A score table as an Arrow dataset: its discoveries, and that it stays one of Arrow's."""

import logging
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest

import patchlake
from tests.conftest import write_part


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Two groups of two nights; 60 of 900 images as bad as can be, and 60 without a p-value."""
    rng = np.random.default_rng(0)
    for number in range(4):
        ranks = rng.integers(1, 1001, 225).tolist()
        ranks[:15] = [1] * 15
        p = [rank / 1000 for rank in ranks]
        p[20:35] = [None] * 15
        write_part(
            tmp_path / "scores",
            f"dt=2026-11-2{number % 2}/g=group{number // 2}",
            p_value=p,
            image_score=(1 / np.array(ranks) + rng.random(225) * 1e-6).tolist(),
            group=[f"group{number // 2}"] * 225,
        )
    return tmp_path / "scores"


def test_discoveries_are_rows_in_the_order_of_their_p_values(scores: Path):
    dataset = patchlake.open_scores(scores)
    found = dataset.discoveries(q=0.1)
    assert set(dataset.schema.names) - set(found.column_names) == {"anomaly_map"}
    assert {"dt", "g", "version"} <= set(found.column_names)
    rows = found.to_pylist()
    assert rows == sorted(rows, key=lambda row: (row["p_value"], -row["image_score"]))
    everything = dataset.to_table().to_pylist()
    tests = sorted(row["p_value"] for row in everything if row["p_value"] is not None)
    levels = np.float32(0.1 * np.arange(1, len(tests) + 1) / len(tests))
    largest = max(p for p, level in zip(tests, levels, strict=True) if p <= level)
    expected = {row["image_id"] for row in everything if (row["p_value"] or 1) <= largest}
    assert {row["image_id"] for row in rows} == expected
    assert 60 <= len(rows) < 120


def test_what_is_filtered_out_counts_neither_as_a_test_nor_as_a_discovery(scores: Path):
    dataset = patchlake.open_scores(scores)
    night = dataset.filter(pc.field("dt") == "2026-11-21").filter(pc.field("g") == "group0")
    found = night.discoveries(columns=["image_id", "dt"])
    assert found.column_names == ["image_id", "dt"]
    assert set(found.column("dt").to_pylist()) == {"2026-11-21"}
    # By itself the file has the same.
    [file] = (scores / "version=abc/dt=2026-11-21/g=group0").iterdir()
    other = write_part(
        scores.parent / "other",
        "dt=2026-11-21/g=group0",
        **{
            name: ds.dataset(file).to_table().column(name).to_pylist()
            for name in ("image_id", "p_value", "image_score")
        },
    )
    alone = patchlake.open_scores(other.parents[3])
    assert alone.discoveries(columns=["image_id", "dt"]) == found


def test_it_stays_a_dataset_of_arrow(scores: Path):
    dataset = patchlake.open_scores(scores)
    assert isinstance(dataset, ds.FileSystemDataset)
    assert len(dataset.files) == 4
    night = duckdb.from_arrow(dataset.filter(pc.field("dt") == "2026-11-21"))
    assert night.aggregate("count(*), count(DISTINCT g)").fetchall() == [(450, 2)]


def test_none_and_no_test_at_all(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    write_part(tmp_path, "g=a", p_value=[0.01] * 9 + [0.5] * 91)
    with caplog.at_level(logging.INFO, "patchlake"):
        assert patchlake.open_scores(tmp_path).discoveries(q=0.05).num_rows == 0
    assert "9 have the smallest p_value, 0.01, which takes 20 discoveries" in caplog.text
    assert patchlake.open_scores(tmp_path).discoveries(q=0.2).num_rows == 9
    write_part(tmp_path / "none", "g=a", p_value=[None, None])
    found = patchlake.open_scores(tmp_path / "none").discoveries()
    assert (found.num_rows, "no row has a p_value" in caplog.text) == (0, True)
    assert "image_id" in found.column_names


def test_wrong_questions_are_refused(tmp_path: Path):
    write_part(tmp_path, "g=a", p_value=[0.01, 1.5])
    dataset = patchlake.open_scores(tmp_path)
    with pytest.raises(patchlake.ConfigError, match=r"q is 5; give a share above 0 and below 1"):
        dataset.discoveries(q=5)
    with pytest.raises(patchlake.ConfigError, match="there is no column 'score' among the scores"):
        dataset.discoveries(columns=["score"])
    with pytest.raises(patchlake.TableError, match=r"column p_value .* to 1\.5, and not within"):
        dataset.discoveries()


def test_only_the_column_of_p_values_is_read_of_rows_that_are_none(scores: Path):
    """Memory: no wide column of all rows."""
    asked: list[list[str]] = []
    true = ds.FileSystemDataset.to_batches

    class Watched(patchlake.open_scores(scores).__class__):
        def to_batches(self, columns, **rest):
            asked.append(columns)
            return true(self, columns=columns, **rest)

    plain = patchlake.open_scores(scores)
    watched = Watched(list(plain.get_fragments()), plain.schema, plain.format, plain.filesystem)
    assert isinstance(watched.discoveries(), pa.Table)
    assert asked == [["p_value"]]
