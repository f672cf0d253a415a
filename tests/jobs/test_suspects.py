"""Bad images among the good: they are listed, and a robust fit is one without them."""

import io
import re
import shutil
from base64 import b64decode
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import fit, report, score, update, withdraw
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.withdraw import Withdrawal
from patchlake.pipeline.errors import ConfigError, ModelError
from patchlake.pipeline.model_store.models import Manifest, read_manifest, verify_file
from patchlake.pipeline.stopping import Stopped
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import SUSPECTS
from tests.conftest import LOCAL, TINY_FLAGS
from tests.jobs.test_methods import settings_of

BAD = ("noise.png", "stripes.png")
METHODS = (
    "patchcore",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("dn2", "mahalanobis", "padim", "spade")
    ),
)


def robust(method: str) -> Settings:
    return settings_of(method, robust=True)


@pytest.fixture(scope="module")
def lake(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 plates, and noise and stripes that somebody has filed as good plates, in two files."""
    table = ds.dataset(images, partitioning=None).to_table().sort_by("image_id")
    plates = [
        row
        for row in table.to_pylist()
        if row["group"] == "brushed_plate" and row["label"] == "good"
    ]
    assert len(plates) == 16
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    stripes = np.tile(np.repeat(np.array([0, 255], np.uint8), 8), (64, 4))
    bad = [
        {"image_id": name, "image": png(pixels), "label": "good"}
        for name, pixels in zip(BAD, (noise, stripes), strict=True)
    ]
    filed = [*plates[:7], bad[0], *plates[7:12], bad[1], *plates[12:]]
    every = [{**row, "group": "plates", "split": "train"} for row in filed]
    root = tmp_path_factory.mktemp("mixed")
    write(root, every)
    return root


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def write(root: Path, rows: list[dict[str, object]]) -> None:
    schema = pa.schema([(name, pa.string()) for name in ("image_id", "group", "split", "label")])
    schema = schema.append(pa.field("image", pa.binary()))
    for number, some in enumerate((rows[:9], rows[9:])):
        pq.write_table(pa.Table.from_pylist(some, schema=schema), root / f"{number}.parquet")


def suspects(model: Path) -> list[dict[str, object]]:
    table = pq.read_table(model / "suspects.parquet")
    assert table.schema.equals(SUSPECTS)
    return list(table.to_pylist())


def named(model: Path, flag: str) -> set[object]:
    return {row["image_id"] for row in suspects(model) if row[flag]}


def arrays(manifest: Manifest) -> dict[str, str]:
    """Digests of what a model scores with, and is judged by."""
    files = manifest.groups["plates"].files
    return {file.role: file.sha256 for file in files if not file.role.startswith("images.")}


@pytest.mark.parametrize("method", METHODS)
def test_a_robust_fit_is_one_of_the_images_that_it_keeps(method: str, lake: Path, tmp_path: Path):
    fit.run(str(lake), str(tmp_path / "plain"), settings_of(method), LOCAL)
    # Beside the one, the other may be nothing special: it takes a second look to see it.
    plain = named(tmp_path / "plain", "is_suspect")
    assert plain
    assert plain <= set(BAD)
    assert named(tmp_path / "plain", "left_out") == set()
    assert len(suspects(tmp_path / "plain")) == 18, "too few to list the most suspicious alone"

    found = fit.run(str(lake), str(tmp_path / "robust"), robust(method), LOCAL)
    out = named(tmp_path / "robust", "left_out")
    assert out >= set(BAD)
    record = found.groups["plates"]
    assert (record.images, record.unusable_images) == (18 - len(out), {"suspect": len(out)})

    kept = tmp_path / "kept"
    kept.mkdir()
    for path in sorted(lake.glob("*.parquet")):
        table = pq.read_table(path)
        mask = [one not in out for one in table.column("image_id").to_pylist()]
        pq.write_table(table.filter(pa.array(mask)), kept / path.name)
    clean = fit.run(str(kept), str(tmp_path / "clean"), settings_of(method), LOCAL)
    # The rows' places are other ones; nothing else is.
    roles = {role for role in arrays(clean) if not role.startswith(("provenance", "gallery"))}
    assert {r: arrays(found)[r] for r in roles} == {r: arrays(clean)[r] for r in roles}
    assert record.digest != clean.groups["plates"].digest, "who scores can tell"


def test_nothing_of_the_rounds_is_left_in_the_model(lake: Path, tmp_path: Path):
    found = fit.run(str(lake), str(tmp_path), robust("spade"), LOCAL)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    wanted = {file.name for record in found.groups.values() for file in record.files}
    assert {name for name in files if not name.startswith("_runs")} == {
        *wanted,
        "model.json",
        "suspects.parquet",
    }
    assert not [name for name in files if "partials" in name]


def test_the_published_model_is_whole_until_another_one_is(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first look of a robust fit makes the very files of a fit of all images."""
    before = fit.run(str(lake), str(tmp_path), settings_of("spade"), LOCAL)

    def stopped(*_: object, **__: object) -> None:
        raise Stopped("stopped before it was published")

    monkeypatch.setattr(fit, "publish", stopped)
    with pytest.raises(Stopped):
        fit.run(str(lake), str(tmp_path), robust("spade"), LOCAL, overwrite=True)
    assert read_manifest(Folder(str(tmp_path))) == before
    for file in before.groups["plates"].files:
        verify_file(Folder(str(tmp_path)), file)


def test_where_nothing_is_suspect_a_robust_fit_is_the_fit(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Of random weights and 12 images, some good one may well stand out.
    monkeypatch.setattr("patchlake.pipeline.groups.suspects._SUSPECT", 1e9)
    fit.run(str(images), str(tmp_path / "plain"), settings_of("patchcore"), LOCAL)
    fit.run(str(images), str(tmp_path / "robust"), robust("patchcore"), LOCAL)
    both = [read_manifest(Folder(str(tmp_path / name))).groups for name in ("plain", "robust")]
    for group, record in both[0].items():
        other = both[1][group]
        assert other.unusable_images == {}
        assert {f.role: f.sha256 for f in other.files} == {f.role: f.sha256 for f in record.files}


def test_an_update_does_not_bring_back_what_was_left_out(lake: Path, tmp_path: Path):
    model = tmp_path / "model"
    before = fit.run(str(lake), str(model), robust("patchcore"), LOCAL)
    after = update.run(str(lake), str(model), settings_of("patchcore"), LOCAL)
    assert after.groups == before.groups
    assert named(model, "left_out") >= set(BAD)


@pytest.mark.slow
def test_what_was_left_out_has_not_left(lake: Path, tmp_path: Path):
    """A model has no verdicts when a tenth of its images have left; these were never in it."""
    model, kept = tmp_path / "model", lake / "0.parquet"
    fitted = fit.run(str(lake), str(model), robust("patchcore"), LOCAL).groups["plates"]
    assert fitted.unusable_images["suspect"] > 0.1 * 18
    leaving = Withdrawal((pq.read_table(kept)["image_id"][0].as_py(),))
    after = withdraw.run(str(model), leaving, settings_of("patchcore"), LOCAL).groups["plates"]
    assert after.images == fitted.images - 1
    assert after.facts["judged_parts"] == after.images


def test_the_list_follows_updates_and_withdrawals(lake: Path, tmp_path: Path):
    model, half = tmp_path / "model", tmp_path / "half"
    half.mkdir()
    table = pq.read_table(lake / "0.parquet")
    pq.write_table(table, half / "0.parquet")
    other = table.set_column(
        table.column_names.index("group"), "group", pa.array(["other"] * len(table))
    )
    pq.write_table(other, half / "other.parquet")
    fit.run(str(half), str(model), settings_of("dn2"), LOCAL)
    first = suspects(model)
    assert not first, "nine images are too few"
    update.run(str(lake), str(model), settings_of("dn2"), LOCAL)
    assert named(model, "is_suspect") == set(BAD)
    withdraw.run(str(model), Withdrawal(BAD[:1], group="plates"), settings_of("dn2"), LOCAL)
    assert BAD[0] not in {row["image_id"] for row in suspects(model)}


def pixels_of(content: object) -> np.ndarray:
    assert isinstance(content, bytes)
    image = Image.open(io.BytesIO(content))
    return np.asarray(image.convert("RGB").resize((64, 64)), np.float64)


def test_a_suspect_is_shown(lake: Path, tmp_path: Path):
    """By the file that it was fitted on: what lies in its place now may be another image."""
    images, model = tmp_path / "images", tmp_path / "model"
    shutil.copytree(lake, images)
    fit.run(str(images), str(model), settings_of("dn2"), LOCAL)
    table = ds.dataset(lake, partitioning=None).to_table().to_pylist()
    originals = {row["image_id"]: pixels_of(row["image"]) for row in table}
    listed = suspects(model)
    assert len(listed) == 18
    for row in listed:
        assert max(Image.open(io.BytesIO(row["picture"])).size) <= 192
        picture = pixels_of(row["picture"])
        off = {name: np.abs(picture - one).mean() for name, one in originals.items()}
        assert min(off, key=off.__getitem__) == row["image_id"]

    # Another image lies in the place of the last one, and the first file is gone.
    (images / "0.parquet").unlink()
    rows = pq.read_table(images / "1.parquet").to_pylist()
    gone = rows[-1]["image_id"]
    rows[-1]["image"] = rows[0]["image"]
    other = pa.Table.from_pylist(rows, pq.read_schema(lake / "1.parquet"))
    pq.write_table(other, images / "1.parquet")
    (model / "suspects.parquet").unlink()
    withdraw.run(str(model), Withdrawal(BAD[:1]), settings_of("dn2"), LOCAL)
    shown = {row["image_id"]: row["picture"] is not None for row in suspects(model)}
    of_second = {row["image_id"] for row in rows} - {gone}
    assert {name for name, there in shown.items() if there} == of_second


def test_the_report_shows_suspects(lake: Path, tmp_path: Path):
    model, scores, page = (tmp_path / name for name in ("model", "scores", "page.html"))
    fit.run(str(lake), str(model), settings_of("dn2"), LOCAL)
    score.run(str(lake), [str(model)], str(scores), settings_of("dn2"), LOCAL)
    report.run(str(scores), str(page))
    (section,) = re.findall(r'<section id="suspects".*?</section>', page.read_text(), re.DOTALL)
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', section)
    by_id = {row["image_id"]: row["picture"] for row in suspects(model)}
    assert sorted(map(b64decode, found)) == sorted(by_id[name] for name in BAD)


def test_pictures_stay_where_images_do_not(lake: Path, tmp_path: Path):
    images, model = tmp_path / "images", tmp_path / "model"
    shutil.copytree(lake, images)
    fit.run(str(images), str(model), settings_of("dn2"), LOCAL)
    before = {row["image_id"]: row["picture"] for row in suspects(model)}
    shutil.rmtree(images)
    withdraw.run(str(model), Withdrawal(BAD[:1]), settings_of("dn2"), LOCAL)
    after = {row["image_id"]: row["picture"] for row in suspects(model)}
    assert after == {name: jpeg for name, jpeg in before.items() if name != BAD[0]}


def test_a_list_of_before_there_were_pictures(lake: Path, tmp_path: Path):
    fit.run(str(lake), str(tmp_path), settings_of("dn2"), LOCAL)
    file = tmp_path / "suspects.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["sha256", "picture"]), file)
    withdraw.run(str(tmp_path), Withdrawal(BAD[:1]), settings_of("dn2"), LOCAL)
    assert all(row["picture"] for row in suspects(tmp_path))
    pq.write_table(pq.read_table(file).drop_columns(["score"]), file)
    with pytest.raises(ModelError, match="its columns are group, image_id"):
        withdraw.run(str(tmp_path), Withdrawal(BAD[1:]), settings_of("dn2"), LOCAL)


def test_a_damaged_list_is_named(lake: Path, tmp_path: Path):
    fit.run(str(lake), str(tmp_path), settings_of("dn2"), LOCAL)
    (tmp_path / "suspects.parquet").write_bytes(b"no Parquet")
    with pytest.raises(ModelError, match=r"suspects\.parquet.*remove it"):
        withdraw.run(str(tmp_path), Withdrawal(BAD[:1]), settings_of("dn2"), LOCAL)


def test_a_method_that_knows_no_single_image_refuses(lake: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="'cfa' is trained on all of them together"):
        fit.run(str(lake), str(tmp_path), robust("cfa"), LOCAL)


def test_a_region_of_interest_stays_with_the_images_that_are_kept(lake: Path, tmp_path: Path):
    region = {"plates": [[[0.05, 0.1], [0.95, 0.1], [0.95, 0.9], [0.05, 0.9]]]}
    image = {"resize": [64, 64], "roi": region}
    found = fit.run(
        str(lake), str(tmp_path), settings_of("patchcore", robust=True, image=image), LOCAL
    )
    assert named(tmp_path, "left_out") >= set(BAD)
    assert "roi.json" in arrays(found)


def test_the_command(lake: Path, tmp_path: Path, patchlake):
    model = tmp_path / "model"
    assert patchlake("fit", lake, model, *TINY_FLAGS, "--robust").code == 0
    assert named(model, "left_out") >= set(BAD)
    refused = patchlake("fit", lake, model, *TINY_FLAGS, "--robust", "--update")
    assert refused.code == 2
    assert "--update cannot be combined with --robust" in refused.err
    other = patchlake("fit", lake, model, *TINY_FLAGS)
    assert "holds a different model" in other.err


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_ray_leaves_out_the_same(method: str, lake: Path, tmp_path: Path, one_actor: None):
    models = {}
    for name in ("local", "ray"):
        execution = Execution(name, None)
        models[name] = fit.run(str(lake), str(tmp_path / name), robust(method), execution)
    assert models["local"].groups == models["ray"].groups
    assert suspects(tmp_path / "local") == suspects(tmp_path / "ray")
