"""The gallery of a model: feature maps of its training images, in memory-mapped files.

One safetensors file a fragment, written by the workers that fitted it; a file's role says the
number of its first image. A local model is mapped where it lies; of a remote one a worker keeps a
copy on its disk for as long as it runs.
"""

import tempfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from patchlake.pipeline.errors import ModelError
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.model_store.arrays import from_bytes, to_bytes
from patchlake.pipeline.model_store.models import FileRecord, read_file, verify_file, write_files
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import reading

_PREFIX = "gallery-"


def write_gallery(
    corpus: StoredCorpus, keep: Callable[[Arrays], Arrays], model: Folder, *, before: int = 0
) -> list[FileRecord]:
    """Write what `keep` takes of each fragment's embeddings into a model; the workers do it.

    `before` images are in the gallery already.
    """
    return list(corpus.each(_Writer(model, corpus.group, keep, before)))


def without_images(
    model: Folder, group: str, files: Sequence[FileRecord], withdrawn: Sequence[int]
) -> list[FileRecord]:
    """Return a gallery without some images; the others close up.

    Files that hold any of them are read, and written anew without them. Others keep their names,
    under other roles.
    """
    left, taken = [], np.unique(withdrawn)
    firsts = [_first(file) for file in files]
    before = np.searchsorted(taken, [*firsts, np.iinfo(np.int64).max])
    for number, file in enumerate(files):
        first, gone = firsts[number], taken[before[number] : before[number + 1]]
        role = _role(first - int(before[number]))
        if len(gone) == 0:
            left.append(file.model_copy(update={"role": role}))
            continue
        content = read_file(model, file)
        with reading(model.path(file.name), "restore it, or fit again", ModelError):
            images: Arrays = from_bytes(content)
        kept = {name: np.delete(array, gone - first, axis=0) for name, array in images.items()}
        if len(next(iter(kept.values()))):
            left += write_files(model, group, {role: to_bytes(kept)})
    return left


def _role(first: int) -> str:
    return f"{_PREFIX}{first:09d}.safetensors"


def _first(file: FileRecord) -> int:
    """Return the number of a file's first image: undoes `_role`."""
    return int(file.role.removeprefix(_PREFIX).partition(".")[0])


@dataclass(frozen=True)
class _Writer:
    """Writes the file of one fragment, wherever a worker is."""

    model: Folder
    group: str
    keep: Callable[[Arrays], Arrays]
    before: int

    def __call__(self, embeddings: Arrays, first: int) -> FileRecord:
        content = to_bytes(self.keep(embeddings))
        (record,) = write_files(self.model, self.group, {_role(self.before + first): content})
        return record


def gallery_files(files: Sequence[FileRecord]) -> list[FileRecord]:
    """Return those of a group's files that are its gallery."""
    return sorted((f for f in files if f.role.startswith(_PREFIX)), key=lambda file: file.role)


@dataclass(frozen=True)
class StoredGallery:
    """Reads images out of a gallery. Build it with `open`."""

    # Number of the first image of each file.
    firsts: Sequence[int]
    files: Sequence[Any]
    # Where a remote gallery's copy is; it goes with this object.
    _copy: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    @classmethod
    def open(cls, model: Folder, files: Sequence[FileRecord]) -> "StoredGallery":
        """Return the gallery of these files, each checked. Raises `ModelError`."""
        copy = None if model.is_local else tempfile.TemporaryDirectory(prefix="patchlake-gallery-")
        mapped = []
        for file in files:
            if copy is None:
                verify_file(model, file)
                path = Path(model.path(file.name))
            else:
                path = Path(copy.name) / file.role
                path.write_bytes(read_file(model, file))
            with reading(model.path(file.name), "restore it, or fit again", ModelError):
                mapped.append(safe_open(path, framework="numpy"))
        return cls([_first(file) for file in files], mapped, copy)

    def of_image(self, number: int) -> Arrays:
        """Return what the fit kept of one training image."""
        at = bisect_right(self.firsts, number) - 1
        if at < 0:
            raise IndexError(
                f"image {number} is not in the gallery, which begins with {self.firsts}"
            )
        file, local = self.files[at], number - self.firsts[at]
        return {name: file.get_slice(name)[local] for name in file.keys()}  # noqa: SIM118
