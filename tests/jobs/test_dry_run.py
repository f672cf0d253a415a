"""--dry-run: the plan in numbers, a sample that is really done, and nothing written."""

import json
from pathlib import Path

import pytest

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import score
from tests.conftest import LOCAL, TINY_FLAGS


def _all_files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def half_done(images: Path, model: Path, tmp_path: Path, tiny: Settings) -> Path:
    summary = score.run(str(images), str(model), str(tmp_path), tiny, LOCAL)
    for part in summary.parts[:2]:
        (tmp_path / part).unlink()
    return tmp_path


def test_a_score_is_told_before_it_is_done(images: Path, model: Path, half_done: Path, patchlake):
    before = _all_files(half_done)
    command = ("score", images, model, half_done, *TINY_FLAGS, "--dry-run")
    result = patchlake(*command, "--json")
    assert result.code == 0
    told = json.loads(result.out)
    assert (told["verb"], told["groups"], told["images"]) == ("score", 2, 44)
    counts = ("fragments", "fragments_done", "fragments_pending")
    assert [told[name] for name in counts] == [6, 4, 2]
    # The two that were removed are the first two, of ten images each.
    assert told["images_pending"] == 20
    assert told["bytes"] == sum(path.stat().st_size for path in images.rglob("*.parquet"))
    assert told["sampled_images"] == 16
    assert sorted(told["seconds_per_image"]) == ["decode", "infer", "publish"]
    assert told["cpu_seconds"] == pytest.approx(20 * sum(told["seconds_per_image"].values()))
    # It is this process that would do it, which has been there for some time.
    assert told["place"] == "local"
    assert told["startup_seconds"] > 0
    work = told["cpu_seconds"] / told["cpus"]
    assert told["seconds"] == pytest.approx(told["startup_seconds"] + work)
    assert told["worker_bytes"] > told["driver_bytes"] > 50 * 2**20
    assert _all_files(half_done) == before
    shown = patchlake(*command).out
    assert "nothing is written" in shown
    assert "2 fragments, 20 images" in shown


def test_on_ray_it_starts_later_and_a_fragment_is_one_process(
    images: Path, model: Path, tmp_path: Path, patchlake, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    command = ("score", images, model, tmp_path / "scores", *TINY_FLAGS, "--dry-run", "--json")
    here = json.loads(patchlake(*command).out)
    there = json.loads(patchlake(*command, "--runner", "ray").out)
    assert there["startup_seconds"] > here["startup_seconds"] + 5
    # Six fragments keep six CPUs busy, however many there are.
    each = there["seconds_per_image"]["infer"]
    assert there["seconds"] - there["startup_seconds"] == pytest.approx(44 * each / 6)


def test_where_counts_its_share_of_the_bytes(images: Path, model: Path, tmp_path: Path, patchlake):
    command = ("score", images, model, tmp_path / "scores", *TINY_FLAGS, "--dry-run", "--json")
    whole = json.loads(patchlake(*command).out)
    told = json.loads(patchlake(*command, "--where", "group == 'woven_cloth'").out)
    assert (told["groups"], told["images"]) == (1, 22)
    assert 0 < told["bytes"] < whole["bytes"]
    assert not (tmp_path / "scores").exists()


def test_a_fit_is_told_before_it_is_done(images: Path, tmp_path: Path, patchlake):
    command = ("fit", images, tmp_path / "model", *TINY_FLAGS, "--dry-run", "--json")
    result = patchlake(*command)
    assert result.code == 0
    told = json.loads(result.out)
    assert sorted(told["seconds_per_image"]) == ["decode", "embed"]
    assert (told["fragments_pending"], told["images_pending"]) == (6, 44)
    assert told["stored_bytes"] > 0
    assert not (tmp_path / "model").exists()


def test_a_fit_that_is_published_has_nothing_to_do(images: Path, model: Path, patchlake):
    before = _all_files(model)
    result = patchlake("fit", images, model, *TINY_FLAGS, "--dry-run", "--json")
    told = json.loads(result.out)
    assert (told["fragments_done"], told["fragments_pending"], told["seconds"]) == (6, 0, 0)
    assert told["seconds_per_image"] == {}
    assert _all_files(model) == before


def test_json_is_for_dry_runs(images: Path, model: Path, tmp_path: Path, patchlake):
    result = patchlake("score", images, model, tmp_path, *TINY_FLAGS, "--json")
    assert (result.code, "--json goes with --dry-run" in result.err) == (2, True)
