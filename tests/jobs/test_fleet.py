"""Many groups in one run: none stops another, and where one is fitted changes no bit of it."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import fit, fleet, ingest, score
from patchlake.pipeline.errors import DiskFull, FragmentsFailed, Stopped
from patchlake.pipeline.groups import fit as fit_stage
from patchlake.pipeline.images.synthetic import write_products
from patchlake.pipeline.methods.patchcore import PatchCore
from patchlake.pipeline.model_store import models
from patchlake.pipeline.sources.sources import Arrangement
from patchlake.pipeline.stages import infer
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, by_place, output_files

GROUPS = 6


@pytest.fixture(scope="module")
def fleet_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six groups of 4 good and 3 test images."""
    pictures = tmp_path_factory.mktemp("pictures")
    lake = tmp_path_factory.mktemp("images")
    write_products(pictures, seed=3, train=4, good=1, defects=1)
    (product, *_) = sorted(p for p in pictures.iterdir() if p.is_dir())
    stations = tmp_path_factory.mktemp("stations")
    for number in range(GROUPS):
        shutil.copytree(product, stations / f"station-{number}")
    ingest.run(str(stations), str(lake), Arrangement(), load_settings(flags=TINY), LOCAL)
    return lake


@pytest.fixture(scope="module")
def fleet_model(fleet_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model")
    fit.run(str(fleet_images), str(root), load_settings(flags=TINY), LOCAL)
    return root


def digests(model: Path) -> dict[str, str]:
    groups = models.read_manifest(Folder.at(str(model))).groups
    return {group: record.digest for group, record in groups.items()}


@pytest.mark.slow
def test_a_group_fitted_alone_in_a_worker_is_the_one_fitted_by_all(
    fleet_images: Path, fleet_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert len(digests(fleet_model)) == GROUPS
    monkeypatch.setattr(fleet, "_SMALL_BYTES", 0)
    fit.run(str(fleet_images), str(tmp_path), load_settings(flags=TINY), LOCAL)
    assert digests(tmp_path) == digests(fleet_model)


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_a_cluster_fit_the_same_models(
    fleet_images: Path, fleet_model: Path, tmp_path: Path, local_ray: None
):
    from patchlake.pipeline.driver.execution import Execution

    execution = Execution("ray", None)
    fit.run(str(fleet_images), str(tmp_path), load_settings(flags=TINY), execution)
    assert digests(tmp_path) == digests(fleet_model)


@pytest.mark.parametrize("small_bytes", [0, 2**28], ids=["large", "small"])
def test_a_group_that_cannot_be_fitted_stops_no_other(
    fleet_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_bytes: int
):
    calls = []

    def fit_group(method: PatchCore, corpus, *rest):
        calls.append(corpus.group)
        if corpus.group == "station-2":
            raise MemoryError("no memory for this one")
        return fit_stage.fit_group(method, corpus, *rest)

    monkeypatch.setattr(fleet, "_SMALL_BYTES", small_bytes)
    monkeypatch.setattr(fleet, "fit_group", fit_group)
    settings = load_settings(flags=TINY)
    with pytest.raises(FragmentsFailed, match=r"1 of 6 groups .* MemoryError: no memory for this"):
        fit.run(str(fleet_images), str(tmp_path), settings, LOCAL)
    assert len(calls) == GROUPS
    assert sorted(digests(tmp_path)) == [f"station-{n}" for n in (0, 1, 3, 4, 5)]
    # And again, once nothing is in its way: only the group that failed is missing.
    monkeypatch.undo()
    fit.run(str(fleet_images), str(tmp_path), settings, LOCAL)
    assert len(digests(tmp_path)) == GROUPS


@pytest.mark.parametrize("small_bytes", [0, 2**28], ids=["large", "small"])
@pytest.mark.parametrize("error", [Stopped("stopped by SIGTERM"), DiskFull("no space")])
def test_a_stop_and_a_full_disk_are_no_groups_failure(
    fleet_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_bytes: int,
    error: BaseException,
):
    def fit_group(*_: object):
        raise error

    monkeypatch.setattr(fleet, "_SMALL_BYTES", small_bytes)
    monkeypatch.setattr(fleet, "fit_group", fit_group)
    with pytest.raises(type(error), match=str(error)):
        fit.run(str(fleet_images), str(tmp_path), load_settings(flags=TINY), LOCAL)


def test_models_are_loaded_once_where_groups_are_mixed_in_the_files(
    fleet_images: Path, fleet_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    tables = [pq.ParquetFile(file).read() for file in sorted(fleet_images.rglob("*.parquet"))]
    for number in range(3):
        rows = pa.concat_tables([table.slice(number, 2) for table in tables])
        pq.write_table(rows, mixed / f"{number}.parquet")
    loads = []
    load_group = infer.Infer._load_group

    def counted(self: infer.Infer, group: str):
        loads.append(group)
        return load_group(self, group)

    monkeypatch.setattr(infer.Infer, "_load_group", counted)
    tight = load_settings(flags=TINY | {"memory_budget": 2**20})
    score.run(str(mixed), str(fleet_model), str(tmp_path / "tight"), tight, LOCAL)
    assert sorted(loads) == sorted(digests(fleet_model))
    wide = load_settings(flags=TINY)
    score.run(str(mixed), str(fleet_model), str(tmp_path / "wide"), wide, LOCAL)
    assert len(by_place(tmp_path / "wide")) == 3 * 2 * GROUPS
    assert output_files(tmp_path / "wide") == output_files(tmp_path / "tight")
