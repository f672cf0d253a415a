"""A folder of the lake: whole files or none, listings, names, and what a URI may not carry."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from patchlake.pipeline.errors import ConfigError, DiskFull
from patchlake.pipeline.storage import disk as module
from patchlake.pipeline.storage.folder import (
    Folder,
    escape,
    hive_keys,
    is_component_of,
    is_hashed,
    split_uri,
    unescape,
)
from patchlake.pipeline.storage.stores import Entry


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "disk":
        yield Folder.at(str(tmp_path / "lake"))
        return
    memory = Folder.at(f"memory://{tmp_path.name}")
    yield memory
    memory.remove("", recursive=True)


@pytest.fixture
def disk(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path))


def _files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def _names(entries: list[Entry]) -> list[str]:
    return [entry.name for entry in entries]


def test_what_is_written_is_read_and_found(folder):
    assert folder.find() == []
    folder.write("b/2.bin", b"second")
    folder.write("b/1.bin", b"")
    folder.write("a.bin", b"first")
    assert folder.read("b/2.bin") == b"second"
    assert folder.read("b/2.bin", at_most=3) == b"sec"
    with folder.open("a.bin") as file:
        assert file.read() == b"first"
    assert [(e.name, e.size) for e in folder.find()] == [
        ("a.bin", 5),
        ("b/1.bin", 0),
        ("b/2.bin", 6),
    ]
    assert _names(folder.find("b")) == ["b/1.bin", "b/2.bin"]
    assert folder.find("absent") == []
    assert folder.entry("a.bin") in folder.find()
    assert folder.exists("a.bin")
    assert folder.exists("b")
    assert not folder.exists("c")


def test_find_sorts_by_name_and_leaves_temporaries_out(folder):
    names = ["b", "a/z", "a-b", "a/b/c", "Z", ".hidden", "g=ä b/x"]
    for name in [*names, ".x.host.1.tmp", "a/.y.host.2.tmp"]:
        folder.write(name, b"")
    assert _names(folder.find()) == sorted(names)


def test_a_write_replaces_the_file(folder):
    folder.write("a", b"old and longer")
    folder.write("a", b"new")
    assert folder.read("a") == b"new"
    assert len(folder.find()) == 1


def test_create_puts_only_what_is_absent(folder):
    assert folder.create("run/started", b"first")
    assert not folder.create("run/started", b"second")
    assert folder.read("run/started") == b"first"
    assert len(folder.find()) == 1


def test_what_is_absent_cannot_be_read_but_can_be_removed(folder):
    folder.write("sub/a", b"1")
    folder.write("sub/deep/b", b"2")
    folder.write("c", b"3")
    for absent in ("x", "sub/x", "sub"):
        with pytest.raises(FileNotFoundError):
            folder.entry(absent)
    with pytest.raises(FileNotFoundError):
        folder.read("x")
    folder.remove("x")
    folder.remove("x", recursive=True)
    folder.remove("c")
    assert _names(folder.find()) == ["sub/a", "sub/deep/b"]
    folder.remove("sub", recursive=True)
    assert folder.find() == []


# On disk only: fsspec's memory filesystem shows a file as soon as it is opened.
def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(disk, tmp_path):
    def write_half(name: str) -> None:
        with disk.writing(name) as file:
            file.write(b"half")
            file.flush()
            assert disk.read("kept") == b"old"
            raise KeyError(name)

    disk.write("kept", b"old")
    for name in ("kept", "new/file"):
        with pytest.raises(KeyError, match=name):
            write_half(name)
    assert _files(tmp_path) == ["kept"]
    assert disk.read("kept") == b"old"


def test_a_file_appears_when_it_is_whole(disk, tmp_path):
    with disk.writing("a/b") as file:
        file.write(b"1")
        file.flush()
        assert not disk.exists("a/b")
        assert disk.find() == []
    assert _files(tmp_path) == ["a/b"]


def test_create_does_not_write_through_the_link_of_a_killed_create(disk, tmp_path):
    # Killed between link and unlink, by a process whose id we have now.
    disk.write("published", b"whole")
    os.link(tmp_path / "published", module._temporary(tmp_path / "published"))
    assert not disk.create("published", b"other")
    assert disk.read("published") == b"whole"
    assert _files(tmp_path) == ["published"]


_DIE_WHILE_WRITING = """
import os, sys
from patchlake.pipeline.storage.folder import Folder
with Folder(sys.argv[1]).writing("g=a/x.parquet") as file:
    file.write(b"half")
    file.flush()
    os._exit(0)
"""


def test_sweep_removes_what_dead_processes_of_this_host_left(disk, tmp_path):
    subprocess.run([sys.executable, "-c", _DIE_WHILE_WRITING, str(tmp_path)], check=True)
    [left] = _files(tmp_path)
    assert disk.find() == []
    *target, host, _pid, _tmp = left.rsplit(".", 3)
    others = [
        left.replace(f".{host}.", ".another-host."),
        module._temporary(tmp_path / "of a living process").name,
        f"{target[0]}.{host}.draft.tmp",
        f"{target[0]}.{host}",
        "data.tmp",
    ]
    for other in others:
        (tmp_path / other).write_bytes(b"")
    disk.sweep()
    assert _files(tmp_path) == sorted(others)


def test_sweep_of_nothing_is_nothing(folder):
    folder.sweep()
    assert folder.find() == []


def test_the_version_changes_with_content_and_only_then(disk, tmp_path):
    disk.write("a", b"1")
    disk.write("b", b"1")
    [first, other] = disk.find()
    assert disk.find() == [first, other]
    disk.write("a", b"22")
    longer = disk.entry("a").version
    # The same size a millisecond later; the clock of a disk may be no finer than 4 ms.
    disk.write("a", b"33")
    os.utime(tmp_path / "a", ns=(0, (tmp_path / "a").stat().st_mtime_ns + 1_000_000))
    assert len({first.version, longer, disk.entry("a").version}) == 3
    assert disk.entry("b") == other


@given(st.text())
@example(".")
@example("..")
@example("a/b")
@example("a=b/../%2F\0 ä")
def test_any_text_is_one_path_component_and_comes_back(text):
    escaped = escape(text)
    assert escaped not in {".", ".."}
    assert not {"/", "\\", "\0", "=", "?", "*", "["} & set(escaped)
    path = PurePosixPath(f"a/{escaped or '_'}/b")
    assert len(path.parts) == 3
    assert hive_keys(f"dt=2026-11-23/plain/g={escaped}/x=y.parquet") == {
        "dt": "2026-11-23",
        "g": text,
    }


@pytest.mark.parametrize("component", ["%E9", "%e8", "caf%E9 7", "%FF%FE", "%C3"])
def test_bytes_that_are_no_text_stand_for_themselves(component):
    """So that two of them are not one group."""
    assert unescape(component) == component
    assert hive_keys(f"group={component}/a.parquet") == {"group": component}
    assert unescape(escape(component)) == component
    assert is_component_of(component, component)


LONG = ["x" * 201, "\u90e8" * 29, "a" * 199 + "\u90e8", "." * 201, "\U0001f600" * 70, "a/" * 100]


@given(st.sampled_from(LONG), st.text(max_size=3))
@example("x" * 100_000, "")
def test_a_long_text_is_one_path_component_of_its_own(long: str, text: str):
    escaped = escape(long + text)
    assert is_hashed(escaped)
    assert len(escaped) <= 200
    assert not {"/", "\0", "="} & set(escaped)
    # Of whole characters: hive readers decode it.
    assert unquote(escaped, errors="strict")
    assert is_component_of(escaped, long + text)
    assert not is_component_of(escaped, long + text + "y")
    # What is called so is not taken for it.
    assert escape(escaped) != escaped
    assert not is_component_of(escape(escaped), long + text)
    assert not is_component_of(escaped, unquote(escaped))


@pytest.mark.parametrize("text", ["x" * 200, "a~b", "~", "a~" + "0" * 19, "a~" + "g" * 20, "~root"])
def test_names_that_were_stored_before_keep_their_folders(text: str):
    assert escape(text) == text
    assert is_component_of(text, text)


def test_a_component_of_another_writer_stands_for_what_it_decodes_to():
    assert is_component_of("a%20b", "a b")
    assert is_component_of("a b", "a b")
    assert not is_component_of("__HIVE_DEFAULT_PARTITION__", "x")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://NAME:SECRET@bucket/lake",
        "s3://NAME:SEC/RET@bucket/lake",
        "s3://NAME:SEC@RET@bucket/lake",
        "https://SECRET@host/lake",
        "simplecache::s3://NAME:SECRET@bucket/lake",
        "zip://a.zip::s3://NAME:SECRET@bucket/lake",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    for make in (Folder, Folder.at):
        with pytest.raises(ConfigError, match="carries credentials; put them in the env") as raised:
            make(uri)
        for secret in ("NAME", "SEC", "RET"):
            assert secret not in str(raised.value)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a@b/c:d",
        "hdfs://host:8020/a@b",
        "zip://a.zip::s3://bucket/a@b",
        "/tmp/a@b",
        "a:b@c",
        "file:///tmp/a@b",
    ],
)
def test_an_at_sign_in_a_path_is_no_credential(uri):
    assert Folder(uri).uri == uri


def test_spellings_of_one_folder_have_one_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lake = str(tmp_path / "lake")
    spellings = [
        "lake",
        "./lake/",
        "other/../lake",
        lake,
        f"{lake}/",
        f"{lake}/x/..",
        f"file://{lake}",
    ]
    assert {Folder(uri).root for uri in spellings} == {lake}
    assert {Folder.at(uri) for uri in spellings} == {Folder(lake)}
    assert Folder("memory://a/b/").root == Folder("memory:///a/b").root == "memory:///a/b"
    assert Folder("/").path("a") == "/a"


def test_a_uri_of_an_unknown_kind_is_named():
    with pytest.raises(ConfigError, match="'nope://x' cannot be opened"):
        Folder.at("nope://x")


def test_a_files_uri_splits_into_folder_and_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert split_uri("a.yaml") == (Folder(str(tmp_path)), "a.yaml")
    assert split_uri("sub/a.yaml") == (Folder(f"{tmp_path}/sub"), "a.yaml")
    assert split_uri("/a.yaml") == (Folder("/"), "a.yaml")
    assert split_uri("memory://b/a.yaml") == (Folder("memory:///b"), "a.yaml")


def test_a_moved_file_replaces_what_has_its_name(folder):
    folder.write("next/1", b"new")
    folder.write("a/b.bin", b"old")
    folder.move("next/1", "a/b.bin")
    folder.write("next/2", b"other")
    folder.move("next/2", "c/d.bin")
    assert _names(folder.find()) == ["a/b.bin", "c/d.bin"]
    assert folder.read("a/b.bin") == b"new"
    with pytest.raises(FileNotFoundError):
        folder.move("next/1", "a/b.bin")


def test_sub_folders_are_listed_without_what_is_below(folder):
    assert folder.folders() == []
    folder.write("version=b/x/1.bin", b"")
    folder.write("version=a/1.bin", b"")
    folder.write("file", b"")
    assert folder.folders() == ["version=a", "version=b"]
    assert folder.folders("version=b") == ["x"]
    assert folder.folders("file") == []


def test_what_other_hosts_left_is_swept_after_a_day(disk, tmp_path):
    left = tmp_path / ".part.another-host.7.tmp"
    left.write_bytes(b"half")
    disk.sweep()
    assert left.exists()
    os.utime(left, (0, time.time() - 25 * 3600))
    disk.sweep()
    assert not left.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_and_leaves_nothing(disk, tmp_path, number):
    disk.write("a/b", b"before")

    def fill():
        with disk.writing("a/b") as file:
            file.write(b"half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(DiskFull, match=r"no space to write .*a/b"):
        fill()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert disk.read("a/b") == b"before"


def test_a_pipe_is_no_file_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "x.parquet")
    folder = Folder.at(str(tmp_path))
    for read in (folder.open, folder.read):
        with pytest.raises(OSError, match="it is a pipe, a socket or a device, and no file"):
            read("x.parquet")


def test_a_folder_is_removed_while_another_process_writes_into_it(tmp_path: Path):
    """Two drivers of one fit: the first to end clears away what the second still writes."""
    folder = Folder.at(str(tmp_path))
    code = (
        "import itertools, pathlib, sys\n"
        "root = pathlib.Path(sys.argv[1], 'partials')\n"
        "for number in itertools.count():\n"
        "    root.mkdir(exist_ok=True)\n"
        "    try: (root / str(number % 50)).touch()\n"
        "    except FileNotFoundError: pass\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as writer:
        try:
            deadline = time.monotonic() + 30
            while not folder.exists("partials/0"):
                assert time.monotonic() < deadline
            for _ in range(300):
                folder.remove("partials", recursive=True)
        finally:
            writer.kill()
    folder.remove("partials", recursive=True)
    assert list(folder.names("partials")) == []
