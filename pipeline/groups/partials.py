"""Partial results of a fit, in the run's folder: a fragment's embeddings, and of which images."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter
from safetensors import SafetensorError

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.model_store.arrays import from_bytes, to_bytes
from patchlake.pipeline.model_store.per_image import PerImageFile
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import reading

_AGAIN = "remove it and start the same command again, which makes it again"

# Partial results of earlier versions are of another format and name, and are not found.
EMBEDDINGS = ".embeddings.arrow"
# What a method notes while it trains.
_NOTES = ".notes.safetensors"

# Of a fragment, what is folded at once. 256 images of 56 x 56 locations have 1.8 GB with
# PaDiM's 550 channels; with 100 they have 321 MB, and are folded whole.
_PIECE_BYTES = 512 * 2**20
# Of a file that is read through: in S3 a request each, whose 30 ms are nothing beside 64 MiB.
_AHEAD_BYTES = 64 * 2**20
# What fragments are of is a few KB behind the latency of an object store.
READ_AT_ONCE = 16


def embedded_keys(model: Folder, partials: str) -> pa.StringArray:
    """Return the keys of the fragments whose embeddings are stored. One listing."""
    names = (name.removeprefix(partials) for name in model.names(partials.rstrip("/")))
    found = (name.partition(".")[0] for name in names if name.endswith(EMBEDDINGS))
    return pa.array(found, pa.string())


def embedded_bytes(model: Folder, partials: str) -> dict[str, int]:
    """Return key -> bytes of the fragments' embeddings that are stored. One listing."""
    entries = model.find(partials.rstrip("/"))
    return {
        entry.name.removeprefix(partials).partition(".")[0]: entry.size
        for entry in entries
        if entry.name.endswith(EMBEDDINGS)
    }


def intact_keys(model: Folder, partials: str) -> pa.StringArray:
    """Return those of `embedded_keys` whose files are whole, as far as their ends tell.

    The others are to be embedded again. Two small reads a fragment.
    """
    keys = embedded_keys(model, partials)
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        whole = pool.map(lambda key: _is_whole(model, partials, key), keys.to_pylist())
        return keys.filter(pa.array(whole, pa.bool_()))


def _is_whole(model: Folder, partials: str, key: str) -> bool:
    try:
        embedded = load_images(model, partials, key)
        with opened(model, f"{partials}{key}{EMBEDDINGS}") as stored:
            return stored.images == len(embedded.image_ids)
    except (ConfigError, FileNotFoundError):
        return False


@dataclass(frozen=True)
class EmbeddedImages:
    """The images that a fragment's embeddings are of."""

    # Of the usable images.
    image_ids: list[str]
    source_rows: list[int]
    # Of all images that were to be used.
    statuses: list[str]
    # Of the usable images' encoded files.
    sha256s: list[str]
    # Of the usable images: `part_id`, and `images.thumbnails.thumbnail` in base64.
    part_ids: list[str | None] = field(default_factory=list)
    thumbnails: list[str] = field(default_factory=list)
    # Of the usable images: `Interior.to_bytes` in base64; none where all of each image counts.
    interiors: list[str] = field(default_factory=list)
    # Of the usable images: `images.appearance` and `features.summary`.
    brightness: list[float] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    embeddings: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        usable = Counter(self.statuses)["ok"]
        if not len(self.image_ids) == len(self.source_rows) == usable:
            counts = len(self.image_ids), len(self.source_rows), usable
            raise ValueError(f"ids, rows and statuses are of different numbers of images: {counts}")


@dataclass(frozen=True)
class StoredReader:
    """The same embeddings, for a worker."""

    model: Folder
    names: Sequence[str]
    sizes: Sequence[int]

    def load(self, fragment: int) -> Arrays:
        """Return one fragment's embeddings, by its number."""
        return load(self.model, [self.names[fragment]])


@dataclass(frozen=True)
class RunNotes:
    """Arrays in the run's folder, which go with its partial results."""

    model: Folder
    prefix: str

    def read(self, name: str) -> Arrays | None:
        """Return what was written last, or None."""
        try:
            content = self.model.read(f"{self.prefix}{name}{_NOTES}")
        except FileNotFoundError:
            return None
        try:
            return from_bytes(content)
        except (SafetensorError, ValueError):
            # Cut short: the work begins anew, as if nothing had been noted.
            return None

    def write(self, name: str, arrays: Arrays) -> None:
        """Replace what was written, in one atomic put."""
        self.model.write(f"{self.prefix}{name}{_NOTES}", to_bytes(arrays))


_EMBEDDED_IMAGES = TypeAdapter(EmbeddedImages)


def load_images(model: Folder, partials: str, key: str) -> EmbeddedImages:
    """Return what a fragment's embeddings are of."""
    name = f"{partials}{key}.json"
    with reading(model.path(name), _AGAIN):
        return _EMBEDDED_IMAGES.validate_json(model.read(name))


@contextmanager
def opened(model: Folder, name: str, ahead: int = 0) -> Iterator[PerImageFile]:
    """Open a file of embeddings; whatever is wrong with it is said with its name."""
    with reading(model.path(name), _AGAIN), model.open(name) as file:
        yield PerImageFile.over(file, ahead=0 if model.is_local else ahead)


def load(model: Folder, names: Sequence[str]) -> Arrays:
    """Return the embeddings of some files, one after the other: each byte is in memory once."""
    if len(names) == 1:
        with opened(model, names[0], _AHEAD_BYTES) as stored:
            return stored.read(range(stored.images))
    # Opened one by one, twice each: a worker's share may be more files than a process may open.
    counts = []
    for name in names:
        with opened(model, name) as stored:
            counts.append(stored.images)
    arrays = stored.empty(sum(counts))
    for name, first, count in zip(names, np.cumsum([0, *counts]), counts, strict=False):
        part = {key: array[first:][:count] for key, array in arrays.items()}
        with opened(model, name, _AHEAD_BYTES) as stored:
            stored.read_into(part)
    return arrays


def pieces(model: Folder, name: str) -> Iterator[tuple[int, Arrays]]:
    """Yield the number of the first image, and the arrays, of each piece of a file."""
    with opened(model, name, _AHEAD_BYTES) as stored:
        for piece in stored.pieces(_PIECE_BYTES):
            yield piece.start, stored.read(piece)
