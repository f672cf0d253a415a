"""How a bank is stored and searched: exactly, approximately when asked, spread if large."""

from pathlib import Path

import pytest

from jobs import fit, options, score
from pipeline.config import Settings, load_settings
from pipeline.lake.folder import Folder
from pipeline.lake.models import read_manifest
from tests.conftest import LOCAL, TINY, by_place, output_files


def scored(images: Path, root: Path, execution: options.Execution, **flags: object) -> Path:
    """Fit and score with an `index` of its own; return the scores."""
    settings = load_settings(flags=TINY | flags)
    fit.run(str(images), str(root / "model"), settings, LOCAL)
    score.run(str(images), str(root / "model"), str(root / "scores"), settings, execution)
    return root / "scores"


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_approximate_index_records_its_quality_and_scores_alike(
    kind: str, images: Path, scores: Path, tmp_path: Path
):
    found = scored(images, tmp_path, LOCAL, index={"kind": kind, "min_recall": 0.5})
    for group in read_manifest(Folder(str(tmp_path / "model"))).groups.values():
        assert group.index == kind
        assert 0.5 <= float(group.facts["recall_at_1"]) <= 1
        assert float(group.facts["queries"]) > 100
    exact = by_place(scores)
    for place, row in by_place(found).items():
        # What it finds is measured exactly, so it can only be farther.
        assert row["image_score"] >= exact[place]["image_score"]
        assert row["image_score"] == pytest.approx(exact[place]["image_score"], rel=0.2)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("method", [{"name": "dn2"}, {"name": "patchcore", "coreset_fraction": 1}])
def test_where_the_bank_is_all_there_is_each_row_is_measured_among_the_others(
    kind: str, method: dict[str, object], images: Path, tmp_path: Path
):
    index = {"kind": kind, "min_recall": 0.5, "effort": 64}
    scored(images, tmp_path, LOCAL, index=index, method=method)
    for group in read_manifest(Folder(str(tmp_path / "model"))).groups.values():
        assert float(group.facts["queries"]) == float(group.facts["bank_rows"])
        # Of so few rows nothing is missed: of itself each would be sure, and is not counted.
        assert float(group.facts["recall_at_1"]) > 0.9


def test_an_index_below_the_recall_asked_is_refused_with_the_figures(
    images: Path, tmp_path: Path, patchlake
):
    flags = ("--set", "image.resize=[64, 64]", "--set", "backbone.weights=untrained")
    flags += ("--backbone", "resnet10t.c3_in1k", "--set", "method.coreset_fraction=0.9")
    # One list of some hundred: far from all neighbours are in it.
    flags += ("--set", "index.kind=ivf", "--set", "index.effort=1", "--set", "index.min_recall=1.0")
    result = patchlake("fit", images, tmp_path, "--runner", "local", *flags)
    assert result.code == 3
    assert "index.min_recall is 1.0" in result.err
    assert "held-out patches" in result.err
    assert not (tmp_path / "model.json").exists()


def test_a_bank_in_several_files_is_the_same_bank(images: Path, scores: Path, tmp_path: Path):
    found = scored(images, tmp_path, LOCAL, index={"shard_bytes": 20_000})
    assert len(list((tmp_path / "model").glob("g=woven_cloth/*.faiss"))) == 6
    exact = by_place(scores)
    for place, row in by_place(found).items():
        assert row["anomaly_map"] == exact[place]["anomaly_map"]


@pytest.mark.parametrize("runner", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_bank_beyond_the_memory_budget_is_shared_with_equal_scores(
    runner: options.RunnerName,
    images: Path,
    scores: Path,
    tmp_path: Path,
    tiny: Settings,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
):
    if runner == "ray":
        request.getfixturevalue("local_ray")
    caplog.set_level("INFO", logger="patchlake")
    method = {"coreset_fraction": 0.1, "image_score": "reweighted", "coreset": "driver"}
    index = {"shard_bytes": 20_000}
    whole = scored(images, tmp_path / "whole", LOCAL, index=index, method=method)
    assert "spread over" not in caplog.text
    # 76 rows of 384 float32, twice, are 233 kB.
    small = load_settings(flags=TINY | {"memory_budget": 100_000, "index": index})
    model = str(tmp_path / "whole" / "model")
    execution = options.Execution(runner, None)
    score.run(str(images), model, str(tmp_path / "spread"), small, execution)
    assert "spread over 3 processes" in caplog.text
    assert output_files(tmp_path / "spread") == output_files(whole)
