"""A folder of the lake, on whatever fsspec opens: atomic puts, listings, removal.

Only here is a URI turned into a filesystem. Credentials come from the environment or the
instance's role, as s3fs finds them; a URI that carries them is refused, because URIs are logged
and written to manifests.
"""

import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import quote, unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError, DiskFull

_TEMPORARY = ".tmp"
# A temporary file of another host cannot be asked about its process. None is written for a day.
_ABANDONED_S = 24 * 3600
# Of a disk, a quota, and a limit on the size of files.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# user@ or key:secret@ after any scheme of a chain (simplecache::s3://...). A secret may have
# slashes, and so is told from a port, which is digits.
_CREDENTIALS = re.compile(r"://[^/]*@|://[^/:]*:(?!:|\d+/)[^@]*@")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its name relative to the folder, its size in bytes, and what changes when it does."""

    name: str
    size: int
    version: str


@dataclass(frozen=True)
class Folder:
    """A path, `s3://bucket/prefix`, or any URI that fsspec opens. It need not exist yet."""

    uri: str

    def __post_init__(self) -> None:
        if _CREDENTIALS.search(self.uri):
            shown = self.uri.rpartition("@")[2]
            raise ConfigError(
                f"the URI ending in '{shown}' carries credentials; "
                "put them in the environment (AWS_ACCESS_KEY_ID, ...) or use the instance's role"
            )

    @classmethod
    def at(cls, uri: str) -> "Folder":
        """Return the folder under its normalised URI: workers have other working directories."""
        return cls(cls(uri).root)

    @cached_property
    def _filesystem(self) -> tuple[fsspec.AbstractFileSystem, str]:
        try:
            filesystem, root = fsspec.url_to_fs(self.uri)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"'{self.uri}' cannot be opened: {error}") from None
        if isinstance(filesystem, LocalFileSystem):
            root = os.path.normpath(root)
        return filesystem, str(root).rstrip("/") or "/"

    @property
    def root(self) -> str:
        """The normalised URI: equal for two spellings of one folder."""
        filesystem, root = self._filesystem
        return root if self.is_local else str(filesystem.unstrip_protocol(root))

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's disk."""
        return isinstance(self._filesystem[0], LocalFileSystem)

    def path(self, name: str) -> str:
        """Return the full path of a file in the folder, for messages and for other programs."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def _inner(self, name: str) -> str:
        return f"{self._filesystem[1].rstrip('/')}/{name}" if name else self._filesystem[1]

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading. Raises `FileNotFoundError`."""
        return cast("BinaryIO", self._filesystem[0].open(self._inner(name), "rb"))

    def read(self, name: str, *, at_most: int | None = None) -> bytes:
        """Return a file's bytes, or its first `at_most`. Raises `FileNotFoundError`."""
        with self.open(name) as file:
            return file.read(-1 if at_most is None else at_most)

    def exists(self, name: str) -> bool:
        """Return whether there is such a file or folder."""
        return bool(self._filesystem[0].exists(self._inner(name)))

    def entry(self, name: str) -> Entry:
        """Return one file's entry, as it is now. Raises `FileNotFoundError`, also for a folder."""
        filesystem, _ = self._filesystem
        # A listing that this process has made earlier would answer instead of the store.
        filesystem.invalidate_cache()
        info = filesystem.info(self._inner(name))
        if info["type"] == "directory":
            raise FileNotFoundError(f"{self.path(name)} is a folder")
        return _entry(name, info)

    def find(self, below: str = "") -> list[Entry]:
        """Return all files below a sub-folder, sorted by name; none if it does not exist.

        Temporary files are left out. Linear in the number of files below.
        """
        filesystem, _ = self._filesystem
        filesystem.invalidate_cache()
        prefix = self._inner("").rstrip("/") + "/"
        found = filesystem.find(self._inner(below), detail=True)
        entries = [
            _entry(path.removeprefix(prefix), info)
            for path, info in found.items()
            if path.startswith(prefix) and not path.endswith(_TEMPORARY)
        ]
        return sorted(entries, key=lambda entry: entry.name)

    def names(self, below: str = "") -> Iterator[str]:
        """Yield the names of all files below a sub-folder, in no order.

        On a disk one at a time, so that a million cost no memory. An object store's listing is in
        memory as fsspec returns it, at some 1 KB a file.
        """
        filesystem, root = self._filesystem
        prefix = root.rstrip("/") + "/"
        if self.is_local:
            found: Iterable[str] = (
                f"{folder}/{name}"
                for folder, _, files in os.walk(self._inner(below))
                for name in files
            )
        else:
            filesystem.invalidate_cache()
            found = filesystem.find(self._inner(below))
        return (
            path.removeprefix(prefix)
            for path in found
            if path.startswith(prefix) and not path.endswith(_TEMPORARY)
        )

    def folders(self, below: str = "") -> list[str]:
        """Return the names of the sub-folders directly below one, sorted; none if it is absent."""
        filesystem, _ = self._filesystem
        filesystem.invalidate_cache()
        try:
            found = filesystem.ls(self._inner(below), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        inner = (info["name"].rstrip("/") for info in found if info["type"] == "directory")
        return sorted(path.rpartition("/")[2] for path in inner)

    def write(self, name: str, content: bytes) -> None:
        """Put a file, whole or not at all: a reader never sees a part of it.

        Raises:
            DiskFull: if there is no space for it.
        """
        with self.writing(name) as file:
            file.write(content)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Write a file as a stream; it appears, whole, when the block ends without an error.

        Raises:
            DiskFull: if there is no space for it.
        """
        filesystem, _ = self._filesystem
        if self.is_local:
            target = Path(self._inner(name))
            with _told_if_full(target), _writing_local(target) as file:
                yield file
            return
        # An object store shows an object when its upload is completed, never before.
        file = filesystem.open(self._inner(name), "wb")
        try:
            yield file
        except BaseException:
            file.discard()
            raise
        file.close()
        filesystem.invalidate_cache()

    def create(self, name: str, content: bytes) -> bool:
        """Put a file if there is none of that name; return whether this call put it."""
        if not self.is_local:
            try:
                self._filesystem[0].pipe_file(self._inner(name), content, mode="create")
            except FileExistsError:
                return False
            return True
        target = Path(self._inner(name))
        with _told_if_full(target):
            return _create_local(target, content)

    def move(self, name: str, to: str) -> None:
        """Give a file another name, replacing what has it: readers see the one or the other.

        Object stores copy it, on their side, and then remove it. Raises `FileNotFoundError`.
        """
        filesystem, _ = self._filesystem
        if self.is_local:
            target = Path(self._inner(to))
            target.parent.mkdir(parents=True, exist_ok=True)
            Path(self._inner(name)).replace(target)
            _sync_folder(target.parent)
            return
        filesystem.cp_file(self._inner(name), self._inner(to))
        filesystem.rm_file(self._inner(name))
        filesystem.invalidate_cache()

    def remove(self, name: str, *, recursive: bool = False) -> None:
        """Remove a file, or a sub-folder with all below it; what is absent is fine."""
        with contextlib.suppress(FileNotFoundError):
            self._filesystem[0].rm(self._inner(name), recursive=recursive)

    def sweep(self) -> None:
        """Remove temporary files whose process is gone. Local disks only.

        Another host's, on a disk that several share, are taken for abandoned after a day.
        """
        root = Path(self._inner(""))
        if not self.is_local or not root.is_dir():
            return
        # Not `rglob`, which fails where another driver removes a folder meanwhile.
        found = (Path(folder, name) for folder, _, files in os.walk(root) for name in files)
        for temporary in found:
            if not temporary.match(f".*{_TEMPORARY}"):
                continue
            host, _, pid = temporary.name.removesuffix(_TEMPORARY).rpartition(".")
            if host.endswith(f".{socket.gethostname()}") and pid.isdecimal():
                is_left = not is_alive(int(pid))
            else:
                is_left = _age_s(temporary) > _ABANDONED_S
            if is_left:
                temporary.unlink(missing_ok=True)


def split_uri(uri: str) -> tuple[Folder, str]:
    """Return the folder and the name of one file's path or URI."""
    parent, slash, name = uri.rpartition("/")
    return Folder.at(parent or slash or "."), name


def escape(name: str) -> str:
    """Return any text as one path component that hive readers decode again."""
    quoted = quote(name, safe=" ")
    return quoted.replace(".", "%2E") if set(quoted) <= {"."} else quoted


def hive_keys(name: str) -> dict[str, str]:
    """Return the `key=value` folders of a path, decoded."""
    parts = (part.partition("=") for part in PurePosixPath(name).parts[:-1])
    return {key: unquote(value) for key, equals, value in parts if equals}


def _entry(name: str, info: dict[str, object]) -> Entry:
    size = int(cast("int", info["size"]))
    etag = info.get("ETag") or info.get("etag")
    if etag:
        return Entry(name, size, str(etag).strip('"'))
    times = (info.get(name) for name in ("mtime", "LastModified", "updated", "created"))
    changed = next((time for time in times if time), "")
    # Of fsspec's file systems some say it one way in a listing and the other of a file.
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return Entry(name, size, f"{size}-{changed}")


@contextlib.contextmanager
def _told_if_full(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFull(
            f"no space to write {target} ({error.strerror}); make room, and start the same command "
            "again, which goes on from what is done"
        ) from error


def _create_local(target: Path, content: bytes) -> bool:
    temporary = _temporary(target)
    try:
        _write_synced(temporary, content)
        os.link(temporary, target)  # fails, atomically, where the target exists
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


@contextlib.contextmanager
def _writing_local(target: Path) -> Iterator[BinaryIO]:
    temporary = _temporary(target)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _temporary(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f".{target.name}.{socket.gethostname()}.{os.getpid()}{_TEMPORARY}"
    temporary = target.with_name(name)
    # Left by a killed process whose id came back (1 in a container), it may be a hard link of a
    # published file, which must not be written through.
    temporary.unlink(missing_ok=True)
    return temporary


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _sync_folder(folder: Path) -> None:
    # A rename is durable only when the folder that holds the name is.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_alive(pid: int) -> bool:
    """Return whether this host has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
