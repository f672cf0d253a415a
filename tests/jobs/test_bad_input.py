"""Each kind of bad input: an error row or one clear message, and the rest of the job is done."""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import score
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.lake.plan import plan_fragments
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.stages.batch import FragmentBatch, FragmentResult, result_of
from patchlake.pipeline.stages.decode import Decode
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import IMAGES
from tests.conftest import LOCAL, TINY, TINY_FLAGS, by_place, read_scores


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(), "JPEG", exif=exif)


JPEG = encoded(picture(), "JPEG")
SIXTEEN_BIT = Image.fromarray(np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20)


@dataclass(frozen=True)
class Case:
    """A cell of the images table, and what its row must say."""

    content: bytes | None
    status: str
    error: str | None = None
    size: tuple[int, int] | None = (64, 48)


CASES = {
    "truncated JPEG": Case(JPEG[: len(JPEG) // 2], "unreadable", "broken", None),
    "empty file": Case(b"", "unreadable", "not an image", None),
    "zero bytes": Case(b"\0" * 1000, "unreadable", "not an image", None),
    "text named .png": Case(b"shift 2: camera cleaned", "unreadable", "not an image", None),
    "16-bit": Case(encoded(SIXTEEN_BIT), "ok"),
    "CMYK": Case(encoded(picture("CMYK"), "JPEG"), "ok"),
    "palette": Case(encoded(picture("P")), "ok"),
    "RGBA": Case(encoded(picture("RGBA")), "ok"),
    "EXIF-rotated": Case(rotated(), "ok", size=(48, 64)),
    "animated": Case(encoded(picture(), save_all=True, append_images=[picture("L")]), "ok"),
    "GIF": Case(encoded(picture(), "GIF"), "unsupported", "image.formats", None),
    "1x1": Case(encoded(Image.new("RGB", (1, 1))), "ok", size=(1, 1)),
    "20000x20000": Case(encoded(Image.new("1", (20000, 20000))), "too_large", "20000x20000", None),
    "float TIFF": Case(encoded(picture("F"), "TIFF"), "unsupported", "mode F", None),
    "null cell": Case(None, "missing", "neither", None),
}


def write_lake(folder: Path, contents: dict[str, bytes | None], group: str) -> Path:
    rows = [
        {"image_id": name, "image": content, "group": group} for name, content in contents.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=IMAGES), folder / "images.parquet")
    return folder


@pytest.fixture(scope="module")
def bad_scores(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scores of one table that holds every case, a good image before and after each."""
    root = tmp_path_factory.mktemp("bad")
    contents: dict[str, bytes | None] = {}
    for name, case in CASES.items():
        contents[f"before {name}"] = JPEG
        contents[name] = case.content
    write_lake(root / "images", contents, "woven_cloth")
    settings = load_settings(flags=TINY | {"max_failed": 1.0})
    score.run(str(root / "images"), str(model), str(root / "scores"), settings, LOCAL)
    return root / "scores"


@pytest.mark.parametrize("name", CASES)
def test_a_bad_image_is_a_row_that_says_why(name: str, bad_scores: Path):
    rows = {row["image_id"]: row for row in read_scores(bad_scores).to_pylist()}
    assert len(rows) == 2 * len(CASES)
    case, row = CASES[name], rows[name]
    assert row["status"] == case.status
    if case.status == "ok":
        assert row["error"] is None
        assert row["image_score"] > 0
        assert (row["width"], row["height"]) == case.size
        assert (bad_scores / row["heatmap_path"]).is_file()
    else:
        assert case.error in row["error"]
        assert row["image_score"] is row["anomaly_map"] is row["heatmap_path"] is None
    assert rows[f"before {name}"]["status"] == "ok"
    assert rows[f"before {name}"]["image_score"] == rows["before 1x1"]["image_score"]


@pytest.mark.ray
@pytest.mark.slow
def test_ray_reports_bad_images_in_the_same_bytes(
    model: Path, bad_scores: Path, tmp_path: Path, one_actor: None
):
    settings = load_settings(flags=TINY | {"max_failed": 1.0})
    lake = bad_scores.parent / "images"
    on_ray = Execution("ray", None)
    score.run(str(lake), str(model), str(tmp_path), settings, on_ray)
    assert by_place(tmp_path) == by_place(bad_scores)


def test_too_many_error_rows_end_with_exit_code_3_and_all_rows(
    model: Path, tmp_path: Path, patchlake
):
    write_lake(tmp_path / "images", {"good": JPEG, "bad": b"no"}, "woven_cloth")
    result = patchlake("score", tmp_path / "images", model, tmp_path / "scores", *TINY_FLAGS)
    assert result.code == 3
    assert "1 of 2 images are error rows" in result.err
    assert len(read_scores(tmp_path / "scores")) == 2


def test_a_group_without_a_model_gets_rows_that_say_so(model: Path, tmp_path: Path, patchlake):
    write_lake(tmp_path / "images", {"a": JPEG, "b": None}, "new_product")
    result = patchlake("score", tmp_path / "images", model, tmp_path / "scores", *TINY_FLAGS)
    assert result.code == 3
    assert "no group 'new_product'" in result.err
    rows = read_scores(tmp_path / "scores").to_pylist()
    assert [row["status"] for row in rows] == ["no_model", "no_model"]
    assert all(row["model_id"] == "" for row in rows)


def test_duplicate_image_ids_are_all_kept_and_told(model: Path, tmp_path: Path, patchlake):
    rows = [{"image_id": "same", "image": JPEG, "group": "woven_cloth"}] * 3
    (tmp_path / "images").mkdir()
    table = pa.Table.from_pylist(rows, schema=IMAGES)
    pq.write_table(table, tmp_path / "images" / "images.parquet")
    result = patchlake("score", tmp_path / "images", model, tmp_path / "scores", *TINY_FLAGS)
    assert result.code == 0
    assert "1 image_ids occur more than once" in result.err
    assert sorted(by_place(tmp_path / "scores")) == [("images.parquet", i) for i in range(3)]


def test_a_missing_column_is_named_with_the_setting_that_maps_it(
    model: Path, tmp_path: Path, patchlake
):
    (tmp_path / "images").mkdir()
    table = pa.table({"id": ["a"], "jpeg": [JPEG], "group": ["woven_cloth"]})
    pq.write_table(table, tmp_path / "images" / "images.parquet")
    command = ("score", tmp_path / "images", model, tmp_path / "scores", *TINY_FLAGS)
    result = patchlake(*command)
    assert result.code == 2
    assert "'image'" in result.err
    assert "columns.image=NAME" in result.err
    mapped = ("--set", "columns.image=jpeg")
    assert patchlake(*command, *mapped).code == 0
    # An image without a name is called by its place.
    [row] = read_scores(tmp_path / "scores").to_pylist()
    assert row["image_id"] == "images.parquet:0"
    assert (
        patchlake(
            *command[:3], tmp_path / "named", *TINY_FLAGS, *mapped, "--set", "columns.image_id=id"
        ).code
        == 0
    )
    assert read_scores(tmp_path / "named").column("image_id").to_pylist() == ["a"]


def test_extra_columns_are_passed_through(model: Path, tmp_path: Path, tiny: Settings):
    (tmp_path / "images").mkdir()
    columns = {"image_id": ["a", "b"], "image": [JPEG, b""], "group": ["woven_cloth"] * 2}
    table = pa.table(columns | {"station": ["left", None], "lot": [7, 8]})
    pq.write_table(table, tmp_path / "images" / "images.parquet")
    flags = TINY | {"columns": {"extra": ["station", "lot"]}, "max_failed": 1.0}
    score.run(
        str(tmp_path / "images"),
        str(model),
        str(tmp_path / "scores"),
        load_settings(flags=flags),
        LOCAL,
    )
    rows = read_scores(tmp_path / "scores").to_pylist()
    assert [(row["station"], row["lot"]) for row in rows] == [("left", 7), (None, 8)]


def test_an_unknown_setting_names_the_nearest(images: Path, model: Path, tmp_path: Path, patchlake):
    result = patchlake("score", images, model, tmp_path, "--set", "fragment_image=3")
    assert result.code == 2
    assert "did you mean 'fragment_images'?" in result.err
    result = patchlake("fit", images, tmp_path, "--set", "method.coreset_fracton=0.5", *TINY_FLAGS)
    assert result.code == 2
    assert "did you mean 'coreset_fraction'?" in result.err


def test_a_model_with_a_flipped_byte_is_refused(
    images: Path, model: Path, tmp_path: Path, patchlake
):
    damaged = tmp_path / "model"
    for file in model.rglob("*"):
        if file.is_file():
            (damaged / file.relative_to(model)).parent.mkdir(parents=True, exist_ok=True)
            (damaged / file.relative_to(model)).write_bytes(file.read_bytes())
    bank = next(damaged.glob("g=woven_cloth/*.faiss"))
    content = bytearray(bank.read_bytes())
    content[len(content) // 2] ^= 1
    bank.write_bytes(content)
    result = patchlake("score", images, damaged, tmp_path / "scores", *TINY_FLAGS)
    assert result.code == 2
    assert bank.name in result.err
    assert "damaged" in result.err
    assert not (tmp_path / "scores").exists(), "nothing is begun"


def test_other_weights_than_those_of_the_fit_are_refused(
    images: Path, model: Path, tmp_path: Path, patchlake, tiny: Settings
):
    from safetensors.torch import save_file
    from timm import create_model

    other = create_model("resnet10t.c3_in1k", pretrained=False)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    flags = (*TINY_FLAGS, "--weights", tmp_path / "other.safetensors")
    result = patchlake("score", images, model, tmp_path / "scores", *flags)
    assert result.code == 2
    assert "SHA-256" in result.err
    wrong = create_model("mobilenetv3_small_050", pretrained=False)
    save_file(wrong.state_dict(), tmp_path / "wrong.safetensors")
    flags = (*TINY_FLAGS, "--weights", tmp_path / "wrong.safetensors")
    result = patchlake("fit", images, tmp_path / "model", *flags)
    assert result.code == 2
    assert "not weights of 'resnet10t.c3_in1k'" in result.err


def test_uris_are_read_below_the_configured_prefixes_only(model: Path, tmp_path: Path, patchlake):
    allowed, secret = tmp_path / "allowed", tmp_path / "secret"
    for folder in (allowed, secret):
        folder.mkdir()
        (folder / "a.jpg").write_bytes(JPEG)
    uris = {
        "inside": f"{allowed}/a.jpg",
        "absent": f"{allowed}/b.jpg",
        "outside": f"{secret}/a.jpg",
        "climbing": f"{allowed}/../secret/a.jpg",
        "linked": f"{allowed}/link.jpg",
        "a folder": str(allowed / "folder"),
        "a pipe": f"{allowed}/pipe.jpg",
        "a NUL": f"{allowed}/a\0.jpg",
        "too long": f"{allowed}/{'x' * 300}",
        "a secret": "https://h/x.jpg?X-Amz-Signature=5ecret",
    }
    (allowed / "folder").mkdir()
    (allowed / "link.jpg").symlink_to(secret / "a.jpg")
    os.mkfifo(allowed / "pipe.jpg")
    (tmp_path / "images").mkdir()
    table = pa.table(
        {"image_id": list(uris), "uri": list(uris.values()), "group": ["woven_cloth"] * len(uris)}
    )
    pq.write_table(table, tmp_path / "images" / "images.parquet")
    patchlake(
        *("score", tmp_path / "images", model, tmp_path / "scores", *TINY_FLAGS),
        *("--set", f"image.uri_prefixes=['{allowed}']"),
    )
    rows = {row["image_id"]: row for row in read_scores(tmp_path / "scores").to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "inside": "ok",
        "absent": "missing",
        "outside": "missing",
        "climbing": "missing",
        "linked": "missing",
        "a folder": "unreadable",
        "a pipe": "unreadable",
        "a NUL": "missing",
        "too long": "missing",
        "a secret": "missing",
    }
    assert "5ecret" not in str(rows)


def test_a_model_or_lake_that_is_not_there_is_one_message(
    images: Path, model: Path, tmp_path: Path, patchlake
):
    assert "patchlake fit" in patchlake("score", images, tmp_path / "no", tmp_path / "s").err
    result = patchlake("score", tmp_path / "none", model, tmp_path / "s", *TINY_FLAGS)
    assert result.code == 2
    assert "patchlake ingest" in result.err
    assert patchlake("status", tmp_path / "s").code == 2


def test_a_file_that_vanishes_between_plan_and_read_fails_its_fragment(
    tmp_path: Path, tiny: Settings
):
    write_lake(tmp_path / "images", {"a": JPEG}, "woven_cloth")
    lake = Folder.at(str(tmp_path / "images"))
    planned = plan_fragments(lake, tiny, None).kept[:1]
    (tmp_path / "images" / "images.parquet").unlink()
    decode = Decode(Source(lake, tiny.columns, tiny.image, Geometry((64, 64), None)), {})
    batch = FragmentBatch.from_arrow(decode(planned.table))
    assert "vanished since it was planned" in str(batch.failure)
    assert FragmentResult.from_arrow(result_of(batch)).failure == batch.failure


def test_a_row_without_an_id_is_called_by_its_place(model: Path, tmp_path: Path, patchlake):
    (tmp_path / "images").mkdir()
    table = pa.table({"image_id": ["a", None], "image": [JPEG, JPEG], "group": ["woven_cloth"] * 2})
    pq.write_table(table, tmp_path / "images" / "images.parquet")
    command = ("score", tmp_path / "images", model, tmp_path / "scores", *TINY_FLAGS)
    assert patchlake(*command).code == 0
    rows = read_scores(tmp_path / "scores").to_pylist()
    assert [row["image_id"] for row in rows] == ["a", "images.parquet:1"]


def test_a_strip_that_would_grow_beyond_memory_is_too_large():
    with pytest.raises(ImageError, match="256x25600000"):
        Geometry(256, 224).apply(Image.new("RGB", (1, 100_000)))
