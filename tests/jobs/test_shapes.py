"""`image.resize=auto`: each group's inputs have its photos' shape, which its model keeps."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patchlake
from patchlake.pipeline.config import Settings, digest, load_settings
from patchlake.pipeline.driver import evaluate, fit, ingest, score, shapes, update, withdraw
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.lake.plan import output_digest
from patchlake.pipeline.model_store.identity import Identity
from patchlake.pipeline.model_store.models import read_manifest
from patchlake.pipeline.sources.sources import Arrangement
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, by_place, output_files

# (width, height) of the photos of each group, and (height, width) of the inputs made of them.
PHOTOS = {"wide": (300, 100), "tall": (90, 180)}
SHAPES = {"wide": (48, 128), "tall": (112, 48)}
PIXELS = 6400


def settings_of(**image: object) -> Settings:
    own = {"resize": "auto", "pixels": PIXELS}
    return load_settings(flags=TINY | {"image": image or own})


def scoring(**changed: object) -> Settings:
    """Settings that no model has fixed."""
    fixed = ("image", "backbone", "method")
    return load_settings(flags={k: v for k, v in TINY.items() if k not in fixed} | changed)


def save(path: Path, size: tuple[int, int], number: int, *, defect: bool = False) -> None:
    """Write a photo of blurred noise, with a bright square at its right end if it is defective."""
    rng = np.random.default_rng(number)
    width, height = size
    coarse = Image.fromarray(rng.integers(90, 150, (height // 10, width // 10), dtype=np.uint8))
    pixels = np.array(coarse.resize(size, Image.Resampling.BICUBIC))
    if defect:
        pixels[-30:, -30:] = 255
        mask = np.zeros_like(pixels)
        mask[-30:, -30:] = 255
        group = path.parts[-4]
        target = path.parents[2] / "ground_truth" / "spot" / f"{path.stem}_mask.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(target)
        assert group in PHOTOS
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two products, each of photos of one shape, in MVTec layout."""
    root = tmp_path_factory.mktemp("photos")
    for group, size in PHOTOS.items():
        for number in range(6):
            save(root / group / "train" / "good" / f"{number}.png", size, number)
        for number in range(6, 9):
            save(root / group / "test" / "good" / f"{number}.png", size, number)
            save(root / group / "test" / "spot" / f"{number}.png", size, number, defect=True)
    return root


@pytest.fixture(scope="module")
def lake(photos: Path) -> Path:
    target = photos.parent / f"{photos.name}-lake"
    ingest.run(str(photos), str(target), Arrangement(), settings_of(), LOCAL)
    return target


@pytest.fixture(scope="module")
def own(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("models") / "own"
    fit.run(str(lake), str(target), settings_of(), LOCAL)
    return target


@pytest.fixture(scope="module")
def scored(lake: Path, own: Path) -> Path:
    target = own.parent / "scores"
    score.run(str(lake), str(own), str(target), scoring(), LOCAL)
    return target


def test_a_model_keeps_the_shape_of_each_group(own):
    manifest = read_manifest(Folder(str(own)))
    assert manifest.shapes == SHAPES
    assert (manifest.geometry.resize, manifest.geometry.pixels) == ("auto", PIXELS)


@pytest.mark.slow
def test_a_group_is_what_it_would_be_with_its_shape_set(lake, own, scored, tmp_path):
    """The same files, the same digest, and the same scores to the bit."""
    record = read_manifest(Folder(str(own))).groups["wide"]
    pair = fit.run(str(lake), str(tmp_path / "m"), settings_of(resize=SHAPES["wide"]), LOCAL)
    assert pair.groups["wide"].digest == record.digest
    assert pair.groups["tall"].digest != read_manifest(Folder(str(own))).groups["tall"].digest
    score.run(str(lake), str(tmp_path / "m"), str(tmp_path / "s"), scoring(), LOCAL)
    found, expected = by_place(scored), by_place(tmp_path / "s")
    same = ("image_score", "p_value", "threshold", "regions", "anomaly_map", "model_id")
    wide = [place for place, row in found.items() if row["group"] == "wide"]
    assert len(wide) == 12
    for place in wide:
        assert {n: found[place][n] for n in same} == {n: expected[place][n] for n in same}


def has_width_of(picture: Image.Image, photo: int) -> bool:
    """Return whether a heatmap is as wide as its photo, or as the texts below a narrower one.

    How many digits tell a score from its threshold is another matter on another processor: 171
    pixels were seen, and 203.
    """
    return picture.width == photo or photo < picture.width < 250


def test_maps_regions_and_heatmaps_are_of_the_photo(scored):
    grids = {"wide": (6, 16), "tall": (14, 6)}
    rows = by_place(scored).values()
    found_one = False
    for row in rows:
        assert row["status"] == "ok"
        assert (row["width"], row["height"]) == PHOTOS[row["group"]]
        assert (row["map_height"], row["map_width"]) == grids[row["group"]]
        with Image.open(scored / row["heatmap_path"]) as picture:
            assert has_width_of(picture, row["width"])
            assert picture.height > row["height"]
        for region in row["regions"] or []:
            assert region["x"] + region["width"] <= row["width"]
            assert region["y"] + region["height"] <= row["height"]
            found_one = True
    assert found_one


@pytest.mark.slow
def test_defects_are_found_where_they_are(lake, scored):
    for metrics in evaluate.run(str(lake), str(scored)).values():
        assert metrics["image_auroc"] == 1
        assert metrics["pixel_auroc"] > 0.9


@pytest.mark.slow
def test_scores_of_a_group_that_the_model_has_not_are_said_to_be_so(photos, own, tmp_path):
    for number in range(2):
        save(tmp_path / "p" / "new" / "train" / "good" / f"{number}.png", (80, 80), number)
    named = (str(tmp_path / name) for name in ("p", "lake"))
    ingest.run(*named, Arrangement(), settings_of(), LOCAL)
    score.run(str(tmp_path / "lake"), str(own), str(tmp_path / "s"), scoring(max_failed=1.0), LOCAL)
    assert {row["status"] for row in by_place(tmp_path / "s").values()} == {"no_model"}


@pytest.mark.slow
@pytest.mark.ray
def test_both_runners_give_the_same_bytes(lake, own, scored, one_actor, tmp_path):
    on_ray = Execution("ray", "local")
    again = fit.run(str(lake), str(tmp_path / "m"), settings_of(), on_ray)
    assert again.groups == read_manifest(Folder(str(own))).groups
    score.run(str(lake), str(own), str(tmp_path / "s"), scoring(), on_ray)
    assert output_files(tmp_path / "s") == output_files(scored)


@pytest.mark.slow
def test_images_join_and_leave_at_the_shape_of_their_group(lake, photos, tmp_path):
    model = tmp_path / "m"
    fit.run(str(lake), str(model), settings_of(), LOCAL)
    more = tmp_path / "more"
    for number in range(20, 23):
        # Of another shape, which the group's inputs do not take over.
        save(more / "wide" / "train" / "good" / f"{number}.png", (100, 100), number)
    ingest.run(str(more), str(tmp_path / "lake"), Arrangement(), settings_of(), LOCAL)
    joined = update.run(str(tmp_path / "lake"), str(model), scoring(), LOCAL)
    assert joined.shapes == SHAPES
    assert joined.groups["wide"].images == 9
    ids = withdraw.Withdrawal(image_ids=("wide/train/good/20.png",))
    left = withdraw.run(str(model), ids, scoring(), LOCAL)
    assert left.shapes == SHAPES
    assert left.groups["wide"].images == 8
    score.run(str(lake), str(model), str(tmp_path / "s"), scoring(), LOCAL)


@pytest.mark.slow
def test_an_ensemble_has_members_of_other_shapes(lake, own, scored, tmp_path):
    """One of a pair for all groups: there are two inputs, and a map is the finer one each way."""
    fit.run(str(lake), str(tmp_path / "pair"), settings_of(resize=[64, 64]), LOCAL)
    both = [str(own), str(tmp_path / "pair")]
    score.run(str(lake), both, str(tmp_path / "s"), scoring(), LOCAL)
    rows = by_place(tmp_path / "s").values()
    grids = {row["group"]: (row["map_height"], row["map_width"]) for row in rows}
    assert grids == {"wide": (8, 16), "tall": (14, 8)}
    for metrics in evaluate.run(str(lake), str(tmp_path / "s")).values():
        assert metrics["image_auroc"] == 1


@pytest.mark.slow
def test_a_model_in_memory_gives_the_scores_of_the_table(photos, own, scored):
    detector = patchlake.load(str(own))
    for group in PHOTOS:
        path = photos / group / "test" / "spot" / "7.png"
        (found,) = detector.score([path], group=group)
        (row,) = [
            row
            for row in by_place(scored).values()
            if row["image_id"] == f"{group}/test/spot/7.png"
        ]
        assert found.image_score == row["image_score"]
        assert [one.x for one in found.regions] == [one["x"] for one in row["regions"]]
        with Image.open(scored / row["heatmap_path"]) as picture:
            assert found.heatmap().size == picture.size


@pytest.mark.slow
def test_a_region_of_interest_is_of_the_photo(lake, tmp_path):
    left = {"wide": [[[0, 0], [0.6, 0], [0.6, 1], [0, 1]]]}
    image = {"resize": "auto", "pixels": PIXELS, "roi": left}
    fit.run(str(lake), str(tmp_path / "m"), settings_of(**image), LOCAL)
    score.run(str(lake), str(tmp_path / "m"), str(tmp_path / "s"), scoring(), LOCAL)
    for row in by_place(tmp_path / "s").values():
        if row["group"] == "wide":
            grid = np.reshape(row["anomaly_map"], (row["map_height"], row["map_width"]))
            assert (grid[:, 10:] == grid.min()).all()


@pytest.mark.slow
def test_photos_of_other_shapes_are_counted_and_squashed(photos, tmp_path, caplog):
    mixed = tmp_path / "p"
    for number in range(6):
        size = (100, 100) if number > 3 else (300, 100)
        save(mixed / "wide" / "train" / "good" / f"{number}.png", size, number)
    ingest.run(str(mixed), str(tmp_path / "lake"), Arrangement(), settings_of(), LOCAL)
    with caplog.at_level(logging.INFO):
        found = fit.run(str(tmp_path / "lake"), str(tmp_path / "m"), settings_of(), LOCAL)
    assert found.shapes == {"wide": SHAPES["wide"]}
    assert found.groups["wide"].images == 6
    assert "2 of 6 photos looked at differ" in caplog.text
    assert "inputs of 128 x 48 pixels (width x height) for photos of some 300 x 100" in caplog.text


@pytest.mark.slow
def test_photos_that_cannot_be_read_do_not_decide(lake, tmp_path, caplog):
    folder = tmp_path / "p" / "wide" / "train" / "good"
    save(folder / "0.png", (300, 100), 0)
    (folder / "1.png").write_bytes((folder / "0.png").read_bytes()[:200])
    ingest.run(str(tmp_path / "p"), str(tmp_path / "lake"), Arrangement(), settings_of(), LOCAL)
    tall_only = settings_of().model_copy(update={"max_failed": 1.0})
    found = fit.run(str(tmp_path / "lake"), str(tmp_path / "m"), tall_only, LOCAL)
    assert found.shapes == {"wide": SHAPES["wide"]}


@pytest.mark.slow
def test_fragments_of_large_inputs_have_fewer_images(lake, own, scored, tmp_path, monkeypatch):
    """Memory is bounded by the inputs, and no score hangs on it."""
    # Three of the larger inputs.
    monkeypatch.setattr(shapes, "_FRAGMENT_BYTES", 3 * 3 * 48 * 128 + 100)
    found = fit.run(str(lake), str(tmp_path / "m"), settings_of(), LOCAL)
    assert found.settings.fragment_images == 3
    wanted = read_manifest(Folder(str(own))).groups
    assert {g: r.digest for g, r in found.groups.items()} == {
        g: r.digest for g, r in wanted.items()
    }
    summary = score.run(str(lake), str(own), str(tmp_path / "s"), scoring(), LOCAL)
    assert summary.settings.fragment_images == 3
    assert summary.fragments == 8
    one, other = by_place(tmp_path / "s"), by_place(scored)
    assert {k: r["image_score"] for k, r in one.items()} == {
        k: r["image_score"] for k, r in other.items()
    }
    # What is remembered of the cut is found again.
    assert not score.run(str(lake), str(own), str(tmp_path / "s"), scoring(), LOCAL).statuses


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"resize": "auto", "crop": 64}, "64 pixels would be cut out"),
        ({"pixels": 9999}, "9999 pixels bound those"),
        ({"resize": "auto", "pixels": 2**22 + 1}, "4194305.*4194304 pixels are the most"),
        ({"resize": "own"}, "own"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(image, said):
    with pytest.raises(ConfigError, match=said):
        settings_of(**image)


@pytest.mark.parametrize(
    "image", [{"resize": "auto", "pixels": 5000}, {"resize": [32, 32]}, {"crop": 32}]
)
def test_a_score_that_asks_for_another_shape_is_refused(lake, own, tmp_path, image):
    with pytest.raises(ConfigError, match="the model was fitted with"):
        score.run(str(lake), str(own), str(tmp_path / "s"), scoring(image=image), LOCAL)


@pytest.mark.slow
def test_a_model_whose_shape_was_changed_by_hand_is_refused(lake, own, tmp_path):
    import json
    import shutil

    shutil.copytree(own, tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    manifest = json.loads(path.read_text())
    manifest["groups"]["wide"]["shape"] = [64, 128]
    path.write_text(json.dumps(manifest))
    with pytest.raises(patchlake.PatchlakeError, match="changed by hand"):
        score.run(str(lake), str(tmp_path / "m"), str(tmp_path / "s"), scoring(), LOCAL)


@pytest.mark.slow
def test_without_own_shapes_digests_cover_what_they_did(tiny: Settings, model: Path):
    image = tiny.image.model_dump(mode="json", exclude={"roi", "pixels", "tile"})
    covered = {
        "image": image,
        "score": tiny.score.model_dump(mode="json", exclude={"iceberg_table", "heatmap_store"}),
        "verdict": tiny.verdict.model_dump(mode="json"),
        "columns": tiny.columns.model_dump(
            mode="json", exclude={"good_labels", "test_splits", "train_splits", "roi"}
        ),
        "fragment_images": 10,
    }
    assert output_digest(tiny) == digest(covered)
    manifest = read_manifest(Folder(str(model)))
    identity = Identity.of(manifest)
    assert manifest.shapes == {}
    assert identity.of_group("woven_cloth") is identity
    assert identity.covered()["geometry"] == {"resize": (64, 64), "crop": None}


@pytest.mark.slow
def test_a_model_of_before_there_were_shapes_is_read(model: Path, tmp_path: Path):
    import json
    import shutil

    shutil.copytree(model, tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    manifest = json.loads(path.read_text())
    for name in ("pixels", "tile"):
        del manifest["geometry"][name], manifest["settings"]["image"][name]
    for group in manifest["groups"].values():
        del group["shape"]
    path.write_text(json.dumps(manifest))
    folder = Folder(str(tmp_path / "m"))
    assert read_manifest(folder) == read_manifest(Folder(str(model)))


@pytest.mark.slow
def test_a_jpeg_on_its_side_is_asked_for_its_upright_shape(tmp_path):
    turned = Image.Exif()
    turned[274] = 6
    for number in range(3):
        sink = io.BytesIO()
        noise = np.random.default_rng(number).integers(0, 256, (100, 300), dtype=np.uint8)
        Image.fromarray(noise).save(sink, "JPEG", exif=turned)
        path = tmp_path / "p" / "wide" / "train" / "good" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sink.getvalue())
    ingest.run(str(tmp_path / "p"), str(tmp_path / "lake"), Arrangement(), settings_of(), LOCAL)
    found = fit.run(str(tmp_path / "lake"), str(tmp_path / "m"), settings_of(), LOCAL)
    assert found.shapes == {"wide": SHAPES["wide"][::-1]}
