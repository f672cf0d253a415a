"""What there is to ingest: a tree of splits and labels, a plain folder, or files of a manifest."""

import os.path
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

# `mvtec`: folders say split and label, of MVTec AD and all that is like it. `csv`: a manifest.
Layout = Literal["mvtec", "folder", "csv"]


@dataclass(frozen=True)
class SourceImage:
    """One file to ingest; the fields are those of `tables.SOURCE`."""

    image_id: str
    folder: str
    name: str
    version: str
    bytes: int
    group: str
    split: str | None = None
    label: str | None = None
    mask: str | None = None
    captured_at: datetime | None = None
    mask_version: str | None = None

    @property
    def uri(self) -> str:
        """Where the file is: the `source_uri` of its row."""
        return f"{self.folder.rstrip('/')}/{self.name}"

    @property
    def has_own_id(self) -> bool:
        """Whether its id says more than where it is."""
        return not f"/{self.uri}".endswith(f"/{self.image_id}")


@dataclass(frozen=True)
class Places:
    """Which URIs are of one file: on a disk, folders that are links are where they lead to.

    So a tree is known again under another path. A file that is a link is a file of its own.
    """

    _real: dict[str, str] = field(default_factory=dict)

    def of(self, uri: str) -> str:
        """Return what is equal for two URIs of one file."""
        if "://" in uri:
            return uri
        folder, _, name = uri.rpartition("/")
        if folder not in self._real:
            self._real[folder] = os.path.realpath(folder or "/").rstrip("/")
        return f"{self._real[folder]}/{name}"


@dataclass(frozen=True)
class Listing:
    """Images in the order of their names, and what was left out or understood, a line each."""

    images: list[SourceImage] = field(default_factory=list)
    # Files that do not become rows, each with the reason.
    skipped: list[str] = field(default_factory=list)
    # What is said besides: masks without an image, columns that are not read.
    notes: list[str] = field(default_factory=list)

    def counts(self) -> list[tuple[str, str, str, int, int]]:
        """Return (group, split, label, images, masks) of each that occurs, sorted."""
        images: Counter[tuple[str, str, str]] = Counter()
        masks: Counter[tuple[str, str, str]] = Counter()
        for image in self.images:
            key = (image.group, image.split or "-", image.label or "-")
            images[key] += 1
            masks[key] += image.mask is not None
        return [(*key, images[key], masks[key]) for key in sorted(images)]


def shards(images: Sequence[SourceImage], shard_bytes: int) -> Iterator[list[SourceImage]]:
    """Cut images into the contents of Parquet files: of one group, of about `shard_bytes`."""
    by_group: dict[str, list[SourceImage]] = {}
    for image in images:
        by_group.setdefault(image.group, []).append(image)
    for _, of_group in sorted(by_group.items()):
        shard: list[SourceImage] = []
        size = 0
        for image in of_group:
            if shard and size + image.bytes > shard_bytes:
                yield shard
                shard, size = [], 0
            shard.append(image)
            size += image.bytes
        yield shard
