"""`image.tile`: the network sees tiles, and everything else one photo."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patchlake
from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import evaluate, fit, ingest, score, update
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.model_store.models import read_manifest
from patchlake.pipeline.sources.sources import Arrangement
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, by_place, output_files

# (width, height) of the photos: nine tiles across and down overlap where the defects are.
SIZE = (208, 160)
TILE = {"size": 80, "overlap": 32}
# Corners of defects of 12 pixels: on a seam of two tiles, on one of four, and in a corner.
DEFECTS = ((66, 20), (66, 58), (0, 0))


def settings_of(**image: object) -> Settings:
    return load_settings(flags=TINY | {"image": {"resize": "auto", "tile": TILE} | image})


def scoring(**changed: object) -> Settings:
    """Settings that no model has fixed."""
    fixed = ("image", "backbone", "method")
    return load_settings(flags={k: v for k, v in TINY.items() if k not in fixed} | changed)


def pixels_of(number: int) -> np.ndarray:
    """A texture with a little noise, so that no photo is another."""
    unit = np.random.default_rng(0).integers(90, 160, (16, 16), dtype=np.uint8)
    noise = np.random.default_rng(number).integers(0, 6, SIZE[::-1], dtype=np.uint8)
    return np.tile(unit, (SIZE[1] // 16, SIZE[0] // 16)) + noise


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos") / "p"
    for number in range(8):
        path = root / "cloth" / "train" / "good" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_of(number)).save(path)
    for number, (x, y) in enumerate(DEFECTS, start=20):
        for kind, part in (("good", None), ("spot", "mask")):
            pixels, mask = pixels_of(number + 10 * (part is None)), np.zeros(SIZE[::-1], np.uint8)
            if part:
                pixels[y : y + 12, x : x + 12] = 255
                mask[y : y + 12, x : x + 12] = 255
                path = root / "cloth" / "ground_truth" / kind / f"{number}_mask.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path)
            path = root / "cloth" / "test" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


@pytest.fixture(scope="module")
def lake(photos: Path) -> Path:
    target = photos.parent / "lake"
    ingest.run(str(photos), str(target), Arrangement(), settings_of(), LOCAL)
    return target


@pytest.fixture(scope="module")
def tiled(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "tiled"
    fit.run(str(lake), str(target), settings_of(), LOCAL)
    return target


@pytest.fixture(scope="module")
def scored(lake: Path, tiled: Path) -> Path:
    target = tiled.parent / "scores"
    settings = scoring(verdict={"false_alarm_rate": 0.3})
    score.run(str(lake), str(tiled), str(target), settings, LOCAL)
    return target


def test_a_model_keeps_its_tiles_and_the_native_size(tiled):
    manifest = read_manifest(Folder(str(tiled)))
    assert manifest.geometry.tile == settings_of().image.tile
    assert manifest.geometry.pixels == 2**25
    assert manifest.shapes == {"cloth": SIZE[::-1]}


def test_maps_and_regions_are_of_the_whole_photo(lake, scored):
    rows = {row["image_id"]: row for row in by_place(scored).values()}
    for row in rows.values():
        assert (row["map_height"], row["map_width"]) == (SIZE[1] // 8, SIZE[0] // 8)
    for number, (x, y) in enumerate(DEFECTS, start=20):
        row = rows[f"cloth/test/spot/{number}.png"]
        grid = np.reshape(row["anomaly_map"], (row["map_height"], row["map_width"]))
        assert row["image_score"] == grid.max()
        top, left = np.unravel_index(grid.argmax(), grid.shape)
        assert abs(8 * top + 4 - (y + 6)) <= 16
        assert abs(8 * left + 4 - (x + 6)) <= 16
        # Once, and not once for each tile that shows it.
        (found,) = row["regions"]
        assert found["x"] <= x + 6 <= found["x"] + found["width"]
        assert found["y"] <= y + 6 <= found["y"] + found["height"]
    (metrics,) = evaluate.run(str(lake), str(scored)).values()
    assert metrics["image_auroc"] == 1
    assert metrics["pixel_auroc"] > 0.95


@pytest.mark.slow
def test_tiles_are_in_the_digest_and_change_scores(lake, tiled, tmp_path):
    plain = load_settings(flags=TINY | {"image": {"resize": "auto", "pixels": SIZE[0] * SIZE[1]}})
    found = fit.run(str(lake), str(tmp_path / "m"), plain, LOCAL)
    assert found.shapes == {"cloth": SIZE[::-1]}
    assert found.groups["cloth"].digest != read_manifest(Folder(str(tiled))).groups["cloth"].digest


@pytest.mark.slow
def test_a_pair_is_cut_as_a_shape_of_the_photo_s_own(lake, tiled, tmp_path):
    pair = settings_of(resize=list(SIZE[::-1]))
    found = fit.run(str(lake), str(tmp_path / "m"), pair, LOCAL)
    assert found.shapes == {}
    assert found.groups["cloth"].digest == read_manifest(Folder(str(tiled))).groups["cloth"].digest


@pytest.mark.slow
@pytest.mark.ray
def test_both_runners_give_the_same_bytes(lake, tiled, scored, one_actor, tmp_path):
    on_ray = Execution("ray", "local")
    again = fit.run(str(lake), str(tmp_path / "m"), settings_of(), on_ray)
    assert again.groups == read_manifest(Folder(str(tiled))).groups
    settings = scoring(verdict={"false_alarm_rate": 0.3})
    score.run(str(lake), str(tiled), str(tmp_path / "s"), settings, on_ray)
    assert output_files(tmp_path / "s") == output_files(scored)


@pytest.mark.slow
def test_a_model_in_memory_and_an_update_cut_as_the_fit_did(photos, lake, scored, tmp_path):
    fit.run(str(lake), str(tmp_path / "m"), settings_of(), LOCAL)
    detector = patchlake.load(str(tmp_path / "m"))
    (found,) = detector.score([photos / "cloth" / "test" / "spot" / "21.png"])
    rows = {row["image_id"]: row for row in by_place(scored).values()}
    assert found.image_score == rows["cloth/test/spot/21.png"]["image_score"]
    more = tmp_path / "more" / "cloth" / "train" / "good" / "99.png"
    more.parent.mkdir(parents=True)
    Image.fromarray(pixels_of(99)).save(more)
    ingest.run(str(tmp_path / "more"), str(tmp_path / "l"), Arrangement(), settings_of(), LOCAL)
    joined = update.run(str(tmp_path / "l"), str(tmp_path / "m"), scoring(), LOCAL)
    assert joined.groups["cloth"].images == 9
    assert joined.geometry.tile == settings_of().image.tile


def test_a_score_that_asks_for_other_tiles_is_refused(lake, tiled, tmp_path):
    other = scoring(image={"resize": "auto", "tile": {"size": 96, "overlap": 32}})
    with pytest.raises(ConfigError, match=r"image\.tile is .*96.*fitted with .*80"):
        score.run(str(lake), str(tiled), str(tmp_path / "s"), other, LOCAL)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"tile": {"size": 64, "overlap": 40}}, "}: 40 is more than half of a tile's 64 pixels"),
        ({"tile": {"size": 64}}, "'image.tile' is {'size': 64}: it needs 'overlap', too"),
        ({"tile": {"size": 64}}, "image.tile"),
        ({"resize": [64, 64]}, r"image.resize is \(64, 64\), and tiles of 80 pixels are cut of"),
        ({"resize": 96, "crop": 64}, "image.resize is 96, and tiles of 80 pixels are cut of"),
        ({"pixels": 2**25 + 1}, "less than or equal to 33554432"),
    ],
)
def test_tiles_that_cut_nothing_or_all_are_refused(image, said):
    with pytest.raises(ConfigError, match=said):
        settings_of(**image)


@pytest.mark.slow
def test_tiles_that_do_not_fit_the_network_are_refused_before_anything(lake, tmp_path):
    settings = settings_of(tile={"size": 72, "overlap": 32})
    with pytest.raises(ConfigError, match=r"image\.tile\.size is 72 pixels.*64 or 80"):
        fit.run(str(lake), str(tmp_path / "m"), settings, LOCAL)
    assert not (tmp_path / "m" / "model.json").exists()
