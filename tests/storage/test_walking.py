"""Listings of a disk: links are followed, each folder once, and what is left out is said."""

import os
import socket
import stat
from pathlib import Path

import pytest

from patchlake.pipeline.storage.folder import Folder


def _listed(root: Path) -> tuple[list[str], list[str]]:
    folder = Folder.at(str(root))
    names = [entry.name for entry in folder.find()]
    assert sorted(folder.names()) == names
    return names, folder.left_out()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "lake" / "dt=1").mkdir(parents=True)
    (tmp_path / "lake" / "dt=1" / "a.parquet").write_bytes(b"a")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.parquet").write_bytes(b"bb")
    return tmp_path / "lake"


def test_links_to_files_and_folders_are_followed_and_counted(root: Path):
    (root / "dt=2").symlink_to(root.parent / "other")
    (root / "c.parquet").symlink_to(root.parent / "other" / "b.parquet")
    names, left_out = _listed(root)
    assert names == ["c.parquet", "dt=1/a.parquet", "dt=2/b.parquet"]
    assert left_out == [f"{root}: 2 symbolic links are followed"]
    assert Folder.at(str(root)).entry("c.parquet") == Folder.at(str(root)).find()[0]


def test_a_folder_is_listed_once_under_its_own_name(root: Path):
    (root / "a link").symlink_to(root / "dt=1")
    (root / "dt=1" / "up").symlink_to(root)
    names, left_out = _listed(root)
    assert names == ["dt=1/a.parquet"]
    reason = "a link to a folder whose files are listed already"
    assert left_out == [f"{root}/a link: {reason}", f"{root}/dt=1/up: {reason}"]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.symlink_to(path), "a link that leads to itself"),
        (lambda path: path.symlink_to("/nowhere/at all"), "a link to nothing"),
        (os.mkfifo, "a named pipe, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "a device, not a file"),
    ],
    ids=["loop", "dangling", "pipe", "device"],
)
def test_what_is_no_file_is_left_out_and_said(root: Path, make, reason):
    make(root / "x.parquet")
    assert _listed(root) == (["dt=1/a.parquet"], [f"{root}/x.parquet: {reason}"])


def test_a_socket_is_left_out(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        assert _listed(tmp_path) == ([], [f"{tmp_path}/s: a socket, not a file"])


def test_a_name_that_is_no_text_is_left_out(root: Path):
    Path(os.fsdecode(os.fsencode(root) + b"/Stra\xdfe.parquet")).touch()
    names, left_out = _listed(root)
    assert names == ["dt=1/a.parquet"]
    assert left_out[0].endswith("a name that is no UTF-8")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_may_not_be_listed_is_said(root: Path):
    (root / "dt=1").chmod(0)
    try:
        assert _listed(root)[1] == [
            f"{root}/dt=1: a folder that cannot be listed (Permission denied)"
        ]
    finally:
        (root / "dt=1").chmod(stat.S_IRWXU)


def test_nothing_is_nothing(tmp_path: Path):
    assert _listed(tmp_path / "absent") == ([], [])
