"""A folder of the lake: a disk, S3, or whatever fsspec opens. Atomic puts, listings, removal.

Only here is a URI turned into a store. Credentials come from the environment or the instance's
role, as the AWS SDKs find them; a URI that carries them is refused, because URIs are logged and
written to manifests.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, takewhile
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import quote, unquote

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.storage import chains, disk
from patchlake.pipeline.storage.disk import TEMPORARY
from patchlake.pipeline.storage.file_stores import DiskStore, opened
from patchlake.pipeline.storage.s3 import Bucket
from patchlake.pipeline.storage.s3_store import S3Store
from patchlake.pipeline.storage.stores import Entry, Store
from patchlake.pipeline.storage.web_store import WebStore

_S3 = re.compile(r"s3a?://+(?P<bucket>[^/]*)/*(?P<prefix>.*?)/*", re.DOTALL)
_WEB = re.compile("https?://", re.IGNORECASE)
# user@ or key:secret@ after any scheme of a chain (simplecache::s3://...). A secret may have
# slashes, and so is told from a port, which is digits.
_CREDENTIALS = re.compile(r"://[^/]*@|://[^/:]*:(?!:|\d+/)[^@]*@")
# Azure names a container so: abfs://container@account.dfs.core.windows.net/folder.
_CONTAINER = re.compile(r"abfss?://[^/:@]+@(?=[^/:@]+(?:/|$))")

_DEFAULT = StorageSettings()


@dataclass(frozen=True)
class Folder:
    """A path, `s3://bucket/prefix`, or any URI that fsspec opens. It need not exist yet.

    `storage` says how S3 is reached, below a chain of URIs too (`zip://a::s3://b/c.zip`), and goes
    with the folder to the workers.
    """

    uri: str
    storage: StorageSettings = _DEFAULT
    # The one file in it that is an images table, where IMAGES names a file; else empty.
    only: str = ""

    def __reduce__(self) -> tuple[type["Folder"], tuple[str, StorageSettings, str]]:
        # Without what is cached: a worker connects for itself.
        return Folder, (self.uri, self.storage, self.only)

    def narrowed(self, name: str) -> "Folder":
        """Return the folder, of which only one file is looked at."""
        return Folder(self.uri, self.storage, name)

    def __post_init__(self) -> None:
        if _CREDENTIALS.search(_CONTAINER.sub("abfs://", self.uri)):
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
    def _store(self) -> Store:
        uri = chains.direct(self.uri)
        match = _S3.fullmatch(uri)
        if match is None:
            is_web = _WEB.match(uri)
            return WebStore(uri.rstrip("/"), self.storage) if is_web else opened(uri, self.storage)
        if not match["bucket"]:
            raise ConfigError(f"'{self.uri}' names no bucket")
        return S3Store(Bucket(match["bucket"], self.storage), match["prefix"])

    @property
    def root(self) -> str:
        """The normalised URI: equal for two spellings of one folder."""
        return self._store.root

    @property
    def pins_versions(self) -> bool:
        """Whether `open` with a version reads that version, or fails."""
        return self._store.pins_versions

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine's disk."""
        return isinstance(self._store, DiskStore)

    @property
    def is_s3(self) -> bool:
        """Whether the folder is in S3."""
        return isinstance(self._store, S3Store)

    def require_readable(self, name: str = "") -> None:
        """Raise `StorageRefused` if S3 does not let us list the folder and read it, or one file.

        What is absent is somebody else's error. Other folders are not asked.
        """
        if isinstance(self._store, S3Store):
            self._store.require_readable(name)

    def require_writable(self, probe: str) -> None:
        """Raise `StorageRefused` if S3 or a disk does not let us put and remove such a file.

        A disk is asked whether it would; nothing is put there.
        """
        if isinstance(self._store, S3Store):
            self._store.require_writable(probe)
        elif isinstance(self._store, DiskStore):
            disk.require_writable(Path(self._store.root))

    def path(self, name: str) -> str:
        """Return the full path of a file in the folder, for messages and for other programs."""
        return chains.below(self.root, name) if name else self.root

    def open(self, name: str, version: str = "") -> BinaryIO:
        """Open a file for reading; in S3, the version that a listing named, or reading fails.

        Raises:
            FileNotFoundError: if there is none; of a file in S3, at the first read.
        """
        return self._store.open(name, version)

    def read(self, name: str, *, at_most: int | None = None) -> bytes:
        """Return a file's bytes, or its first `at_most`. Raises `FileNotFoundError`."""
        return self._store.read(name, at_most)

    def exists(self, name: str) -> bool:
        """Return whether there is such a file or folder."""
        return self._store.exists(name)

    def entry(self, name: str) -> Entry:
        """Return one file's entry, as it is now. Raises `FileNotFoundError`, also for a folder."""
        return self._store.entry(name)

    def find(self, below: str = "") -> list[Entry]:
        """Return all files below a sub-folder, sorted by name; none if it does not exist.

        Temporary files are left out. Linear in the number of files below.
        """
        found = (e for e in self._store.entries(below) if not e.name.endswith(TEMPORARY))
        return sorted(found, key=lambda entry: entry.name)

    def left_out(self, below: str = "") -> list[str]:
        """Return what a listing leaves out or finds behind links, a line each; only on a disk.

        Links that lead nowhere or in a circle, pipes, devices, folders that cannot be listed, names
        that are no UTF-8; and how many files were found behind links. As long as a listing.
        """
        if not isinstance(self._store, DiskStore):
            return []
        lines, links = [], 0
        for found in self._store.walk(below):
            links += found.is_link
            if found.reason:
                lines.append(f"{self.path(found.name)}: {found.reason}")
        if links:
            lines.append(f"{self.root}: {links} symbolic links are followed")
        return sorted(lines)

    def names(self, below: str = "") -> Iterator[str]:
        """Yield the names of all files below a sub-folder, in no order.

        On a disk one at a time, so that a million cost no memory. An object store's listing is in
        memory as fsspec returns it, at some 1 KB a file; of S3 a thousand files are.
        """
        return (name for name in self._store.names(below) if not name.endswith(TEMPORARY))

    def folders(self, below: str = "") -> list[str]:
        """Return the names of the sub-folders directly below one, sorted; none if it is absent."""
        return sorted(self._store.folders(below))

    def write(self, name: str, content: bytes) -> None:
        """Put a file, whole or not at all: a reader never sees a part of it.

        Raises:
            DiskFull: if there is no space for it.
        """
        with self.writing(name) as file:
            file.write(content)

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write a file as a stream; it appears, whole, when the block ends without an error.

        Raises:
            DiskFull: if there is no space for it.
        """
        return self._store.writing(name)

    def create(self, name: str, content: bytes) -> bool:
        """Put a file if there is none of that name; return whether this call put it.

        Atomic on disks and where S3 has If-None-Match; see `Bucket.create` for where it has not.
        """
        return self._store.create(name, content)

    def move(self, name: str, to: str) -> None:
        """Give a file another name, replacing what has it: readers see the one or the other.

        Object stores copy it, on their side, and then remove it. Raises `FileNotFoundError`.
        """
        self._store.move(name, to)

    def remove(self, name: str, *, recursive: bool = False) -> None:
        """Remove a file, or a sub-folder with all below it; what is absent is fine."""
        self._store.remove(name, recursive=recursive)

    def sweep(self) -> None:
        """Remove temporary files whose process is gone. Local disks only.

        Another host's, on a disk that several share, are taken for abandoned after a day.
        """
        if isinstance(self._store, DiskStore):
            self._store.sweep()


def split_uri(uri: str, storage: StorageSettings = _DEFAULT) -> tuple[Folder, str]:
    """Return the folder and the name of one file's path or URI."""
    parent, name = chains.split_name(uri)
    return Folder.at(parent, storage), name


# What writers of hive partitions call a null.
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
# A file system takes 255 bytes; what goes before (`g=`) and after the name needs some of them.
_LONGEST, _READABLE = 200, 120
_HASHED = re.compile(r"~[0-9a-f]{20}")


def escape(name: str) -> str:
    """Return any text as one path component, which hive readers decode again if it is short.

    Of a long one it is the beginning, `~` and a digest: two texts never have the same component.
    """
    quoted = quote(name, safe=" ", errors="surrogateescape")
    if set(quoted) <= {"."}:
        quoted = quoted.replace(".", "%2E")
    if len(quoted) > _LONGEST:
        # Whole characters, which every reader can decode.
        pieces = (quote(letter, safe=" ", errors="surrogateescape") for letter in name)
        ends = list(takewhile(lambda end: end <= _READABLE, accumulate(map(len, pieces))))
        beginning = quoted[: ends[-1]]
        digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
        return f"{beginning}~{digest[:20]}"
    return quoted.replace("~", "%7E") if is_hashed(quoted) else quoted


def unescape(component: str) -> str:
    """Return the text that a path component of anybody's stands for.

    One whose bytes are no UTF-8 (`%E9` of a writer in Latin-1) stands for itself, so that two of
    them stay two.
    """
    try:
        return unquote(component, errors="strict")
    except UnicodeDecodeError:
        return component


def is_hashed(component: str) -> bool:
    """Return whether a path component stands for a text that is too long to be one."""
    return bool(_HASHED.fullmatch(component[-21:]))


def is_component_of(component: str, text: str) -> bool:
    """Return whether a path component, of ours or of another writer, stands for a text."""
    return component == escape(text) or (
        not is_hashed(component) and unescape(component) == text and component != NULL_PARTITION
    )


def hive_keys(name: str) -> dict[str, str]:
    """Return the `key=value` folders of a path, decoded; a null is `NULL_PARTITION`."""
    parts = (part.partition("=") for part in PurePosixPath(name).parts[:-1])
    return {unescape(key): unescape(value) for key, equals, value in parts if equals}
