"""How a bank is stored and searched: exactly, approximately when asked, spread if large."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import fit, score
from patchlake.pipeline.driver.execution import Execution, RunnerName
from patchlake.pipeline.groups.banks import searched_bytes
from patchlake.pipeline.groups.loading import load_bank_rows
from patchlake.pipeline.groups.member import Member
from patchlake.pipeline.index.approximate import ApproximateSearch, measure
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.shards import Kind, load_shards
from patchlake.pipeline.methods import build
from patchlake.pipeline.model_store.models import GroupRecord, read_manifest
from patchlake.pipeline.stages.judges import Judges
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, TINY_FLAGS, by_place, output_files


def scored(images: Path, root: Path, execution: Execution, **flags: object) -> Path:
    """Fit and score with an `index` of its own; return the scores."""
    settings = load_settings(flags=TINY | flags)
    fit.run(str(images), str(root / "model"), settings, LOCAL)
    score.run(str(images), str(root / "model"), str(root / "scores"), settings, execution)
    return root / "scores"


def groups_of(model: Path) -> dict[str, GroupRecord]:
    return read_manifest(Folder(str(model))).groups


# Half of all patches, searched so carelessly that the nearest is missed now and then.
HALF = {"coreset_fraction": 0.5}
CARELESS = {"effort": 1, "min_recall": 0.0}


def origin_of(model: Path, group: GroupRecord) -> list[tuple[str, int, int]]:
    """Image and place of each row of a bank."""
    name = next(file.name for file in group.files if file.role == "provenance.parquet")
    rows = pq.read_table(model / name, partitioning=None).to_pylist()
    return [(row["image_id"], row["y"], row["x"]) for row in rows]


@dataclass(frozen=True)
class Patches:
    """All patches of a group's training images, and where each is."""

    rows: np.ndarray
    origin: list[tuple[str, int, int]]

    def beside(self, bank: list[tuple[str, int, int]]) -> np.ndarray:
        """The patches that are not in a bank."""
        taken = set(bank)
        return self.rows[[place not in taken for place in self.origin]]


@pytest.fixture(scope="module")
def patches(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Patches]:
    """Of each group: the bank of a model that keeps all of them."""
    model = tmp_path_factory.mktemp("patches")
    settings = load_settings(flags=TINY | {"method": {"coreset_fraction": 1.0}})
    fit.run(str(images), str(model), settings, LOCAL)
    found = {}
    for name, group in groups_of(model).items():
        rows = load_bank_rows(Folder(str(model)), group)
        assert rows is not None
        found[name] = Patches(rows, origin_of(model, group))
    return found


@pytest.fixture(scope="module")
def half_exact(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of an exact search in half of all patches."""
    return scored(images, tmp_path_factory.mktemp("half"), LOCAL, method=HALF)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_the_quality_in_the_model_is_that_of_its_index_on_the_patches_that_are_not_in_it(
    kind: Kind, images: Path, patches: dict[str, Patches], half_exact: Path, tmp_path: Path
):
    scores = scored(images, tmp_path, LOCAL, index=CARELESS | {"kind": kind}, method=HALF)
    folder = Folder(str(tmp_path / "model"))
    for name, group in groups_of(tmp_path / "model").items():
        files = {f.role: folder.read(f.name) for f in group.files if f.role.endswith(".faiss")}
        bank = load_bank_rows(folder, group)
        assert bank is not None
        held_out = patches[name].beside(origin_of(tmp_path / "model", group))
        search = ApproximateSearch.over(load_shards(files, kind=kind))

        anew = measure(search, ExactSearch.over(bank), held_out)

        assert asdict(anew) == {figure: group.facts[figure] for figure in asdict(anew)}
        assert (anew.queries, len(bank)) == (384, 384)
        # Something is missed: where nothing is, the figures would be those of any queries.
        assert 0.5 < anew.recall_at_1 < 1
        assert 0 < anew.mean_score_error_relative < anew.max_score_error_relative < 1
    exact, found = by_place(half_exact), by_place(scores)
    assert all(found[place]["image_score"] >= row["image_score"] for place, row in exact.items())
    assert any(found[place]["anomaly_map"] != row["anomaly_map"] for place, row in exact.items())


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_approximate_index_records_its_quality_and_scores_alike(
    kind: str, images: Path, scores: Path, tmp_path: Path
):
    found = scored(images, tmp_path, LOCAL, index={"kind": kind, "min_recall": 0.5})
    for group in groups_of(tmp_path / "model").values():
        assert group.index == kind
        assert group.facts["queries"] == 12 * 64 - 76
    exact = by_place(scores)
    for place, row in by_place(found).items():
        # What it finds is measured exactly, so it can only be farther.
        assert row["image_score"] >= exact[place]["image_score"]
        assert row["image_score"] == pytest.approx(exact[place]["image_score"], rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
@pytest.mark.parametrize("method", [{"name": "dn2"}, {"name": "patchcore", "coreset_fraction": 1}])
def test_where_the_bank_is_all_there_is_each_row_is_measured_among_the_others(
    kind: str, method: dict[str, object], images: Path, tmp_path: Path
):
    index = {"kind": kind, "min_recall": 0.5, "effort": 64}
    scored(images, tmp_path, LOCAL, index=index, method=method)
    for group in groups_of(tmp_path / "model").values():
        assert float(group.facts["queries"]) == float(group.facts["bank_rows"])
        # Of so few rows nothing is missed: of itself each would be sure, and is not counted.
        assert float(group.facts["recall_at_1"]) > 0.9


def test_an_index_below_the_recall_asked_is_refused_with_the_figures(
    images: Path, tmp_path: Path, patchlake
):
    # One list of nine: far from all neighbours are in it.
    index = {"kind": "ivf", **CARELESS}
    settings = load_settings(flags=TINY | {"index": index, "method": HALF})
    fit.run(str(images), str(tmp_path / "kept"), settings, LOCAL)
    flags = ("--set", "method.coreset_fraction=0.5", "--set", "index.kind=ivf")
    flags += ("--set", "index.effort=1", "--set", "index.min_recall=0.99")
    result = patchlake("fit", images, tmp_path / "refused", *TINY_FLAGS, *flags)
    assert result.code == 3
    told = " ".join(result.err.split())
    assert "index.min_recall is 0.99" in told
    for group in groups_of(tmp_path / "kept").values():
        recall, error = group.facts["recall_at_1"], group.facts["max_score_error_relative"]
        assert f"of 384 rows for {recall:.4f} of 384 held-out patches" in told
        assert f"scores would be too high by {error:.1%} at worst" in told
    assert not (tmp_path / "refused" / "model.json").exists()


def test_a_bank_in_several_files_is_the_same_bank(images: Path, scores: Path, tmp_path: Path):
    found = scored(images, tmp_path, LOCAL, index={"shard_bytes": 20_000})
    assert len(list((tmp_path / "model").glob("g=woven_cloth/*.faiss"))) == 6
    exact = by_place(scores)
    for place, row in by_place(found).items():
        assert row["anomaly_map"] == exact[place]["anomaly_map"]


@pytest.mark.parametrize(
    "runner", ["local", pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.soak])]
)
def test_a_bank_beyond_the_memory_budget_is_shared_with_equal_scores(
    runner: RunnerName,
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
    assert "split over" not in caplog.text
    # 76 rows of 384 float32, twice, are 233 kB.
    small = load_settings(flags=TINY | {"memory_budget": 100_000, "index": index})
    model = str(tmp_path / "whole" / "model")
    execution = Execution(runner, None)
    score.run(str(images), model, str(tmp_path / "spread"), small, execution)
    assert "split over 3 processes" in caplog.text
    assert output_files(tmp_path / "spread") == output_files(whole)


@dataclass
class Held:
    """A bank that others hold, or have lost."""

    dense: ExactSearch | None

    def get(self) -> ExactSearch | None:
        return self.dense


def test_a_worker_searches_the_bank_that_is_held_for_it_and_loads_one_that_is_lost(model: Path):
    group, folder = "brushed_plate", Folder(str(model))
    manifest = read_manifest(folder)
    record = manifest.groups[group]
    stored = load_bank_rows(folder, record)
    assert stored is not None
    others = ExactSearch.over(stored + np.float32(1))
    alone = Member(folder, manifest, "untrained")
    for held, rows in ((Held(others), others.bank), (Held(None), stored)):
        member = replace(alone, banks={group: held})
        judges = Judges.loaded([member], [build(manifest.method, {})], group, 1)
        (found,) = judges.detectors
        np.testing.assert_array_equal(found.search.vectors(np.arange(len(rows))), rows)
    # Its rows and their centred copy are not the worker's; what prunes the search is.
    assert alone.own_bytes(group) - member.own_bytes(group) == searched_bytes(record) // 2
    assert searched_bytes(record) > 2 * stored.nbytes


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_banks_that_are_held_once_a_node_score_the_same(
    images: Path,
    model: Path,
    scores: Path,
    tmp_path: Path,
    tiny: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    caplog.set_level("INFO", logger="patchlake")
    bank = searched_bytes(read_manifest(Folder(str(model))).groups["brushed_plate"])
    monkeypatch.setattr("patchlake.pipeline.driver.members._LARGE", bank)
    # Of two banks of equal size, the budget has room for one.
    small = load_settings(flags=TINY | {"memory_budget": bank + bank // 2, "workers": 2})
    ray = Execution("ray", None)
    score.run(str(images), str(model), str(tmp_path / "scores"), small, ray)
    assert [m for m in caplog.messages if "once on each node" in m] == [
        f"the bank of group 'brushed_plate', {bank / 2**20:.3g} MiB, is in memory once on each node"
    ]
    assert output_files(tmp_path / "scores") == output_files(scores)
    # One process has nobody to share with.
    caplog.clear()
    score.run(str(images), str(model), str(tmp_path / "local"), small, LOCAL)
    assert "once on each node" not in caplog.text
    assert output_files(tmp_path / "local") == output_files(scores)
