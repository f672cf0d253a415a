"""What there is to ingest: a tree of splits and labels, a plain folder, or files of a manifest."""

import os.path
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

# `mvtec`: folders say split and label, of MVTec AD and all that is like it. `csv`: a manifest.
Layout = Literal["mvtec", "folder", "csv"]


@dataclass(frozen=True)
class Arrangement:
    """How a source is to be understood, as far as that is said."""

    # None: told by the names.
    layout: Layout | None = None
    # Of all images; None: what folders or columns say.
    group: str | None = None
    # Hive keys of the files that are written, outermost first (`sources.hive`).
    partitions: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A file, or a row of a manifest, that does not become a row."""

    # One of a few reasons, to be counted.
    why: str
    # What it is, and all that is known of why.
    line: str
    # Of an image that was listed.
    uri: str | None = None


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
    # The piece that the picture is of, or its lot.
    part_id: str | None = None
    # Folders of hive keys that its Parquet file lies in, as "dt=2026-11-28/line=L1"; or "".
    hive: str = ""
    # Of group, split and label, those of which the source says nothing: what is known of an image
    # that was ingested before stays.
    unsaid: frozenset[str] = frozenset()
    # A Parquet file of IMAGES and a row in it that has a mask for this image, where SOURCE has
    # none any more.
    masked_file: str | None = None
    masked_row: int | None = None

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
    skipped: list[LeftOut] = field(default_factory=list)
    # What is said besides: masks without an image, columns that are not read.
    notes: list[str] = field(default_factory=list)


def counted(images: Iterable[SourceImage]) -> list[tuple[str, str, str, int, int]]:
    """Return (group, split, label, images, masks) of each that occurs, sorted."""
    number: Counter[tuple[str, str, str]] = Counter()
    masks: Counter[tuple[str, str, str]] = Counter()
    for image in images:
        key = (image.group, image.split or "-", image.label or "-")
        number[key] += 1
        masks[key] += image.mask is not None or image.masked_file is not None
    return [(*key, number[key], masks[key]) for key in sorted(number)]


def shards(images: Sequence[SourceImage], shard_bytes: int) -> Iterator[list[SourceImage]]:
    """Cut images into the contents of Parquet files: of one folder, of about `shard_bytes`."""
    by_group: dict[tuple[str, str], list[SourceImage]] = {}
    for image in images:
        by_group.setdefault((image.hive, image.group), []).append(image)
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
