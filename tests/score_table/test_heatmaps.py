"""One heatmap by its path: of either store, and of nothing else."""

import os
import shutil
import uuid
from pathlib import Path

import pytest

from patchlake.pipeline.config import HeatmapStore, StorageSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.score_table import heatmaps
from patchlake.pipeline.score_table.packed import pack
from patchlake.pipeline.storage.folder import Folder

KEY = "0123456789abcdef0123"
PICTURES = {row: b"\xff\xd8\xff" + bytes([row]) * 50 for row in (0, 17, 200)}
STORAGE = StorageSettings()


def put(scores: Folder, store: HeatmapStore) -> None:
    if store == "packed":
        heatmaps.put_packed(scores, KEY, PICTURES)
        return
    for row, picture in PICTURES.items():
        heatmaps.put_file(scores, KEY, row, picture)


@pytest.fixture(params=["disk", "memory"])
def scores(request: pytest.FixtureRequest, tmp_path: Path):
    # A folder may be called whatever a path may be.
    if request.param == "disk":
        yield Folder.at(str(tmp_path / "of #1.zip" / "_heatmaps"))
        return
    memory = Folder.at(f"memory://{uuid.uuid4().hex}/scores")
    yield memory
    memory.remove("", recursive=True)


@pytest.mark.parametrize("store", ["files", "packed"])
def test_what_is_put_is_read_by_its_path_and_removed_by_its_key(scores: Folder, store):
    put(scores, store)
    assert len(scores.find()) == {"files": 3, "packed": 1}[store]
    for row, picture in PICTURES.items():
        path = f"{scores.root}/{heatmaps.heatmap_name(KEY, row, store)}"
        assert heatmaps.read(path, STORAGE) == picture
    scores.write(f"_heatmaps/{KEY[::-1]}.zip", b"another's")
    heatmaps.remove(scores, KEY)
    heatmaps.remove(scores, KEY)
    assert [entry.name for entry in scores.find()] == [f"_heatmaps/{KEY[::-1]}.zip"]


def test_a_path_relative_to_here_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    put(Folder.at(str(tmp_path / "scores")), "packed")
    monkeypatch.chdir(tmp_path)
    assert heatmaps.read(f"scores/_heatmaps/{KEY}.zip#17.jpg", STORAGE) == PICTURES[17]
    monkeypatch.chdir(tmp_path / "scores")
    assert heatmaps.read(f"_heatmaps/{KEY}.zip#17.jpg", STORAGE) == PICTURES[17]


def test_a_fragment_without_pictures_has_no_zip(tmp_path: Path):
    heatmaps.put_packed(Folder.at(str(tmp_path)), KEY, {})
    assert not list(tmp_path.iterdir())


def test_an_archive_of_a_table_is_read(tmp_path: Path):
    put(Folder.at(str(tmp_path / "table" / "scores")), "packed")
    shutil.make_archive(str(tmp_path / "a"), "zip", tmp_path / "table")
    path = f"zip://scores/_heatmaps/{KEY}.zip#0.jpg::{tmp_path}/a.zip"
    assert heatmaps.read(path, STORAGE) == PICTURES[0]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "scores",
        "/etc/passwd",
        "scores/_heatmaps/../../etc/passwd",
        f"scores/_heatmaps/{KEY}/../../x.jpg",
        f"scores/_heatmaps/{KEY}.zip",
        f"scores/_heatmaps/{KEY}.zip#",
        f"scores/_heatmaps/{KEY}.zip#17",
        f"scores/_heatmaps/{KEY}.zip#../17.jpg",
        f"scores/_heatmaps/{KEY}.zip#17.jpg\n",
        f"scores/_heatmaps/{KEY}.zip#017.jpg",
        f"scores/_heatmaps/{KEY}.zip#-1.jpg",
        f"scores/_heatmaps/{KEY}/\N{ARABIC-INDIC DIGIT ONE}.jpg",
        f"scores/_heatmaps/{KEY.upper()}/1.jpg",
        f"scores/x_heatmaps/{KEY}/1.jpg",
        f"scores/_heatmaps/{KEY}/{10**19}.jpg",
        "s3://bucket/scores/part.parquet",
        "\x1b[31m\n",
    ],
)
def test_what_is_no_heatmap_path_is_not_opened(path: str):
    with pytest.raises(ConfigError, match="is no heatmap_path: those end in") as raised:
        heatmaps.read(path, STORAGE)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("end", [f"{KEY}/0.jpg", f"{KEY}.zip#0.jpg"])
@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("nowhere", "does not exist; a heatmap_path is relative to SCORES"),
        ("a\x1b[31m\nb", r"'.*a\\x1b\[31m\\nb.*' does not exist"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("no\0where", "no.x00where.*null byte"),
        ("file.txt", "cannot be read"),
    ],
)
def test_what_is_not_there_is_said_in_one_printable_line(end, folder, told, tmp_path: Path):
    (tmp_path / "file.txt").write_text("no folder")
    with pytest.raises(ConfigError, match=told) as raised:
        heatmaps.read(f"{tmp_path}/{folder}/_heatmaps/{end}", STORAGE)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "uri", ["ftps://x", "s3://", "http://[::1", "data:,", "zip://a::b", "ref::x", "file:///nowhere"]
)
def test_a_strange_uri_ends_in_words(uri: str):
    with pytest.raises(ConfigError):
        heatmaps.read(f"{uri}/_heatmaps/{KEY}.zip#0.jpg", STORAGE)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (".zip", b"no zip at all, but longer than 22 bytes", "it does not end as a zip"),
        (".zip", pack({0: b"GIF89a"}), "the picture is no JPEG"),
        (".zip", pack({1: PICTURES[0]}), "has 1 picture, none of them of row 0; heatmap_path of"),
        ("/0.jpg", b"GIF89a", "the picture is no JPEG"),
        ("/0.jpg", b"", "the picture is no JPEG"),
    ],
)
def test_what_patchlake_did_not_write_is_named_with_what_to_do(name, content, told, scores):
    scores.write(f"_heatmaps/{KEY}{name}", content)
    path = f"{scores.root}/_heatmaps/{KEY}{name}{'#0.jpg' if name == '.zip' else ''}"
    with pytest.raises(ConfigError, match=told) as raised:
        heatmaps.read(path, STORAGE)
    assert f"{KEY}{name}" in str(raised.value)


def test_files_that_are_too_large_and_pipes_are_not_read(tmp_path: Path):
    folder = tmp_path / "_heatmaps" / KEY
    folder.mkdir(parents=True)
    with (folder / "0.jpg").open("wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ConfigError, match="more than 67108864 bytes, and no more are read"):
        heatmaps.read(f"{folder}/0.jpg", STORAGE)
    # A hole of a terabyte costs nothing to make: what is read does not grow with the file.
    with folder.with_suffix(".zip").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ConfigError, match="it does not end as a zip"):
        heatmaps.read(f"{folder}.zip#0.jpg", STORAGE)
    folder.with_suffix(".zip").unlink()
    for pipe in (folder / "1.jpg", folder.with_suffix(".zip")):
        os.mkfifo(pipe)
    for path in (f"{folder}/1.jpg", f"{folder}.zip#1.jpg"):
        with pytest.raises(ConfigError, match="it is a pipe, a socket or a device"):
            heatmaps.read(path, STORAGE)
