"""A folder of the lake: a disk, S3, or whatever fsspec opens. Atomic puts, listings, removal.

Only here is a URI turned into a filesystem. Credentials come from the environment or the
instance's role, as the AWS SDKs find them; a URI that carries them is refused, because URIs are
logged and written to manifests.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast
from urllib.parse import quote, unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.config import StorageSettings
from pipeline.errors import ConfigError
from pipeline.lake import disk
from pipeline.lake.s3 import Bucket, Item
from pipeline.lake.s3_file import RangedFile, uploading

_S3 = re.compile(r"s3a?://+(?P<bucket>[^/]*)/*(?P<prefix>.*?)/*", re.DOTALL)
# Requests that remove one object each, at once: not every store removes many with one request.
_REMOVED_AT_ONCE = 16
# user@ or key:secret@ after any scheme of a chain (simplecache::s3://...). A secret may have
# slashes, and so is told from a port, which is digits.
_CREDENTIALS = re.compile(r"://[^/]*@|://[^/:]*:(?!:|\d+/)[^@]*@")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its name relative to the folder, its size in bytes, and what changes when it does.

    `modified` is when it was written, as far as the store says.
    """

    name: str
    size: int
    version: str
    modified: datetime | None = None


_DEFAULT = StorageSettings()


@dataclass(frozen=True)
class Folder:
    """A path, `s3://bucket/prefix`, or any URI that fsspec opens. It need not exist yet.

    `storage` says how S3 is reached, and goes with the folder to the workers.
    """

    uri: str
    storage: StorageSettings = _DEFAULT

    def __reduce__(self) -> tuple[type["Folder"], tuple[str, StorageSettings]]:
        # Without what is cached: a worker connects for itself.
        return Folder, (self.uri, self.storage)

    def __post_init__(self) -> None:
        if _CREDENTIALS.search(self.uri):
            shown = self.uri.rpartition("@")[2]
            raise ConfigError(
                f"the URI ending in '{shown}' carries credentials; "
                "put them in the environment (AWS_ACCESS_KEY_ID, ...) or use the instance's role"
            )

    @classmethod
    def at(cls, uri: str, storage: StorageSettings = _DEFAULT) -> "Folder":
        """Return the folder under its normalised URI: workers have other working directories."""
        return cls(cls(uri, storage).root, storage)

    @cached_property
    def _s3(self) -> Bucket | None:
        """The bucket, of a folder in S3; `_key` is where in it a file is."""
        match = _S3.fullmatch(self.uri)
        if match is None:
            return None
        if not match["bucket"]:
            raise ConfigError(f"'{self.uri}' names no bucket")
        return Bucket(match["bucket"], self.storage)

    def _key(self, name: str) -> str:
        match = _S3.fullmatch(self.uri)
        assert match is not None
        return "/".join(part for part in (match["prefix"], name) if part)

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
        if self._s3 is not None:
            return f"s3://{self._s3.name}/{self._key('')}".rstrip("/")
        filesystem, root = self._filesystem
        return root if self.is_local else str(filesystem.unstrip_protocol(root))

    @property
    def pins_versions(self) -> bool:
        """Whether `open` with a version reads that version, or fails."""
        return self._s3 is not None

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's disk."""
        return self._s3 is None and isinstance(self._filesystem[0], LocalFileSystem)

    @property
    def is_s3(self) -> bool:
        """Whether the folder is in S3."""
        return self._s3 is not None

    def require_readable(self, name: str = "") -> None:
        """Raise `StorageRefused` if S3 does not let us list the folder and read it, or one file.

        What is absent is somebody else's error. Other folders are not asked.
        """
        if self._s3 is None:
            return
        keys = [self._key(name)] if name else []
        if not name:
            keys = [item.key for item in self._s3.items(self._prefix(), at_most=1)]
        with contextlib.suppress(FileNotFoundError):
            for key in keys:
                self._s3.get(key, span="0-0")

    def require_writable(self, probe: str) -> None:
        """Raise `StorageRefused` if S3 does not let us put and remove a file of that name."""
        if self._s3 is not None:
            self.require_readable()
            self._s3.put(self._key(probe), b"")
            self._s3.delete(self._key(probe))

    def path(self, name: str) -> str:
        """Return the full path of a file in the folder, for messages and for other programs."""
        return f"{self.root.rstrip('/')}/{name}" if name else self.root

    def _inner(self, name: str) -> str:
        return f"{self._filesystem[1].rstrip('/')}/{name}" if name else self._filesystem[1]

    def open(self, name: str, version: str = "") -> BinaryIO:
        """Open a file for reading; in S3, the version that a listing named, or reading fails.

        Raises:
            FileNotFoundError: if there is none; of a file in S3, at the first read.
        """
        if self._s3 is not None:
            return cast("BinaryIO", RangedFile(self._s3, self._key(name), version))
        return cast("BinaryIO", self._filesystem[0].open(self._inner(name), "rb"))

    def read(self, name: str, *, at_most: int | None = None) -> bytes:
        """Return a file's bytes, or its first `at_most`. Raises `FileNotFoundError`."""
        if self._s3 is not None:
            return self._s3.get(self._key(name), at_most=at_most).content
        with self.open(name) as file:
            return file.read(-1 if at_most is None else at_most)

    def exists(self, name: str) -> bool:
        """Return whether there is such a file or folder."""
        if self._s3 is not None:
            key = self._key(name)
            return self._s3.head(key) is not None or any(self._s3.items(f"{key}/", at_most=1))
        return bool(self._filesystem[0].exists(self._inner(name)))

    def entry(self, name: str) -> Entry:
        """Return one file's entry, as it is now. Raises `FileNotFoundError`, also for a folder."""
        if self._s3 is not None:
            item = self._s3.head(self._key(name))
            if item is None:
                raise FileNotFoundError(f"{self.path(name)} does not exist")
            return Entry(name, item.size, item.etag, item.modified)
        filesystem = self._filesystem[0]
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
        if self._s3 is not None:
            found = (
                Entry(name, item.size, item.etag, item.modified)
                for name, item in self._items(below)
            )
            kept = [entry for entry in found if not entry.name.endswith(disk.TEMPORARY)]
            return sorted(kept, key=lambda entry: entry.name)
        filesystem, _ = self._filesystem
        filesystem.invalidate_cache()
        prefix = self._inner("").rstrip("/") + "/"
        found = filesystem.find(self._inner(below), detail=True)
        entries = [
            _entry(path.removeprefix(prefix), info)
            for path, info in found.items()
            if path.startswith(prefix) and not path.endswith(disk.TEMPORARY)
        ]
        return sorted(entries, key=lambda entry: entry.name)

    def names(self, below: str = "") -> Iterator[str]:
        """Yield the names of all files below a sub-folder, in no order.

        On a disk one at a time, so that a million cost no memory. An object store's listing is in
        memory as fsspec returns it, at some 1 KB a file; of S3 a thousand files are.
        """
        if self._s3 is not None:
            return (name for name, _ in self._items(below) if not name.endswith(disk.TEMPORARY))
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
            if path.startswith(prefix) and not path.endswith(disk.TEMPORARY)
        )

    def folders(self, below: str = "") -> list[str]:
        """Return the names of the sub-folders directly below one, sorted; none if it is absent."""
        if self._s3 is not None:
            prefix = self._prefix(below)
            return sorted(key[len(prefix) : -1] for key in self._s3.folders(prefix))
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
        if self._s3 is not None:
            with uploading(self._s3, self._key(name)) as upload:
                yield upload
            return
        filesystem, _ = self._filesystem
        if self.is_local:
            with disk.writing(Path(self._inner(name))) as file:
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
        """Put a file if there is none of that name; return whether this call put it.

        Atomic on disks and where S3 has If-None-Match; see `Bucket.create` for where it has not.
        """
        if self._s3 is not None:
            return self._s3.create(self._key(name), content)
        if not self.is_local:
            try:
                self._filesystem[0].pipe_file(self._inner(name), content, mode="create")
            except FileExistsError:
                return False
            return True
        return disk.create(Path(self._inner(name)), content)

    def move(self, name: str, to: str) -> None:
        """Give a file another name, replacing what has it: readers see the one or the other.

        Object stores copy it, on their side, and then remove it. Raises `FileNotFoundError`.
        """
        if self._s3 is not None:
            self._s3.copy(self._key(name), self._key(to))
            self._s3.delete(self._key(name))
            return
        filesystem, _ = self._filesystem
        if self.is_local:
            disk.move(Path(self._inner(name)), Path(self._inner(to)))
            return
        filesystem.cp_file(self._inner(name), self._inner(to))
        filesystem.rm_file(self._inner(name))
        filesystem.invalidate_cache()

    def remove(self, name: str, *, recursive: bool = False) -> None:
        """Remove a file, or a sub-folder with all below it; what is absent is fine."""
        if self._s3 is not None:
            keys = [item.key for _, item in self._items(name)] if recursive else [self._key(name)]
            with ThreadPoolExecutor(_REMOVED_AT_ONCE) as pool:
                list(pool.map(self._s3.delete, keys))
            return
        with contextlib.suppress(FileNotFoundError):
            self._filesystem[0].rm(self._inner(name), recursive=recursive)

    def _items(self, below: str) -> Iterator[tuple[str, Item]]:
        """Yield what S3 has below a sub-folder, with names relative to the folder."""
        assert self._s3 is not None
        for item in self._s3.items(self._prefix(below)):
            yield item.key.removeprefix(self._prefix()), item

    def _prefix(self, below: str = "") -> str:
        key = self._key(below)
        return f"{key}/" if key else ""

    def sweep(self) -> None:
        """Remove temporary files whose process is gone. Local disks only.

        Another host's, on a disk that several share, are taken for abandoned after a day.
        """
        if self.is_local:
            disk.sweep(Path(self._inner("")))


def split_uri(uri: str, storage: StorageSettings = _DEFAULT) -> tuple[Folder, str]:
    """Return the folder and the name of one file's path or URI."""
    parent, slash, name = uri.rpartition("/")
    return Folder.at(parent or slash or ".", storage), name


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
    times = (info.get(name) for name in ("mtime", "LastModified", "updated", "created"))
    changed = next((time for time in times if time), "")
    # Of fsspec's file systems some say it one way in a listing and the other of a file.
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    modified = datetime.fromtimestamp(changed, UTC) if isinstance(changed, int | float) else None
    etag = info.get("ETag") or info.get("etag")
    version = str(etag).strip('"') if etag else f"{size}-{changed}"
    return Entry(name, size, version, modified)
