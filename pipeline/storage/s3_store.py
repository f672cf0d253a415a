"""A folder in S3."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, cast

from patchlake.pipeline.storage.s3 import Bucket, Item
from patchlake.pipeline.storage.s3_file import RangedFile, uploading
from patchlake.pipeline.storage.stores import Entry

# Requests that remove one object each, at once: not every store removes many with one request.
_REMOVED_AT_ONCE = 16


@dataclass(frozen=True)
class S3Store:
    """The objects of a bucket whose keys begin with a prefix, which has no slash at its ends."""

    bucket: Bucket
    prefix: str

    pins_versions = True

    @property
    def root(self) -> str:
        """The normalised URI."""
        return f"s3://{self.bucket.name}/{self.prefix}".rstrip("/")

    def require_readable(self, name: str) -> None:
        """Raise `StorageRefused` if we may not list the objects and read one, or that one."""
        keys = [self.key(name)] if name else []
        if not name:
            keys = [item.key for item in self.bucket.items(self._folder(), at_most=1)]
        with contextlib.suppress(FileNotFoundError):
            for key in keys:
                self.bucket.get(key, span="0-0")

    def require_writable(self, probe: str) -> None:
        """Raise `StorageRefused` if we may not read, or put and remove an object of that name."""
        self.require_readable("")
        self.bucket.put(self.key(probe), b"")
        self.bucket.delete(self.key(probe))

    def open(self, name: str, version: str) -> BinaryIO:
        """Open a file for reading: the version that a listing named, or reading fails."""
        return cast("BinaryIO", RangedFile(self.bucket, self.key(name), version))

    def read(self, name: str, at_most: int | None) -> bytes:
        """Return a file's bytes, or its first `at_most`."""
        return self.bucket.get(self.key(name), at_most=at_most).content

    def exists(self, name: str) -> bool:
        """Return whether there is such a file or folder."""
        key = self.key(name)
        return self.bucket.head(key) is not None or any(self.bucket.items(f"{key}/", at_most=1))

    def entry(self, name: str) -> Entry:
        """Return one file's entry, as it is now."""
        item = self.bucket.head(self.key(name))
        if item is None:
            raise FileNotFoundError(f"{self.root}/{name} does not exist")
        return Entry(name, item.size, item.etag, item.modified)

    def entries(self, below: str) -> Iterator[Entry]:
        """Yield all files below a sub-folder; a thousand are in memory."""
        for item in self.bucket.items(self._folder(below)):
            yield Entry(self._name(item), item.size, item.etag, item.modified)

    def names(self, below: str) -> Iterator[str]:
        """Yield their names."""
        return (self._name(item) for item in self.bucket.items(self._folder(below)))

    def folders(self, below: str) -> Iterator[str]:
        """Yield the names of the sub-folders directly below one."""
        prefix = self._folder(below)
        return (key[len(prefix) : -1] for key in self.bucket.folders(prefix))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Upload a file as a stream: an object is seen when its upload is completed."""
        with uploading(self.bucket, self.key(name)) as upload:
            yield upload

    def create(self, name: str, content: bytes) -> bool:
        """Put a file if there is none of that name: see `Bucket.create`."""
        return self.bucket.create(self.key(name), content)

    def move(self, name: str, to: str) -> None:
        """Copy a file, on the store's side, and remove it."""
        self.bucket.copy(self.key(name), self.key(to))
        self.bucket.delete(self.key(name))

    def remove(self, name: str, *, recursive: bool) -> None:
        """Remove a file, or a sub-folder with all below it."""
        keys = [self.key(name)]
        if recursive:
            keys = [item.key for item in self.bucket.items(self._folder(name))]
        with ThreadPoolExecutor(_REMOVED_AT_ONCE) as pool:
            list(pool.map(self.bucket.delete, keys))

    def key(self, name: str) -> str:
        """Return a file's key."""
        return "/".join(part for part in (self.prefix, name) if part)

    def _folder(self, below: str = "") -> str:
        key = self.key(below)
        return f"{key}/" if key else ""

    def _name(self, item: Item) -> str:
        return item.key.removeprefix(self._folder())
