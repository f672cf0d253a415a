"""Where a job runs that is not told where."""

import shutil
from pathlib import Path

import pytest

from patchlake.pipeline.cluster.local import LocalRunner
from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import score
from patchlake.pipeline.driver.execution import Execution
from tests.conftest import output_files


@pytest.mark.parametrize(
    ("asked", "images", "runs"),
    [
        (Execution("auto"), 5000, "local"),
        (Execution("auto"), 5001, "ray"),
        # Who names a cluster means it.
        (Execution("auto", "10.0.0.1:6379"), 1, "ray"),
        (Execution("ray"), 1, "ray"),
        (Execution("local"), 1_000_000, "local"),
        # Nothing to do needs no Ray, whoever asks for it.
        (Execution("ray", "10.0.0.1:6379"), 0, "local"),
    ],
)
def test_a_job_runs_where_it_is_faster(asked, images, runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert asked.chosen(images).runner == runs
    assert asked.chosen(images).address == asked.address


@pytest.mark.parametrize(
    ("asked", "images", "says"),
    [
        (Execution("auto"), 5, "runs in this process"),
        (Execution("auto"), 5001, "runs on a Ray that is started here"),
        (Execution("auto", "10.0.0.1:6379"), 5, "runs on the Ray cluster that is named"),
    ],
)
def test_what_was_chosen_is_said(asked, images, says, monkeypatch, caplog):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with caplog.at_level("INFO", logger="patchlake"):
        asked.chosen(images)
    assert says in caplog.text


@pytest.mark.parametrize(
    ("kernels", "warns"),
    [
        ({}, False),
        ({"a": ["Zen"], "b": ["Zen"]}, False),
        ({"a": ["Haswell"], "b": ["SkylakeX", "Zen"]}, True),
    ],
)
def test_nodes_that_run_different_kernels_are_named(kernels, warns, monkeypatch, caplog):
    monkeypatch.setattr(LocalRunner, "everywhere", lambda *_: kernels)
    with Execution("local").start(None):
        pass
    assert ("a: Haswell; b: SkylakeX, Zen" in caplog.text) is warns


def test_nothing_starts_where_nobody_has_chosen():
    with pytest.raises(ValueError, match="not chosen"), Execution("auto").start(None):
        pass


def test_a_submitted_job_runs_on_its_cluster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert Execution("auto").chosen(1).runner == "ray"
    assert Execution("local").chosen(1).runner == "local"


def test_a_rerun_with_nothing_to_do_starts_no_ray_and_says_so(
    images: Path,
    model: Path,
    scores: Path,
    tiny: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    done = tmp_path / "scores"
    shutil.copytree(scores, done)

    def started(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("patchlake.pipeline.cluster.connection.connected", started)
    with caplog.at_level("INFO", logger="patchlake"):
        score.run(str(images), str(model), str(done), tiny, Execution("ray"))
    assert "all 44 images are done" in caplog.text
    assert output_files(done) == output_files(scores)
