"""Folders that fsspec opens, and among them those on a disk, which can do more."""

import contextlib
import errno
import io
import lzma
import os
import re
import stat
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, cast

import fsspec
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.implementations.local import LocalFileSystem

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError, StorageError
from patchlake.pipeline.storage import disk
from patchlake.pipeline.storage.chains import split_chain
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.storage.walking import FoundFile, walk

# What pip installs for a kind of URI that fsspec does not open by itself.
_PACKAGES = {
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az"), "adlfs"),
}
_S3 = re.compile("^s3a?://")
# Links of chains that are not opened.
_REFUSED = {
    "reference": "what its references name would not be reached as `storage` says",
    **dict.fromkeys(("blockcache", "cached"), "it mixes blocks of a file that changes"),
}
# What opening says to a file that is no archive, or a damaged one.
_NO_ARCHIVE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)
# An archive is one open file, and not all kinds read it for several threads at once.
_reading = threading.Lock()


def opened(uri: str, storage: StorageSettings) -> "FsspecStore":
    """Return what holds a path, or a folder of any URI that fsspec opens.

    Whatever of a chain (`zip://folder::s3://bucket/archive.zip`) is in S3 is reached as `storage`
    says. An archive is opened now.

    Raises:
        ConfigError: if fsspec does not open it.
        StorageError: if the store that an archive is in refuses, or gives no answer.
    """
    ours, options = _by_our_s3(uri, storage)
    try:
        filesystem, root = fsspec.url_to_fs(ours, **options)
    except StorageError:
        raise
    except (ValueError, ImportError, TypeError, OSError, *_NO_ARCHIVE) as error:
        if isinstance(error.__context__, StorageError):
            # zipfile takes any OSError, our own too, for "not a zip file".
            raise error.__context__ from None
        raise ConfigError(f"'{uri}' cannot be opened: {_missing(uri) or error}") from None
    is_local = isinstance(filesystem, LocalFileSystem)
    root = (os.path.normpath(root) if is_local else str(root)).rstrip("/")
    root = root or ("/" if is_local else filesystem.root_marker)
    if is_local:
        return DiskStore(filesystem, root)
    return FsspecStore(filesystem, root, split_chain(uri)[1])


def _by_our_s3(uri: str, storage: StorageSettings) -> tuple[str, dict[str, object]]:
    """Return a URI whose part in S3, if it has one, is opened by our s3fs, and how.

    Raises:
        ConfigError: if a link of the chain would not obey it, or give something else than is there.
    """
    links = uri.split("::")
    for link in links[:-1]:
        reason = _REFUSED.get(link.partition("://")[0])
        if reason:
            raise ConfigError(f"'{uri}' is refused: {reason}")
    if not any(map(_S3.match, links)):
        return uri, {}
    from patchlake.pipeline.storage.s3_filesystem import PROTOCOL, S3

    fsspec.register_implementation(PROTOCOL, S3, clobber=True)
    links = [_S3.sub(f"{PROTOCOL}://", link) for link in links]
    return "::".join(links), {PROTOCOL: {"storage": storage}}


def _missing(uri: str) -> str:
    """Return which package has to be installed for a URI, if one has."""
    schemes = (link.partition("://")[0] for link in uri.split("::"))
    needed = {_PACKAGES[scheme] for scheme in schemes if scheme in _PACKAGES}
    absent = [name for name in sorted(needed) if find_spec(name) is None]
    return f"it takes {absent[0]}: pip install {absent[0]}" if absent else ""


@dataclass(frozen=True)
class FsspecStore:
    """A folder of a filesystem of fsspec's."""

    filesystem: fsspec.AbstractFileSystem
    # Without a slash at its end, unless it is one.
    inner_root: str
    # What it is in, if it is in another store: `::s3://bucket/archive.zip`.
    behind: str = ""

    pins_versions = False

    @property
    def root(self) -> str:
        """The normalised URI."""
        return f"{self.filesystem.unstrip_protocol(self.inner_root)}{self.behind}"

    def open(self, name: str, version: str) -> BinaryIO:  # noqa: ARG002 - it has only the newest
        """Open a file for reading; of an archive, the whole of it is in memory."""
        if isinstance(self.filesystem, AbstractArchiveFileSystem):
            with _reading:
                return io.BytesIO(self.filesystem.cat_file(self.inner(name)))
        return cast("BinaryIO", self.filesystem.open(self.inner(name), "rb"))

    def read(self, name: str, at_most: int | None) -> bytes:
        """Return a file's bytes, or its first `at_most`."""
        with self.open(name, "") as file:
            return file.read(-1 if at_most is None else at_most)

    def exists(self, name: str) -> bool:
        """Return whether there is such a file or folder."""
        return bool(self.filesystem.exists(self.inner(name)))

    def entry(self, name: str) -> Entry:
        """Return one file's entry, as it is now."""
        # A listing that this process has made earlier would answer instead of the store.
        self.filesystem.invalidate_cache()
        info = self.filesystem.info(self.inner(name))
        if info["type"] == "directory":
            raise FileNotFoundError(f"{self.root}/{name} is a folder")
        return _entry(name, info)

    def entries(self, below: str) -> Iterator[Entry]:
        """Yield all files below a sub-folder."""
        self.filesystem.invalidate_cache()
        found = self.filesystem.find(self.inner(below), detail=True)
        prefix = self.inner("-")[:-1]
        for path, info in found.items():
            if path.startswith(prefix):
                yield _entry(path.removeprefix(prefix), info)

    def names(self, below: str) -> Iterator[str]:
        """Yield their names; the listing is in memory as fsspec returns it, some 1 KB a file."""
        prefix = self.inner("-")[:-1]
        self.filesystem.invalidate_cache()
        for path in self.filesystem.find(self.inner(below)):
            if path.startswith(prefix):
                yield path.removeprefix(prefix)

    def folders(self, below: str) -> list[str]:
        """Return the names of the sub-folders directly below one."""
        self.filesystem.invalidate_cache()
        try:
            found = self.filesystem.ls(self.inner(below), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        inner = (info["name"].rstrip("/") for info in found if info["type"] == "directory")
        return [path.rpartition("/")[2] for path in inner]

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write a file as a stream."""
        return _uploading(self.filesystem, self.inner(name))

    def create(self, name: str, content: bytes) -> bool:
        """Put a file if there is none of that name; return whether this call put it."""
        try:
            self.filesystem.pipe_file(self.inner(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def move(self, name: str, to: str) -> None:
        """Copy a file and remove it."""
        self.filesystem.cp_file(self.inner(name), self.inner(to))
        self.filesystem.rm_file(self.inner(name))
        self.filesystem.invalidate_cache()

    def remove(self, name: str, *, recursive: bool) -> None:
        """Remove a file, or a sub-folder with all below it.

        What another process writes into a folder on a disk at the same time may stay.
        """
        try:
            self.filesystem.rm(self.inner(name), recursive=recursive)
        except FileNotFoundError:
            pass
        except OSError as error:
            # A file came into it, or it came itself, while this one removed and looked.
            if not recursive or error.errno not in (errno.ENOTEMPTY, errno.EISDIR):
                raise

    def inner(self, name: str) -> str:
        """Return a file's path in the filesystem."""
        root = self.inner_root and self.inner_root.rstrip("/") + "/"
        return f"{root}{name}" if name else self.inner_root


class DiskStore(FsspecStore):
    """A folder on this machine's disk: see `pipeline.storage.disk`."""

    @property
    def root(self) -> str:
        """The path."""
        return self.inner_root

    def open(self, name: str, version: str) -> BinaryIO:  # noqa: ARG002 - as above
        """Open a file for reading; a pipe or a device is refused, where it would wait for ever."""
        path = self.inner(name)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISREG(kind):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and no file", path)

    def walk(self, below: str) -> Iterator[FoundFile]:
        """Yield what is below a sub-folder, links followed, with what is left out."""
        return walk(Path(self.inner_root), below)

    def entries(self, below: str) -> Iterator[Entry]:
        """Yield all files below a sub-folder."""
        for found in self.walk(below):
            if found.is_file:
                yield _entry(found.name, {"size": found.size, "mtime": found.modified})

    def names(self, below: str) -> Iterator[str]:
        """Yield their names, one at a time."""
        return (found.name for found in self.walk(below) if found.is_file)

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write a file as a stream."""
        return disk.writing(Path(self.inner(name)))

    def create(self, name: str, content: bytes) -> bool:
        """Put a file if there is none of that name; return whether this call put it."""
        return disk.create(Path(self.inner(name)), content)

    def move(self, name: str, to: str) -> None:
        """Rename a file."""
        disk.move(Path(self.inner(name)), Path(self.inner(to)))

    def sweep(self) -> None:
        """Remove temporary files whose process is gone."""
        disk.sweep(Path(self.inner_root))


@contextlib.contextmanager
def _uploading(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[BinaryIO]:
    # An object store shows an object when its upload is completed, never before.
    file = filesystem.open(path, "wb")
    try:
        yield file
    except BaseException:
        file.discard()
        raise
    file.close()
    filesystem.invalidate_cache()


def _entry(name: str, info: dict[str, object]) -> Entry:
    size = int(cast("int", info["size"]))
    times = (info.get(name) for name in ("mtime", "LastModified", "updated", "created"))
    changed = next((time for time in times if time), "")
    # Of fsspec's file systems some say it one way in a listing and the other of a file.
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    modified = datetime.fromtimestamp(changed, UTC) if isinstance(changed, int | float) else None
    etag = info.get("ETag") or info.get("etag") or info.get("CRC")
    version = str(etag).strip('"') if etag else f"{size}-{changed}"
    return Entry(name, size, version, modified)
