"""`method.rotations`: training images are learned from in several positions, and stay one image."""

import logging
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import fit, ingest, score, update, withdraw
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.images.rotations import rotated
from patchlake.pipeline.model_store.models import GroupRecord, read_manifest
from patchlake.pipeline.sources.sources import Arrangement
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, by_place, output_files

COUNT = 4
GROUP = "plate"
# Inputs of 64 pixels are made of copies that were turned at this size.
SIDE = 96
# 8 x 8 patches of an image and of each copy.
PATCHES = 64
# All of them are in the bank.
WHOLE = {"coreset_fraction": 1.0}


def settings_of(rotations: int = COUNT, **changed: object) -> Settings:
    method = WHOLE | {"rotations": rotations}
    return load_settings(flags=TINY | {"method": method} | changed)


def scoring(**changed: object) -> Settings:
    """Settings that no model has fixed."""
    fixed = ("image", "backbone", "method")
    return load_settings(flags={k: v for k, v in TINY.items() if k not in fixed} | changed)


def photo(number: int) -> np.ndarray:
    """Return a brushed plate: stripes across, so that its copies look otherwise."""
    rng = np.random.default_rng(number)
    stripes = rng.integers(60, 200, (SIDE, 1, 3)) + rng.integers(-20, 20, (SIDE, SIDE, 3))
    return stripes.clip(0, 255).astype(np.uint8)


def turned(pixels: np.ndarray, number: int) -> np.ndarray:
    return rotated(pixels, (SIDE, SIDE), 360 * number / COUNT)


@dataclass(frozen=True)
class Tables:
    """The same photos twice: as they are, and with their turned copies as further images."""

    photos: Path
    # A copy's rows follow those of its image.
    by_hand: Path


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    root = tmp_path_factory.mktemp("tables")
    for number in range(12):
        copies = COUNT if number < 9 else 1
        where = "train/good" if number < 9 else "test/good"
        for copy in range(copies):
            pixels = Image.fromarray(turned(photo(number), copy))
            for name in ("by_hand", *(("photos",) if copy == 0 else ())):
                path = root / name / GROUP / where / f"{number}-{copy}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels.save(path)
    lakes = []
    for name in ("photos", "by_hand"):
        lake = root / f"{name}-lake"
        ingest.run(str(root / name), str(lake), Arrangement(), settings_of(), LOCAL)
        lakes.append(lake)
    # Shots of one part are left out together: an image and its copies.
    for path in lakes[1].rglob("*.parquet"):
        table = pq.ParquetFile(path).read()
        ids = table.column("image_id").to_pylist()
        at = table.column_names.index("part_id")
        parts = [[one.rpartition("-")[0] for one in ids]]
        field = table.schema.field("part_id")
        pq.write_table(table.set_column(at, field, parts), path)
    return Tables(*lakes)


@pytest.fixture(scope="module")
def turning(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("turning")
    fit.run(str(tables.photos), str(model), settings_of(), LOCAL)
    return model


@pytest.fixture(scope="module")
def by_hand(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slow oracle: a model of a table with each copy as an image."""
    model = tmp_path_factory.mktemp("by_hand")
    fit.run(str(tables.by_hand), str(model), settings_of(rotations=1), LOCAL)
    return model


@pytest.fixture(scope="module")
def turning_scores(tables: Tables, turning: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scores = tmp_path_factory.mktemp("scores")
    score.run(str(tables.photos), str(turning), str(scores), scoring(), LOCAL)
    return scores


def group_of(model: Path) -> GroupRecord:
    return read_manifest(Folder(str(model))).groups[GROUP]


def file_of(model: Path, role: str) -> Path:
    return model / next(file.name for file in group_of(model).files if file.role.startswith(role))


def bank_of(model: Path) -> np.ndarray:
    index = faiss.read_index(str(file_of(model, "index")))
    return index.reconstruct_n(0, index.ntotal)


def rows_of(model: Path, role: str) -> list[dict[str, object]]:
    return pq.ParquetFile(file_of(model, role)).read().to_pylist()


def sorted_rows(bank: np.ndarray) -> np.ndarray:
    return bank[np.lexsort(bank.T)]


def test_the_bank_is_that_of_a_table_with_the_copies_made_by_hand(turning, by_hand):
    found, expected = bank_of(turning), bank_of(by_hand)
    assert len(found) == 9 * COUNT * PATCHES
    np.testing.assert_array_equal(found, expected)
    # They are not the same one four times.
    assert len(np.unique(found, axis=0)) > 9 * PATCHES * 3


@pytest.mark.slow
def test_scores_are_those_of_that_table(tables, turning_scores, by_hand, tmp_path):
    score.run(str(tables.photos), str(by_hand), str(tmp_path), scoring(), LOCAL)
    found, expected = by_place(turning_scores), by_place(tmp_path)
    assert len(found) == 12
    for place, row in found.items():
        assert row["anomaly_map"] == expected[place]["anomaly_map"]
        assert row["image_score"] == expected[place]["image_score"]
        assert (row["map_height"], row["map_width"]) == (8, 8)


def test_an_image_with_its_copies_is_one_image(turning, by_hand):
    record = group_of(turning)
    assert record.images == 9
    assert record.facts["patches"] == 9 * COUNT * PATCHES
    found, expected = rows_of(turning, "images"), rows_of(by_hand, "images")
    assert [row["image_id"] for row in found] == [f"{GROUP}/train/good/{n}-0.png" for n in range(9)]
    own = {
        row["image_id"]: row
        for row in expected
        if row["image_id"] in {r["image_id"] for r in found}
    }
    for row in found:
        # It was measured as itself, and without its copies.
        same = own[row["image_id"]]
        for name in (
            "part_score",
            "part_peak",
            "brightness",
            "sharpness",
            "embedding",
            "thumbnail",
        ):
            assert row[name] == same[name]
        assert row["part_score"] > 0
        assert row["score"] == row["part_score"]


def test_provenance_says_of_which_copy_a_row_is(turning):
    told = rows_of(turning, "provenance")
    assert [row["y"] for row in told[::8]] == [*range(8 * COUNT)] * 9
    assert {row["x"] for row in told} == set(range(8))
    assert [row["image_id"] for row in told[:: COUNT * PATCHES]] == [
        f"{GROUP}/train/good/{number}-0.png" for number in range(9)
    ]


@pytest.mark.slow
def test_bytes_do_not_depend_on_fragments(tables, turning, tmp_path):
    settings = settings_of(fragment_images=2)
    found = fit.run(str(tables.photos), str(tmp_path), settings, LOCAL)
    assert found.groups[GROUP].digest == group_of(turning).digest
    assert file_of(tmp_path, "images").read_bytes() == file_of(turning, "images").read_bytes()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("one_actor")
def test_on_ray_the_same_bytes(tables, turning, turning_scores, tmp_path):
    ray = Execution("ray", None)
    found = fit.run(str(tables.photos), str(tmp_path / "model"), settings_of(), ray)
    assert found.groups == read_manifest(Folder(str(turning))).groups
    score.run(str(tables.photos), str(turning), str(tmp_path / "scores"), scoring(), ray)
    assert output_files(tmp_path / "scores") == output_files(turning_scores)


@pytest.mark.slow
def test_digests_cover_them(tables, turning, tmp_path):
    model = read_manifest(Folder(str(turning)))
    assert model.method_options["rotations"] == COUNT
    two = fit.run(str(tables.photos), str(tmp_path / "two"), settings_of(rotations=2), LOCAL)
    assert two.groups[GROUP].digest != group_of(turning).digest
    assert two.run != model.run
    # Half a turn is one of the four.
    assert len(bank_of(tmp_path / "two")) == 9 * 2 * PATCHES


@pytest.mark.slow
def test_images_join_with_their_copies_and_leave_with_them(tables, turning, tmp_path):
    model = tmp_path / "model"
    few = "image_id < 'plate/train/good/5'"
    fit.run(str(tables.photos), str(model), settings_of(), LOCAL, where=few)
    assert group_of(model).images == 5
    update.run(str(tables.photos), str(model), scoring(), LOCAL)
    assert group_of(model).images == 9
    np.testing.assert_array_equal(sorted_rows(bank_of(model)), sorted_rows(bank_of(turning)))
    withdraw.run(
        str(model), withdraw.Withdrawal((f"{GROUP}/train/good/7-0.png",)), scoring(), LOCAL
    )
    assert group_of(model).images == 8
    bank = bank_of(turning).reshape(9, -1)
    left = np.delete(bank, 7, axis=0).reshape(-1, bank_of(model).shape[1])
    np.testing.assert_array_equal(sorted_rows(bank_of(model)), sorted_rows(left))
    assert group_of(model).facts["patches"] == 8 * COUNT * PATCHES


@pytest.mark.slow
def test_a_robust_fit_and_an_approximate_index_know_of_copies(tables, tmp_path):
    settings = settings_of(robust=True, index={"kind": "hnsw", "min_recall": 0.5})
    found = fit.run(str(tables.photos), str(tmp_path / "model"), settings, LOCAL)
    assert found.groups[GROUP].images <= 9
    assert len(rows_of(tmp_path / "model", "images")) == 9
    score.run(str(tables.photos), str(tmp_path / "model"), str(tmp_path / "s"), scoring(), LOCAL)
    assert {row["status"] for row in by_place(tmp_path / "s").values()} == {"ok"}


@pytest.mark.slow
def test_a_dry_run_tells_what_copies_cost(tables, tmp_path):
    def stored(rotations: int) -> int:
        settings = settings_of(rotations)
        return fit.preview(str(tables.photos), str(tmp_path), settings, LOCAL).stored_bytes

    assert 0.9 < stored(8) / stored(1) / 8 < 1.1


@pytest.mark.slow
def test_fragments_are_bounded_by_the_copies(tables, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("patchlake.pipeline.driver.shapes._FRAGMENT_BYTES", 3 * 64 * 64 * 10)
    with caplog.at_level(logging.INFO, "patchlake"):
        found = fit.run(str(tables.photos), str(tmp_path), settings_of(), LOCAL)
    assert "a fragment has 2 images, and not fragment_images=10" in caplog.text
    assert found.settings.fragment_images == 2


@pytest.mark.slow
def test_inputs_of_the_photos_own_shape_and_tiles_are_turned_too(tables, tmp_path):
    image = {"resize": "auto", "pixels": 96 * 96, "tile": {"size": 64, "overlap": 32}}
    settings = settings_of(image=image, method={"rotations": COUNT, "coreset_fraction": 0.1})
    found = fit.run(str(tables.photos), str(tmp_path), settings, LOCAL)
    record = found.groups[GROUP]
    assert record.shape == (96, 96)
    assert record.facts["patches"] == 9 * COUNT * 12 * 12


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"image": {"resize": [64, 64], "roi": {GROUP: [[[0, 0], [1, 0], [1, 1]]]}}},
            r"image\.roi says .* method\.rotations=4 turns .*leave one of the two out",
        ),
        (
            {"columns": {"roi": "mask"}},
            r"columns\.roi says .* method\.rotations=4 turns .*leave one of the two out",
        ),
        (
            {"method": {"rotations": 2, "position_radius": 1}},
            r"position_radius=1 .* rotations=2 .*leave one of the two out",
        ),
        ({"method": {"rotations": 3}}, r"'method\.rotations'.* 1, 2, 4 or 8"),
        (
            {"method": {"name": "padim", "rotations": 8}},
            r"'method\.rotations' is unknown to method 'padim'; it is a setting of patchcore",
        ),
    ],
)
def test_what_does_not_go_together_is_said(tables, tmp_path, changed, message):
    with pytest.raises(ConfigError, match=message):
        fit.run(str(tables.photos), str(tmp_path), settings_of(**changed), LOCAL)
