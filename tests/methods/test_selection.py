"""Where a coreset is selected changes no index; where it cannot be exact, its bound is kept."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jobs import fit, options
from pipeline.cluster.local import LocalRunner
from pipeline.config import Settings, load_settings
from pipeline.lake.folder import Folder
from pipeline.lake.models import GroupRecord, read_manifest
from pipeline.maths.coreset import greedy, select
from pipeline.maths.shard import Shard
from pipeline.methods import selection
from pipeline.methods.selection import HeldRows
from tests.conftest import LOCAL, TINY


def fitted(images: Path, out: Path, execution: options.Execution, **flags: object):
    settings = load_settings(flags=TINY | {"fragment_images": 3} | flags)
    fit.run(str(images), str(out), settings, execution)
    return read_manifest(Folder(str(out))).groups


def bank_of(group: GroupRecord) -> set[tuple[str, str]]:
    return {(file.role, file.sha256) for file in group.files if "calibration" not in file.role}


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_a_distributed_coreset_is_the_drivers(workers: int, images: Path, tmp_path: Path):
    method = {"coreset_fraction": 0.1, "coreset": "driver"}
    driver = fitted(images, tmp_path / "a", LOCAL, method=method)
    method = {"coreset_fraction": 0.1, "coreset": "distributed"}

    class Several(options.Execution):
        """As many holders as a cluster would have, in this process."""

        def start(self, _workers: int | None, _preflight: object = None):  # type: ignore[override]
            return nullcontext(LocalRunner(processes=workers))

    spread = fitted(images, tmp_path / "b", Several("local", None), method=method)
    for name, group in driver.items():
        assert bank_of(group) == bank_of(spread[name])
        assert group.facts["covering_radius"] == spread[name].facts["covering_radius"]
        assert spread[name].facts["coreset"] == "distributed"


@pytest.mark.ray
def test_a_fit_on_ray_can_hold_its_rows_in_actors(images: Path, tmp_path: Path, local_ray: None):
    method = {"coreset_fraction": 0.1, "coreset": "driver"}
    driver = fitted(images, tmp_path / "a", LOCAL, method=method)
    method = {"coreset_fraction": 0.1, "coreset": "distributed"}
    ray = options.Execution("ray", None)
    spread = fitted(images, tmp_path / "b", ray, method=method, workers=2)
    assert {name: bank_of(group) for name, group in driver.items()} == {
        name: bank_of(group) for name, group in spread.items()
    }


@pytest.mark.ray
@pytest.mark.parametrize("shards", [1, 2, 7, pytest.param(16, marks=pytest.mark.slow)])
def test_actors_select_the_sequence_of_one_process(shards: int, local_ray: None):
    from pipeline.cluster.on_ray import RayRunner

    rows = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
    pieces = np.array_split(rows, shards)
    offsets = np.cumsum([0, *map(len, pieces)])
    starts = [
        partial(Shard, piece, pool=256, offset=int(offset))
        for piece, offset in zip(pieces, offsets, strict=False)
    ]
    whole = greedy(rows, 500, start=5)
    with RayRunner().members(starts) as actors:
        split = select(HeldRows(actors), rows[5], 5, 500)
    np.testing.assert_array_equal(split.indices, whole.indices)
    np.testing.assert_array_equal(split.radii, whole.radii)


class Forgetting:
    """Shards in this process, of which one is begun anew before some questions, as by a death."""

    def __init__(self, pieces: list[np.ndarray], before: dict[int, int]) -> None:
        offsets = np.cumsum([0, *map(len, pieces)])
        self.starts = [
            partial(Shard, piece, pool=64, offset=int(offset))
            for piece, offset in zip(pieces, offsets, strict=False)
        ]
        self.shards = [start() for start in self.starts]
        self.before = before
        self.asked = 0

    def ask(self, question):
        if self.asked in self.before:
            number = self.before[self.asked]
            self.shards[number] = self.starts[number]()
        self.asked += 1
        # Of a question whose answer was lost, the second counts.
        question(self.shards[0])
        return [question(shard) for shard in self.shards]


@pytest.mark.parametrize("before", [{0: 1}, {1: 0}, {2: 1, 3: 1}, {5: 0, 9: 2, 10: 1}])
def test_a_shard_that_is_started_again_changes_no_index(before: dict[int, int]):
    rows = np.random.default_rng(1).normal(size=(3000, 8)).astype(np.float32)
    # Some equal rows, so that ties are among them.
    rows[100:200] = rows[2900:3000]
    held = Forgetting(np.array_split(rows, 3), before)
    found = select(HeldRows(held), rows[7], 7, 300)
    expected = greedy(rows, 300, start=7)
    assert held.asked > max(before) + 1
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.radii, expected.radii)


def test_rows_beyond_the_memory_budget_are_selected_in_parts(
    images: Path, tmp_path: Path, tiny: Settings, caplog: pytest.LogCaptureFixture
):
    # 12 images of 8 x 8 patches of 384 float32 are 1.2 MB; a budget of 300 kB is a quarter.
    caplog.set_level("INFO", logger="patchlake")
    groups = fitted(images, tmp_path, LOCAL, memory_budget=300_000)
    assert "partitioned" in caplog.text
    for group in groups.values():
        assert group.facts["coreset"] == "partitioned"
        radius, bound = group.facts["covering_radius"], group.facts["radius_bound"]
        assert 0 < float(radius) <= float(bound)
        assert group.facts["bank_rows"] == 76


@pytest.mark.ray
def test_a_partitioned_coreset_does_not_depend_on_the_runner(
    images: Path, tmp_path: Path, local_ray: None
):
    method = {"coreset_fraction": 0.1, "coreset": "partitioned"}
    here = fitted(images, tmp_path / "a", LOCAL, method=method, memory_budget=300_000)
    ray = options.Execution("ray", None)
    there = fitted(images, tmp_path / "b", ray, method=method, memory_budget=300_000)
    assert {name: group.digest for name, group in here.items()} == {
        name: group.digest for name, group in there.items()
    }


def test_a_projected_selection_keeps_full_rows(images: Path, tmp_path: Path):
    method = {"coreset_fraction": 0.1, "projection": 16}
    groups = fitted(images, tmp_path, LOCAL, method=method)
    for group in groups.values():
        sizes = [file.bytes for file in group.files if file.role.endswith(".faiss")]
        dim = (sum(sizes)) / 4 / float(group.facts["bank_rows"])
        assert np.round(dim, -1) == 380 or dim > 380


@pytest.mark.parametrize("coreset", ["auto", "distributed", "partitioned"])
def test_a_coreset_of_all_rows_is_all_rows_and_nothing_is_selected(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coreset: str
):
    def no_greedy(*_: object, **__: object) -> None:
        raise AssertionError("quadratic in the rows")

    for name in ("greedy", "select", "partitioned"):
        monkeypatch.setattr(selection, name, no_greedy)
    method = {"coreset_fraction": 1.0, "coreset": coreset}
    for group in fitted(images, tmp_path, LOCAL, method=method).values():
        assert group.facts["bank_rows"] == group.facts["patches"] == group.images * 64
        assert (group.facts["coreset"], group.facts["covering_radius"]) == ("all", 0.0)
