"""Regions of interest: what is outside changes nothing, by whatever method, and nothing is lost."""

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import patchlake as library
from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import evaluate, fit, score, update, withdraw
from patchlake.pipeline.driver.withdraw import Withdrawal
from patchlake.pipeline.errors import ConfigError, ModelError
from patchlake.pipeline.groups.files import load_calibration
from patchlake.pipeline.images.interest import BLANK, Polygons
from patchlake.pipeline.model_store.identity import Identity
from patchlake.pipeline.model_store.models import Manifest, read_manifest
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, TINY_FLAGS, by_place, soak
from tests.small import FEW, SMALL, UPDATABLE

GROUPS = ("brushed_plate", "woven_cloth")
CORNERS = [[0.3, 0.1], [0.95, 0.25], [0.8, 0.9], [0.1, 0.7]]
REGIONS = {group: [CORNERS] for group in GROUPS}
# What a row says of the image, and not of the file.
SAID = ("image_score", "p_value", "is_anomalous", "threshold", "anomaly_map", "regions", "status")


def settings_of(method: str = "patchcore", /, **changed: object) -> Settings:
    # PatchCore as in the models that others share.
    own = {} if method == "patchcore" else {"method": {"name": method} | SMALL[method]}
    return load_settings(flags=TINY | own | changed)


def with_region(method: str = "patchcore", region: object = REGIONS) -> Settings:
    return settings_of(method, image={"resize": [64, 64], "roi": region})


def inside_of(size: tuple[int, int]) -> np.ndarray:
    return Polygons((tuple(map(tuple, CORNERS)),)).lines(0, size[1], size)


def as_png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def changed_outside(content: bytes) -> bytes:
    """Return the image with other pixels outside: each sample is turned around."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    inside = inside_of((pixels.shape[1], pixels.shape[0]))
    return as_png(np.where(inside[..., None], pixels, 255 - pixels))


def changed_inside(content: bytes) -> bytes:
    """Return the image with a dark spot in the middle of the region."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).copy()
    height, width = pixels.shape[:2]
    pixels[int(0.4 * height) : int(0.6 * height), int(0.4 * width) : int(0.6 * width)] = (9, 0, 40)
    return as_png(pixels)


def rewritten(lake: Path, to: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Write a lake whose tables are changed, in files of the same names."""
    for path in lake.rglob("*.parquet"):
        copy = to / path.relative_to(lake)
        copy.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(change(pq.ParquetFile(path).read()), copy)
    return to


def with_images(change: Callable[[bytes], bytes]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        found = [change(one) for one in table.column("image").to_pylist()]
        at = table.column_names.index("image")
        # Of other files, so that nothing is taken for what is known.
        table = table.set_column(at, "image", pa.array(found, pa.binary()))
        return table.drop_columns(["sha256"])

    return changed


def with_masks(masks: Callable[[int, tuple[int, int]], bytes | None]) -> Callable:
    """Return what adds a column `part_mask`, by the row's number and the image's size."""

    def changed(table: pa.Table) -> pa.Table:
        sizes = [Image.open(io.BytesIO(one)).size for one in table.column("image").to_pylist()]
        found = [masks(number, size) for number, size in enumerate(sizes)]
        return table.append_column("part_mask", pa.array(found, pa.binary()))

    return changed


def mask_of(number: int, size: tuple[int, int]) -> bytes:
    return as_png(inside_of(size).astype(np.uint8) * 255)


@pytest.fixture(scope="module")
def outside(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake, with everything else outside."""
    return rewritten(images, tmp_path_factory.mktemp("outside"), with_images(changed_outside))


@pytest.fixture(scope="module")
def inside(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake, with a spot inside of each image."""
    return rewritten(images, tmp_path_factory.mktemp("inside"), with_images(changed_inside))


@pytest.fixture(scope="module")
def masked(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake, with a mask for each image: the same region."""
    return rewritten(images, tmp_path_factory.mktemp("masked"), with_masks(mask_of))


@dataclass(frozen=True)
class Done:
    method: str
    model: Path
    scores: Path
    manifest: Manifest


@pytest.fixture(scope="module", params=FEW)
def done(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Done:
    root = tmp_path_factory.mktemp(request.param)
    settings = with_region(request.param)
    manifest = fit.run(str(images), str(root / "model"), settings, LOCAL)
    score.run(str(images), str(root / "model"), str(root / "scores"), settings, LOCAL)
    return Done(request.param, root / "model", root / "scores", manifest)


@pytest.fixture(scope="module")
def patchcore(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("patchcore")
    fit.run(str(images), str(root), with_region(), LOCAL)
    return root


def said(scores: Path) -> dict[object, dict[str, object]]:
    return {place: {n: row[n] for n in SAID} for place, row in by_place(scores).items()}


def scored(lake: Path, model: Path, out: Path, method: str = "patchcore", **changed: object):
    score.run(str(lake), str(model), str(out), settings_of(method, **changed), LOCAL)
    return said(out)


def arrays_of(model: Path) -> dict[tuple[str, str], str]:
    """Digests of what a model scores with."""
    return {
        (group, file.role): file.sha256
        for group, record in read_manifest(Folder(str(model))).groups.items()
        for file in record.files
        if file.role.startswith(("state", "index", "gallery", "statistics", "roi"))
    }


def test_no_pixel_outside_changes_what_is_said_of_an_image(done: Done, outside: Path, tmp_path):
    """To the bit: score, p-value, verdict, map and regions; and no setting names the region."""
    before = said(done.scores)
    assert before == scored(outside, done.model, tmp_path, done.method)
    assert all(row["status"] == "ok" for row in before.values())
    # CFA has none of so few images.
    is_judged = {row["p_value"] is not None for row in before.values()}
    assert is_judged == {done.method != "cfa"}


def test_nor_does_one_change_what_is_learned(done: Done, outside: Path, tmp_path: Path):
    fit.run(str(outside), str(tmp_path), with_region(done.method), LOCAL)
    assert arrays_of(tmp_path) == arrays_of(done.model)
    for group in GROUPS:
        one, two = (
            load_calibration(Folder(str(path)), read_manifest(Folder(str(path))).groups[group])
            for path in (tmp_path, done.model)
        )
        assert one.scores == two.scores
        assert (one.patches, one.scale) == (two.patches, two.scale)
        if done.method == "cfa":
            assert one.judged is None
            continue
        assert (one.judged.scores, one.judged.peaks) == (two.judged.scores, two.judged.peaks)
        # Look-alikes are told by what is inside.
        assert one.judged.parts == two.judged.parts


def test_a_spot_inside_is_found(done: Done, inside: Path, tmp_path: Path):
    """By methods whose score is that of a patch. Pooled features of a random network change."""
    found = scored(inside, done.model, tmp_path, done.method)
    more = [found[at]["image_score"] - row["image_score"] for at, row in said(done.scores).items()]
    if done.method in ("cfa", "padim", "patchcore"):
        assert min(more) > 0
    assert all(more)


def test_without_a_region_pixels_outside_count(images: Path, model: Path, outside: Path, tmp_path):
    """So that the tests above can fail."""
    one = scored(images, model, tmp_path / "one")
    other = scored(outside, model, tmp_path / "other")
    assert all(one[place]["image_score"] != other[place]["image_score"] for place in one)


@pytest.mark.slow
def test_a_region_of_everything_changes_no_score_and_no_array(images: Path, model: Path, tmp_path):
    whole = {group: [[[0, 0], [1, 0], [1, 1], [0, 1]]] for group in GROUPS}
    fit.run(str(images), str(tmp_path / "model"), with_region(region=whole), LOCAL)
    found = {k: v for k, v in arrays_of(tmp_path / "model").items() if k[1] != "roi.json"}
    assert found == arrays_of(model)
    ours = scored(images, tmp_path / "model", tmp_path / "scores")
    assert ours == scored(images, model, tmp_path / "theirs")


def test_the_map_is_lowest_outside_and_no_patch_there_decides(patchcore: Path, images, tmp_path):
    for row in scored(images, patchcore, tmp_path).values():
        grid = np.array(row["anomaly_map"], np.float32)
        side = int(len(grid) ** 0.5)
        grid = grid.reshape(side, side)
        # The corners are well outside.
        assert {grid[0, 0], grid[0, -1], grid[-1, 0], grid[-1, -1]} == {grid.min()}
        assert row["image_score"] == grid.max()


def test_a_region_is_recorded_and_is_in_the_digest(patchcore: Path, model: Path, images, tmp_path):
    record = read_manifest(Folder(str(patchcore)))
    assert record.settings.image.roi["woven_cloth"] == (tuple(map(tuple, CORNERS)),)
    other = [[*CORNERS[:3], [0.1, 0.6]]]
    settings = with_region(region=REGIONS | {"woven_cloth": other})
    changed = fit.run(str(images), str(tmp_path), settings, LOCAL)
    none = read_manifest(Folder(str(model)))
    found = [one.groups["woven_cloth"].digest for one in (record, changed, none)]
    assert len(set(found)) == 3
    same = [one.groups["brushed_plate"].digest for one in (record, changed)]
    assert len(set(same)) == 1
    assert record.run != changed.run


def test_without_a_region_a_digest_covers_what_it_did(model: Path, tiny: Settings):
    manifest = read_manifest(Folder(str(model)))
    covered = Identity.of(manifest).covered()
    assert covered.keys() == {"method", "options", "geometry", "backbone", "index", "seed"}
    assert covered["geometry"].keys() == {"resize", "crop"}
    columns = manifest.settings.columns.model_copy(update={"roi": "m"})
    of_masks = manifest.settings.model_copy(update={"columns": columns})
    other = Identity.of(manifest.model_copy(update={"settings": of_masks})).covered()
    assert other.keys() - covered.keys() == {"roi"}


def test_only_the_groups_that_are_named_have_a_region(model: Path, images: Path, tmp_path: Path):
    only = {"woven_cloth": [CORNERS]}
    found = fit.run(str(images), str(tmp_path), with_region(region=only), LOCAL)
    none = read_manifest(Folder(str(model)))
    assert found.groups["brushed_plate"].digest == none.groups["brushed_plate"].digest
    assert found.groups["woven_cloth"].digest != none.groups["woven_cloth"].digest


def test_a_mask_of_a_group_is_as_its_polygons(patchcore: Path, images: Path, outside, tmp_path):
    """Of a mask of the pictures' size, each pixel is inside that is in the polygon."""
    size = Image.open(io.BytesIO(_first_image(images))).size
    (tmp_path / "mask.png").write_bytes(mask_of(0, size))
    region = dict.fromkeys(GROUPS, str(tmp_path / "mask.png"))
    fit.run(str(images), str(tmp_path / "model"), with_region(region=region), LOCAL)
    # The model has a copy.
    (tmp_path / "mask.png").unlink()
    found = scored(outside, tmp_path / "model", tmp_path / "scores")
    assert found == scored(images, patchcore, tmp_path / "theirs")


def _first_image(lake: Path) -> bytes:
    file = sorted(lake.rglob("*.parquet"))[0]
    return pq.ParquetFile(file).read().column("image")[0].as_py()


def test_masks_of_each_image_are_as_its_polygons(done: Done, masked: Path, tmp_path: Path):
    settings = settings_of(done.method, columns={"roi": "part_mask"})
    fit.run(str(masked), str(tmp_path / "model"), settings, LOCAL)
    # A score that names no column reads that of the fit.
    assert scored(masked, tmp_path / "model", tmp_path / "s", done.method) == said(done.scores)


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_regions_that_differ_from_image_to_image_hide_each_its_own(method, images: Path, tmp_path):
    def mask(number: int, size: tuple[int, int]) -> np.ndarray:
        # A box whose place goes with the image; a quarter of it at least.
        width, height = size
        left, top = width * (number % 5) // 10, height * (number % 3) // 6
        inside = np.zeros((height, width), bool)
        inside[top : top + height // 2, left : left + width // 2] = True
        return inside

    def masks(number: int, size: tuple[int, int]) -> bytes:
        return as_png(mask(number, size).astype(np.uint8) * 255)

    def turned(table: pa.Table) -> pa.Table:
        found = []
        for number, content in enumerate(table.column("image").to_pylist()):
            pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            inside = mask(number, pixels.shape[1::-1])[..., None]
            found.append(as_png(np.where(inside, pixels, 255 - pixels)))
        at = table.column_names.index("image")
        return table.set_column(at, "image", pa.array(found, pa.binary())).drop_columns(["sha256"])

    one = rewritten(images, tmp_path / "a", with_masks(masks))
    other = rewritten(one, tmp_path / "b", turned)
    settings = settings_of(method, columns={"roi": "part_mask"})
    fit.run(str(one), str(tmp_path / "model"), settings, LOCAL)
    fit.run(str(other), str(tmp_path / "same"), settings, LOCAL)
    assert arrays_of(tmp_path / "same") == arrays_of(tmp_path / "model")
    found = scored(one, tmp_path / "model", tmp_path / "one", method)
    assert found == scored(other, tmp_path / "model", tmp_path / "other", method)
    assert all(row["status"] == "ok" for row in found.values())


def test_a_part_that_looks_like_what_is_blank_is_found(patchcore: Path, images: Path, tmp_path):
    """Grey was never learned, though most of what the network saw of each image was grey."""

    def hidden(content: bytes) -> bytes:
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).copy()
        pixels[:] = BLANK
        return as_png(pixels)

    lake = rewritten(images, tmp_path / "lake", with_images(hidden))
    found = scored(lake, patchcore, tmp_path / "scores")
    before = scored(images, patchcore, tmp_path / "before")
    for place, row in found.items():
        inside = np.array(row["anomaly_map"], np.float32)
        # Everywhere, and not only at an edge that it has with the rest.
        assert np.median(inside) > 0.5 * np.max(before[place]["anomaly_map"])


def test_a_mask_that_cannot_be_used_is_a_row_with_a_status(masked: Path, tmp_path: Path):
    columns = {"columns": {"roi": "part_mask"}}
    fit.run(str(masked), str(tmp_path / "model"), settings_of(**columns), LOCAL)

    def faulty(number: int, size: tuple[int, int]) -> bytes | None:
        if number % 11 > 4:
            return mask_of(number, size)
        ground = np.zeros(size[::-1], np.uint8)
        speck = ground.copy()
        # Of the model's input 6 pixels square, of which the seam leaves 3; a patch has 8.
        side, at = size[0] * 6 // 64, size[0] // 4
        speck[at : at + side, at : at + side] = 255
        half = np.full((size[1] // 2, size[0]), 255, np.uint8)
        return [None, b"no picture", as_png(half), as_png(ground), as_png(speck)][number % 11]

    def changed(table: pa.Table) -> pa.Table:
        return with_masks(faulty)(table.drop_columns(["part_mask"]))

    lake = rewritten(masked, tmp_path / "lake", changed)
    settings = settings_of(**columns, max_failed=1)
    score.run(str(lake), str(tmp_path / "model"), str(tmp_path / "scores"), settings, LOCAL)
    rows = by_place(tmp_path / "scores")
    assert len(rows) == 44
    expected = [
        ("missing", "no region of interest in column 'part_mask'"),
        ("unreadable", "its region of interest (column 'part_mask'): "),
        ("unsupported", "they must be of one size"),
        ("unsupported", "holds no pixel of the 64x64"),
        ("unsupported", "half of no patch"),
    ]
    for (_, number), row in rows.items():
        if number % 11 > 4:
            assert row["status"] == "ok"
            assert row["error"] is None
            continue
        status, error = expected[number % 11]
        assert row["status"] == status
        assert error in row["error"]
        assert row["image_score"] is None


def test_a_fit_leaves_out_images_whose_mask_cannot_be_used(masked: Path, tmp_path: Path):
    def some(number: int, size: tuple[int, int]) -> bytes | None:
        return None if number % 2 else mask_of(number, size)

    def changed(table: pa.Table) -> pa.Table:
        return with_masks(some)(table.drop_columns(["part_mask"]))

    lake = rewritten(masked, tmp_path / "lake", changed)
    settings = settings_of(columns={"roi": "part_mask"}, max_failed=1)
    found = fit.run(str(lake), str(tmp_path / "model"), settings, LOCAL)
    lacking = [record.unusable_images for record in found.groups.values()]
    assert all(one["missing"] > 0 for one in lacking)
    assert all(0 < record.images < 12 for record in found.groups.values())


def test_a_column_that_no_file_has_is_refused(images: Path, tmp_path: Path):
    settings = settings_of(columns={"roi": "part_mask"})
    with pytest.raises(ConfigError, match=r"columns.roi is 'part_mask', and no file has such"):
        fit.run(str(images), str(tmp_path), settings, LOCAL)


def test_a_column_that_is_no_mask_is_refused(masked: Path, tmp_path: Path):
    settings = settings_of(columns={"roi": "image_id"})
    with pytest.raises(ConfigError, match=r"'image_id' is string, roi needs binary"):
        fit.run(str(masked), str(tmp_path), settings, LOCAL)


NEITHER = r"^setting 'image.roi' is .*of group 'woven_cloth' it is neither .*not in pixels$"
REFUSED = [
    ({"woven_cloth": [[[0.1, 0.1], [0.9, 0.1]]]}, NEITHER),
    ({"woven_cloth": [[[10, 10], [90, 10], [90, 90]]]}, NEITHER),
    ({"woven_cloth": [[[0.1, 0.1], [0.9, 0.1], [float("nan"), 0.9]]]}, NEITHER),
    ({"woven_cloth": []}, NEITHER),
    ({"woven_cloth": ""}, NEITHER),
    (7, r"'image.roi' is 7: .*write \{GROUP: REGION, \.\.\.\}"),
]


@pytest.mark.parametrize(("region", "said_"), REFUSED)
def test_what_is_no_region_is_refused(region: object, said_: str):
    with pytest.raises(ConfigError, match=said_):
        with_region(region=region)


def test_a_region_for_groups_and_one_for_images_are_not_for_one_job():
    with pytest.raises(ConfigError, match=r"columns.roi 'm' .* image.roi .*woven_cloth.*one of"):
        settings_of(image={"resize": [64, 64], "roi": REGIONS}, columns={"roi": "m"})


@pytest.mark.parametrize(
    ("region", "said_"),
    [
        ({"cloth": [CORNERS]}, r"names the groups \['cloth'\].*'woven_cloth'"),
        (
            {"woven_cloth": [[[0.5, 0.5], [0.5, 0.6], [0.52, 0.55]]]},
            r"group 'woven_cloth': its region of interest holds no pixel.*image.resize",
        ),
        (
            {"woven_cloth": [[[0.4, 0.4], [0.5, 0.4], [0.5, 0.5], [0.4, 0.5]]]},
            r"half of no patch of 8x8.*make it larger",
        ),
        ({"woven_cloth": "nowhere/mask.png"}, r"'nowhere/mask.png', and there is no such file"),
        ({"woven_cloth": __file__}, r"test_roi.py', which is no mask that can be read"),
    ],
)
def test_a_region_that_leaves_nothing_is_refused_before_any_work(
    region: dict[str, object], said_: str, images: Path, tmp_path: Path
):
    with pytest.raises(ConfigError, match=said_):
        fit.run(str(images), str(tmp_path), with_region(region=region), LOCAL)
    assert not list(tmp_path.iterdir())


def test_a_black_mask_and_one_beyond_the_limits_are_refused(images: Path, tmp_path: Path):
    path = tmp_path / "mask.png"
    path.write_bytes(as_png(np.zeros((20, 20), np.uint8)))
    with pytest.raises(ConfigError, match=r"20x20 pixels are all ground.*white on black"):
        fit.run(str(images), str(tmp_path / "m"), with_region(region={GROUPS[1]: str(path)}), LOCAL)
    path.write_bytes(as_png(np.full((200, 200), 255, np.uint8)))
    small = {"resize": [64, 64], "roi": {GROUPS[1]: str(path)}, "max_pixels": 9999}
    with pytest.raises(ConfigError, match=r"no mask that can be read: .*200x200.*9999"):
        fit.run(str(images), str(tmp_path / "m"), settings_of(image=small), LOCAL)


def test_a_score_has_the_models_region_and_refuses_another(
    patchcore: Path, model: Path, images: Path, tmp_path: Path
):
    same = scored(images, patchcore, tmp_path / "same")
    score.run(str(images), str(patchcore), str(tmp_path / "named"), with_region(), LOCAL)
    assert said(tmp_path / "named") == same
    other = with_region(region={"woven_cloth": [[[0, 0], [1, 0], [1, 0.5]]]})
    with pytest.raises(ConfigError, match=r"\[1.0, 0.5\].*fitted with .*\[0.95, 0.25\]"):
        score.run(str(images), str(patchcore), str(tmp_path / "other"), other, LOCAL)
    with pytest.raises(ConfigError, match=r"\[0.95, 0.25\].*was fitted with none; leave it out"):
        score.run(str(images), str(model), str(tmp_path / "none"), with_region(), LOCAL)
    with pytest.raises(ConfigError, match=r"columns.roi is 'm', the model .* fitted with ''"):
        scored(images, model, tmp_path / "column", columns={"roi": "m"})
    with pytest.raises(ConfigError, match=r"\[0.95, 0.25\].*was fitted with none"):
        library.load(model, settings=with_region())


@pytest.mark.slow
def test_members_of_an_ensemble_have_one_region(
    patchcore: Path, model: Path, images: Path, outside: Path, tmp_path: Path
):
    alike = tmp_path / "alike"
    fit.run(str(images), str(alike), with_region("padim"), LOCAL)

    def together(lake: Path, others: list[Path], out: Path) -> dict:
        names = [str(patchcore), *map(str, others)]
        free = {k: v for k, v in TINY.items() if k not in ("image", "backbone", "method")}
        score.run(str(lake), names, str(out), load_settings(flags=free), LOCAL)
        return said(out)

    found = together(images, [alike], tmp_path / "one")
    assert found == together(outside, [alike], tmp_path / "two")
    for row in found.values():
        grid = np.array(row["anomaly_map"], np.float32)
        assert grid[0] == grid.min()
    with pytest.raises(ConfigError, match=r"image.roi of group 'brushed_plate' is .* and .*alike"):
        together(images, [model], tmp_path / "three")


@pytest.mark.parametrize(
    "method", [name if name in ("mahalanobis", "patchcore") else soak(name) for name in UPDATABLE]
)
def test_a_model_keeps_its_region_when_images_join_and_leave(
    method: str, images: Path, outside: Path, tmp_path: Path
):
    settings = with_region(method)
    models = {}
    for name, lake in (("one", images), ("two", outside)):
        model = tmp_path / name
        # All but one file of images; then that one.
        files = sorted(lake.rglob("*.parquet"))
        fit.run(str(lake), str(model), settings, LOCAL, where="group = 'brushed_plate'")
        first = read_manifest(Folder(str(model))).groups["brushed_plate"]
        ids = pq.ParquetFile(files[0]).read().column("image_id").to_pylist()
        left = next(one for one in ids if "brushed_plate/train/good" in one)
        withdraw.run(str(model), Withdrawal((left,)), settings_of(method), LOCAL)
        back = update.run(str(lake), str(model), settings_of(method), LOCAL)
        roles = {f.role: f.sha256 for f in back.groups["brushed_plate"].files}
        assert roles["roi.json"] == {f.role: f.sha256 for f in first.files}["roi.json"]
        models[name] = model
    assert arrays_of(models["one"]) == arrays_of(models["two"])


def test_a_picture_by_itself_has_the_models_region(patchcore: Path, images: Path, tmp_path: Path):
    rows = scored(images, patchcore, tmp_path / "scores")
    paths = by_place(tmp_path / "scores")
    detector = library.load(patchcore, settings=settings_of())
    table = pq.ParquetFile(sorted(images.rglob("*.parquet"))[0]).read()
    contents = table.column("image").to_pylist()[:4]
    ids, group = table.column("image_id").to_pylist(), table.column("group")[0].as_py()
    by_id = {row["image_id"]: (row, rows[place]) for place, row in paths.items()}
    pixels = np.asarray(Image.open(io.BytesIO(contents[0])).convert("RGB"))
    turned = np.where(inside_of(pixels.shape[1::-1])[..., None], pixels, 255 - pixels)
    found = detector.score([*contents, turned, Image.fromarray(turned)], group=group)
    for number, one in enumerate(found):
        row, _ = by_id[ids[number if number < 4 else 0]]
        assert one.image_score == row["image_score"]
        assert one.anomaly_map.ravel().tolist() == row["anomaly_map"]
        assert one.p_value == pytest.approx(row["p_value"], abs=1e-7)
    assert (
        _jpeg(found[0].heatmap())
        == (tmp_path / "scores" / by_id[ids[0]][0]["heatmap_path"]).read_bytes()
    )


def _jpeg(picture: Image.Image) -> bytes:
    from patchlake.pipeline.scores.heatmap import to_jpeg

    return to_jpeg(np.asarray(picture))


def test_a_heatmap_shows_the_outline(patchcore: Path, model: Path, images: Path, tmp_path: Path):
    def cyan(model: Path, out: Path) -> float:
        scored(images, model, out)
        row = next(iter(by_place(out).values()))
        picture = np.asarray(Image.open(out / row["heatmap_path"]).convert("RGB")).astype(int)
        return float((picture[..., 1:].min(axis=2) - picture[..., 0] > 60).mean())

    assert 0.003 < cyan(patchcore, tmp_path / "confined") < 0.1
    assert cyan(model, tmp_path / "whole") == 0


def test_a_model_of_masks_cannot_score_a_picture_by_itself(masked: Path, tmp_path: Path):
    fit.run(str(masked), str(tmp_path), settings_of(columns={"roi": "part_mask"}), LOCAL)
    with pytest.raises(ConfigError, match=r"columns.roi 'part_mask'.*score a table"):
        library.load(tmp_path, settings=settings_of())


def test_a_region_that_was_changed_by_hand_is_refused(patchcore: Path, images: Path, tmp_path):
    shutil.copytree(patchcore, tmp_path / "model")
    file = next((tmp_path / "model").rglob("roi-*.json"))
    file.write_text(file.read_text().replace("0.95", "0.94"))
    with pytest.raises(ModelError, match=r"roi-.* is damaged"):
        scored(images, tmp_path / "model", tmp_path / "scores")


def test_an_evaluation_goes_as_without(done: Done, images: Path):
    found = evaluate.run(str(images), str(done.scores))
    assert found.keys() == set(GROUPS)


def test_a_command_line_takes_polygons(patchlake, images: Path, tmp_path: Path):
    said_ = f"image.roi={{woven_cloth: [{CORNERS}]}}"
    found = patchlake("fit", images, tmp_path / "model", *TINY_FLAGS, "--set", said_)
    assert found.code == 0, found.err
    roles = [
        f.role for f in read_manifest(Folder(str(tmp_path / "model"))).groups["woven_cloth"].files
    ]
    assert "roi.json" in roles


@pytest.mark.slow
@pytest.mark.ray
def test_the_cluster_does_the_same(one_actor, images: Path, patchcore: Path, tmp_path: Path):
    from patchlake.pipeline.driver.execution import Execution

    local = scored(images, patchcore, tmp_path / "local")
    ray = Execution("ray", None)
    fit.run(str(images), str(tmp_path / "model"), with_region(), ray)
    assert arrays_of(tmp_path / "model") == arrays_of(patchcore)
    score.run(str(images), str(patchcore), str(tmp_path / "ray"), settings_of(), ray)
    assert said(tmp_path / "ray") == local
