"""Where a coreset is selected changes no index; where it cannot be exact, its bound is kept."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from patchlake.pipeline.cluster.local import LocalRunner
from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import fit
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.maths.coreset import greedy, select
from patchlake.pipeline.maths.shard import Shard
from patchlake.pipeline.methods.shared import selection
from patchlake.pipeline.methods.shared.selection import HeldRows, Selector
from patchlake.pipeline.model_store.models import GroupRecord, read_manifest
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, soak
from tests.methods.corpus import FakeCorpus, split


def fitted(images: Path, out: Path, execution: Execution, **flags: object):
    settings = load_settings(flags=TINY | {"fragment_images": 3} | flags)
    fit.run(str(images), str(out), settings, execution)
    return read_manifest(Folder(str(out))).groups


def bank_of(group: GroupRecord) -> set[tuple[str, str]]:
    return {(file.role, file.sha256) for file in group.files if "calibration" not in file.role}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_a_distributed_coreset_is_the_drivers(workers: int, images: Path, tmp_path: Path):
    method = {"coreset_fraction": 0.1, "coreset": "driver"}
    driver = fitted(images, tmp_path / "a", LOCAL, method=method)
    method = {"coreset_fraction": 0.1, "coreset": "distributed"}

    class Several(Execution):
        """As many holders as a cluster would have, in this process."""

        def start(self, _workers: int | None, _preflight: object = None):  # type: ignore[override]
            return nullcontext(LocalRunner(processes=workers))

    spread = fitted(images, tmp_path / "b", Several("local", None), method=method)
    for name, group in driver.items():
        assert bank_of(group) == bank_of(spread[name])
        assert group.facts["covering_radius"] == spread[name].facts["covering_radius"]
        assert spread[name].facts["coreset"] == "distributed"


@pytest.mark.ray
@pytest.mark.slow
def test_a_fit_on_ray_can_hold_its_rows_in_actors(images: Path, tmp_path: Path, local_ray: None):
    method = {"coreset_fraction": 0.1, "coreset": "driver"}
    driver = fitted(images, tmp_path / "a", LOCAL, method=method)
    method = {"coreset_fraction": 0.1, "coreset": "distributed"}
    ray = Execution("ray", None)
    spread = fitted(images, tmp_path / "b", ray, method=method, workers=2)
    assert {name: bank_of(group) for name, group in driver.items()} == {
        name: bank_of(group) for name, group in spread.items()
    }


@pytest.mark.ray
@pytest.mark.parametrize("shards", [2, pytest.param(7, marks=pytest.mark.slow), soak(1), soak(16)])
def test_actors_select_the_sequence_of_one_process(shards: int, local_ray: None):
    from patchlake.pipeline.cluster.on_ray import RayRunner

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


def corpus_of(memory_budget: int, dim: int = 16) -> FakeCorpus:
    """160 patches of 10 images in 5 fragments, and 4 processes."""
    patches = np.random.default_rng(0).normal(size=(10, 4, 4, dim)).astype(np.float32)
    fragments = split({"patches": patches}, 2, 2, 2, 2)
    return FakeCorpus(fragments, processes=4, memory_budget=memory_budget)


# 160 patches of 16 float32, and 12 bytes for each, are 12,160 bytes: the quarter is 3,040. In 4
# dimensions they are 4,480; workers load what is stored nevertheless, and project it then.
@pytest.mark.parametrize(
    ("projection", "budget", "chosen"),
    [
        (None, 12_160, "driver"),
        (None, 12_159, "distributed"),
        (None, 3_040, "distributed"),
        (None, 3_039, "partitioned"),
        (4, 4_480, "driver"),
        (4, 4_479, "distributed"),
        (4, 3_040, "distributed"),
        (4, 3_039, "partitioned"),
    ],
)
def test_auto_selects_where_the_rows_fit(
    projection: int | None, budget: int, chosen: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="patchlake")
    corpus = corpus_of(budget)
    selector = Selector("auto", projection, seed=3)
    exact = Selector("driver", projection, seed=3)
    rows = np.zeros((1, 16), np.float32)

    selected, extended = selector.select(corpus, 12), selector.extend(corpus, rows, 12)

    assert (selected.facts["coreset"], extended.facts["coreset"]) == (chosen, chosen)
    dim = projection or 16
    for record in caplog.records:
        count, dims, needed, given, processes, *_ = record.args
        assert (count, dims, processes) == (160, dim, 4)
        assert (needed * 2**30, given * 2**30) == (160 * (dim * 4 + 12), budget)
        assert record.getMessage().endswith(f"for each of 4 processes; strategy {chosen}")
    assert len(caplog.records) == 2
    if chosen != "partitioned":
        np.testing.assert_array_equal(selected.indices, exact.select(corpus, 12).indices)
        np.testing.assert_array_equal(extended.indices, exact.extend(corpus, rows, 12).indices)


def test_the_estimate_is_logged_in_gib(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", logger="patchlake")
    # 20 x 32 x 32 patches of 1024 float32 and 12 bytes: 84 MB.
    patches = np.zeros((20, 32, 32, 1024), np.float32)
    for strategy in ("auto", "driver"):
        corpus = FakeCorpus([{"patches": patches}], processes=4, memory_budget=2**28)
        assert len(Selector(strategy, None, seed=0).select(corpus, 2).indices) == 1
    sizes = "20480 patches of 1024 dimensions are 0.08 GiB, memory_budget is 0.25 GiB"
    assert [record.getMessage() for record in caplog.records] == [
        f"coreset: {sizes} for each of 4 processes; strategy driver",
        f"coreset: {sizes} for each of 4 processes; strategy driver (as set)",
    ]


@dataclass(frozen=True)
class WatchedCorpus(FakeCorpus):
    """A corpus, and the bytes of what each fragment gives to the union."""

    given: list[int] = field(default_factory=list)

    def each(self, work):
        for found in super().each(work):
            # The second time around it is a fragment's radius.
            if not isinstance(found, float):
                self.given.append(found.rows.nbytes)
            yield found


@pytest.mark.parametrize("projection", [None, 4])
@pytest.mark.parametrize("budget", [3000, 1500])
def test_the_union_of_local_choices_fills_half_the_memory_budget(
    projection: int | None, budget: int
):
    corpus = WatchedCorpus(corpus_of(budget).fragments, memory_budget=budget)
    Selector("partitioned", projection, seed=0).select(corpus, 4)
    row = 4 * (projection or 16)
    # A fragment gives a part of a row more, so that it is a whole one.
    assert budget / 2 <= sum(corpus.given) < budget / 2 + len(corpus.given) * row


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
@pytest.mark.slow
def test_a_partitioned_coreset_does_not_depend_on_the_runner(
    images: Path, tmp_path: Path, local_ray: None
):
    method = {"coreset_fraction": 0.1, "coreset": "partitioned"}
    here = fitted(images, tmp_path / "a", LOCAL, method=method, memory_budget=300_000)
    ray = Execution("ray", None)
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
