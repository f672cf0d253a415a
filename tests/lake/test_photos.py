"""photos: small photos of scored images, and what is said where there is none."""

import hashlib
import io
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchlake.pipeline.config import Settings, StorageSettings, load_settings
from patchlake.pipeline.driver import compact, ingest, score
from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images.decode import decode_photo
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.images.pictures import read_photo
from patchlake.pipeline.lake.photos import Photos, Place
from patchlake.pipeline.reading.planning import plan
from patchlake.pipeline.record import runs
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.sources.sources import Arrangement
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, Store, read_scores

STORAGE = StorageSettings()


def _encoded(width: int, height: int, kind: str = "PNG", **options: object) -> bytes:
    pixels = np.linspace(0, 255, width * height * 3).astype(np.uint8).reshape(height, width, 3)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


def _begun(images: Path, scores: Path, settings: Settings) -> Photos:
    """Record a run over a lake, as `score` begins one, and return its photos."""
    lake, table = Folder.at(str(images)), Folder.at(str(scores))
    parts.bind_source(table, lake)
    record = runs.RunRecord(
        run="r",
        verb="score",
        images=lake.root,
        where=None,
        version="abc",
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        settings=settings,
    )
    runs.begin(table, record, plan(lake, settings).kept)
    found = Photos.of(table, STORAGE)
    assert found is not None
    return found


def _size(jpeg: bytes | None) -> tuple[int, int]:
    assert jpeg is not None
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.format == "JPEG"
        return image.size


def test_a_photo_is_of_the_row_that_is_named_whatever_the_order(images: Path, scores: Path) -> None:
    photos = Photos.of(Folder.at(str(scores)), STORAGE)
    assert photos is not None
    rows = read_scores(scores).to_pylist()
    places = [Place(row["source_path"], row["source_row"]) for row in reversed(rows)]
    found = photos.read([*places, places[0]], 40)
    assert [photo.place for photo in found] == [*places, places[0]]
    for photo, row in zip(found, reversed(rows), strict=False):
        table = pq.ParquetFile(images / photo.place.source_path).read(columns=["image"])
        content = table.column("image")[photo.place.source_row].as_py()
        assert photo.sha256 == hashlib.sha256(content).hexdigest()
        assert (photo.width, photo.height) == (row["width"], row["height"])
        assert max(_size(photo.jpeg)) == 40
        with Image.open(io.BytesIO(content)) as whole, Image.open(io.BytesIO(photo.jpeg)) as small:
            same = np.asarray(whole.convert("RGB").resize(small.size, Image.Resampling.BILINEAR))
            differ = np.abs(same.astype(float) - np.asarray(small.convert("RGB")))
        assert differ.mean() < 12
    assert photos.read(places, 40) == found[:-1]


def test_a_compacted_table_has_the_photos_of_its_score_table(scores: Path, tmp_path: Path) -> None:
    compact.run(str(scores), str(tmp_path / "compacted"))
    photos = Photos.of(Folder.at(str(tmp_path / "compacted")), STORAGE)
    assert photos is not None
    row = read_scores(scores).to_pylist()[0]
    (photo,) = photos.read([Place(row["source_path"], row["source_row"])], 32)
    assert _size(photo.jpeg) == (32, 32)


def test_the_decoding_process_gives_what_this_process_gives() -> None:
    for content in (_encoded(30, 20), _encoded(900, 2000, "JPEG"), _encoded(300, 200, "TIFF")):
        assert decode_photo(content, Limits(), 64) == read_photo(content, Limits(), 64)
    for content in (b"", b"P5 9", _encoded(300, 200)[:-900]):
        with pytest.raises(ImageError) as here:
            read_photo(content, Limits(), 64)
        with pytest.raises(ImageError) as apart:
            decode_photo(content, Limits(), 64)
        assert (here.value.status, str(here.value)) == (apart.value.status, str(apart.value))


def test_a_small_image_keeps_its_size_and_an_upright_one_is_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    contents = [
        _encoded(30, 20),
        _encoded(300, 200, "JPEG", exif=exif),
        _encoded(4000, 3000, "JPEG"),
    ]
    (tmp_path / "images").mkdir()
    pq.write_table(
        pa.table({"jpeg": contents, "line": ["a"] * 3}), tmp_path / "images" / "a.parquet"
    )
    settings = load_settings(flags={"columns": {"image": "jpeg", "group": "line"}})
    photos = _begun(tmp_path / "images", tmp_path / "scores", settings)
    found = photos.read([Place("a.parquet", number) for number in range(3)], 100)
    assert [_size(photo.jpeg) for photo in found] == [(30, 20), (67, 100), (100, 75)]
    assert [(photo.width, photo.height) for photo in found] == [(30, 20), (200, 300), (4000, 3000)]


def test_rows_lie_where_they_lie_in_many_row_groups(tmp_path: Path) -> None:
    contents = [_encoded(10 + number, 8) for number in range(200)]
    (tmp_path / "images").mkdir()
    pq.write_table(
        pa.table({"image": contents, "group": ["a"] * 200}),
        *[tmp_path / "images" / "a.parquet"],
        row_group_size=70,
    )
    photos = _begun(tmp_path / "images", tmp_path / "scores", Settings())
    numbers = [199, 0, 69, 70, 71, 139, 140, 66, 3, 198, *range(100, 130)]
    found = photos.read([Place("a.parquet", number) for number in numbers], 500)
    assert [photo.width for photo in found] == [10 + number for number in numbers]


def test_what_cannot_be_shown_says_why(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.png").write_bytes(_encoded(9, 9))
    (tmp_path / "secret.png").write_bytes(_encoded(9, 9))
    uris = [None, f"{tmp_path}/pool/a.png", f"{tmp_path}/pool/../secret.png", f"{tmp_path}/pool/b"]
    table = pa.table(
        {
            "image": pa.array([_encoded(9, 9)[:60], *[None] * 4, b"x" * 3000], pa.binary()),
            "uri": pa.array([*uris, None, None], pa.string()),
            "group": ["a"] * 6,
        }
    )
    pq.write_table(table, tmp_path / "images" / "a.parquet")
    limits = {"image": {"uri_prefixes": [str(tmp_path / "pool")], "max_bytes": 2000}}
    photos = _begun(tmp_path / "images", tmp_path / "scores", load_settings(flags=limits))
    places = [Place("a.parquet", number) for number in range(7)]
    beyond = [Place("b.parquet", 0), Place("../secret.png", 0), Place("/etc/passwd", 0)]
    found = photos.read([*places, *beyond], 50)
    assert [photo.jpeg is None for photo in found] == [n != 1 for n in range(10)]
    said = [photo.error or "" for photo in found]
    assert "broken" in said[0] or "truncated" in said[0] or "ends" in said[0], said[0]
    assert "lies below none of image.uri_prefixes" in said[2]
    assert "no such file" in said[3]
    assert "neither image bytes nor a URI" in said[4]
    assert "image.max_bytes is 2000" in said[5]
    assert "has no row 6" in said[6]
    assert "not there any more" in said[7]
    assert "no file below" in said[8]
    assert "no file below" in said[9]
    # The bytes that were there were read.
    assert [photo.sha256 is not None for photo in found[:6]] == [True, True, *[False] * 3, True]


def test_a_file_that_changed_since_it_was_scored_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a.parquet"
    pq.write_table(pa.table({"image": [_encoded(9, 9)], "group": ["a"]}), path)
    photos = _begun(tmp_path / "images", tmp_path / "scores", Settings())
    assert photos.read([Place("a.parquet", 0)], 50)[0].error is None
    pq.write_table(pa.table({"image": [_encoded(99, 9)], "group": ["a"]}), path)
    (photo,) = photos.read([Place("a.parquet", 0)], 50)
    assert photo.jpeg is None
    assert "changed since it was scored" in str(photo.error)


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "a.parquet"
    pq.write_table(pa.table({"image": [_encoded(90, 90)], "group": ["a"]}), path)
    table = Folder.at(str(tmp_path / "scores"))
    parts.bind_source(table, Folder.at(str(tmp_path / "images")))
    photos = Photos.of(table, STORAGE)
    assert photos is not None
    assert photos.read([Place("a.parquet", 0)], 50)[0].error is None
    path.write_bytes(path.read_bytes()[:-40])
    (photo,) = photos.read([Place("a.parquet", 0)], 50)
    assert "cannot be read" in str(photo.error)


def test_images_that_are_gone_are_none(tmp_path: Path) -> None:
    table = Folder.at(str(tmp_path / "scores"))
    assert Photos.of(table, STORAGE) is None
    parts.bind_source(table, Folder.at(str(tmp_path / "images")))
    assert Photos.of(table, STORAGE) is None


def test_the_newest_run_of_a_version_says_how_a_file_was(
    images: Path, model: Path, tmp_path: Path, tiny: Settings
) -> None:
    lake = tmp_path / "images"
    shutil.copytree(images, lake)
    score.run(str(lake), str(model), str(tmp_path / "scores"), tiny, LOCAL)
    table = Folder.at(str(tmp_path / "scores"))
    (old,) = parts.versions(table)
    first = sorted(lake.rglob("*.parquet"))[0]
    place = Place(str(first.relative_to(lake)), 0)
    pq.write_table(pq.ParquetFile(first).read().slice(0, 4), first)
    changed = Photos.of(table, STORAGE)
    assert changed is not None
    assert "changed" in str(changed.read([place], 50)[0].error)
    score.run(str(lake), str(model), str(tmp_path / "scores"), tiny, LOCAL)
    current = Photos.of(table, STORAGE, old)
    assert current is not None
    assert current.read([place], 50)[0].error is None


@pytest.mark.s3
@pytest.mark.slow
def test_photos_of_a_lake_in_s3(store: Store, pictures: Path, model: Path) -> None:
    settings = store.settings()
    ingest.run(str(pictures), store.uri("images"), Arrangement(), settings, LOCAL)
    score.run(store.uri("images"), str(model), store.uri("scores"), settings, LOCAL)
    photos = Photos.of(Folder.at(store.uri("scores"), settings.storage), settings.storage)
    assert photos is not None
    name = next(entry.name for entry in Folder.at(store.uri("images"), settings.storage).find())
    found = photos.read([Place(name, 3), Place("none.parquet", 0)], 50)
    assert _size(found[0].jpeg) == (50, 50)
    assert "not there any more" in str(found[1].error)


def test_settings_of_tiny_are_those_of_the_record(scores: Path) -> None:
    photos = Photos.of(Folder.at(str(scores)), STORAGE)
    assert photos is not None
    assert photos.settings.image.resize == tuple(TINY["image"]["resize"])
