"""The gallery of a model: feature maps of its training images, in memory-mapped files.

One safetensors file a fragment, written by the workers that fitted it; a file's role says the
number of its first image. A local model is mapped where it lies; of a remote one a worker keeps a
copy on its disk for as long as it runs.
"""

import tempfile
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pipeline.lake.arrays import to_bytes
from pipeline.lake.folder import Folder
from pipeline.lake.models import FileRecord, read_file, verify_file, write_files
from pipeline.methods.contract import Arrays
from pipeline.stages.corpus import StoredCorpus

_PREFIX = "gallery-"


def write_gallery(corpus: StoredCorpus, keep: Callable[[Arrays], Arrays]) -> list[FileRecord]:
    """Write what `keep` takes of each fragment's embeddings; the workers do it."""
    write = partial(_write, model=corpus.model, group=corpus.group, keep=keep)
    return list(corpus.each(write))


def _write(
    embeddings: Arrays,
    first: int,
    *,
    model: Folder,
    group: str,
    keep: Callable[[Arrays], Arrays],
) -> FileRecord:
    content = to_bytes(keep(embeddings))
    (record,) = write_files(model, group, {f"{_PREFIX}{first:09d}.safetensors": content})
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
            mapped.append(safe_open(path, framework="numpy"))
        firsts = [int(file.role.removeprefix(_PREFIX).partition(".")[0]) for file in files]
        return cls(firsts, mapped, copy)

    def of_image(self, number: int) -> Arrays:
        """Return what the fit kept of one training image."""
        at = bisect_right(self.firsts, number) - 1
        file, local = self.files[at], number - self.firsts[at]
        return {name: file.get_slice(name)[local] for name in file.keys()}  # noqa: SIM118
