"""What a folder of the lake is kept in: a disk, S3, or whatever fsspec opens."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol

from patchlake.pipeline.errors import StorageError


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its name relative to the folder, its size in bytes, and what changes when it does.

    `modified` is when it was written, as far as the store says.
    """

    name: str
    size: int
    version: str
    modified: datetime | None = None


class Store(Protocol):
    """A root with files below it; `Folder` says what each method is to do.

    Names are relative to the root. Listings are in no order, and have temporary files in them.
    """

    @property
    def root(self) -> str:
        """The normalised URI: equal for two spellings of one root."""

    @property
    def pins_versions(self) -> bool:
        """Whether `open` with a version reads that version, or fails."""

    def open(self, name: str, version: str) -> BinaryIO:
        """Open a file for reading."""

    def read(self, name: str, at_most: int | None) -> bytes:
        """Return a file's bytes, or its first `at_most`."""

    def exists(self, name: str) -> bool:
        """Return whether there is such a file or folder."""

    def entry(self, name: str) -> Entry:
        """Return one file's entry, as it is now."""

    def entries(self, below: str) -> Iterable[Entry]:
        """Return all files below a sub-folder."""

    def names(self, below: str) -> Iterable[str]:
        """Return their names."""

    def folders(self, below: str) -> Iterable[str]:
        """Return the names of the sub-folders directly below one."""

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Write a file as a stream."""

    def create(self, name: str, content: bytes) -> bool:
        """Put a file if there is none of that name; return whether this call put it."""

    def move(self, name: str, to: str) -> None:
        """Give a file another name, replacing what has it."""

    def remove(self, name: str, *, recursive: bool) -> None:
        """Remove a file, or a sub-folder with all below it."""


class NotKnown(StorageError):  # noqa: N818 - an answer, no fault
    """The store does not know the request."""


class BeyondEnd(StorageError):  # noqa: N818 - as above
    """The file has not as many bytes as where the range begins."""
