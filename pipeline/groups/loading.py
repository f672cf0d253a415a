"""A group's model between memory and the model folder, whole or split over processes."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float32

from patchlake.pipeline.config import IndexSettings
from patchlake.pipeline.errors import ConfigError, ModelError
from patchlake.pipeline.groups.files import (
    CALIBRATION,
    IMAGES,
    bank_records,
    load_state,
    require_bank,
)
from patchlake.pipeline.groups.gallery import StoredGallery, gallery_files
from patchlake.pipeline.index.accelerated import AcceleratedSearch
from patchlake.pipeline.index.approximate import ApproximateSearch, Quality, measure
from patchlake.pipeline.index.choose import search_over
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.files import require_index
from patchlake.pipeline.index.galleries import SLOTS_BYTES
from patchlake.pipeline.index.search import Search
from patchlake.pipeline.index.shards import Kind, from_shards, load_shards, to_shards
from patchlake.pipeline.methods.shared.bank import MemoryBank
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.model_store.models import (
    NOT_SCORED_WITH,
    FileRecord,
    GroupRecord,
    read_file,
    verify_file,
)
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import reading

_AGAIN = "restore it, or fit again"

# Patches on which an approximate index is held against exact search: one missed in 2000 is seen.
MEASURED_PATCHES = 2000

# Files of a model that are read at the same time: of a fleet they are many and small.
_FILES_AT_ONCE = 8

_KINDS: Mapping[str, Kind] = {"exact": "flat", "hnsw": "hnsw", "ivf": "ivf"}


def bank_files(bank: MemoryBank, settings: IndexSettings) -> dict[str, bytes]:
    """Return the memory bank as faiss files, role -> content."""
    return to_shards(
        bank.rows,
        kind=_KINDS[settings.kind],
        effort=settings.effort,
        shard_bytes=settings.shard_bytes,
    )


def measured_quality(
    bank: MemoryBank,
    files: dict[str, bytes],
    settings: IndexSettings,
    queries: Float32[np.ndarray, "queries dim"] | None,
) -> Quality:
    """Return how well an approximate index finds what exact search finds.

    Args:
        bank: The rows.
        files: From `bank_files`.
        settings: Name the recall below which the index is refused.
        queries: Normal patches that are not in the bank; None, where all are in it.

    Raises:
        ConfigError: if the recall is lower.
    """
    found = ApproximateSearch.over(load_shards(files, kind=_KINDS[settings.kind]))
    exact = ExactSearch.over(bank.rows)
    if queries is None:
        some = np.ascontiguousarray(bank.rows[:: -(-len(bank.rows) // MEASURED_PATCHES)])
        quality = measure(found, exact, some, are_rows=True)
    else:
        quality = measure(found, exact, queries)
    if quality.recall_at_1 < settings.min_recall:
        raise ConfigError(
            f"index.kind={settings.kind} finds the nearest of {len(bank.rows)} rows for "
            f"{quality.recall_at_1:.4f} of {quality.queries} held-out patches, index.min_recall is "
            f"{settings.min_recall}; scores would be too high by "
            f"{quality.max_score_error_relative:.1%} at worst. Raise index.effort, lower "
            "index.min_recall, or use index.kind=exact"
        )
    return quality


def load_bank_rows(model: Folder, record: GroupRecord) -> np.ndarray | None:
    """Return the rows of the memory bank, if there is one. Raises `ModelError`."""
    if record.index is None:
        return None
    return from_shards(read_bank(model, record), kind=_KINDS[record.index])


def verify_groups(model: Folder, records: Iterable[GroupRecord]) -> None:
    """Read and check the files of these groups, several at a time. Raises `ModelError`.

    But for two small ones, which a score reads, and so checks, before it scores anything: the
    calibration (`load_calibration`) and the list of images (`lake.trained.write_trained`).
    """
    read_anyway = (CALIBRATION, IMAGES)
    files = (f for record in records for f in record.files if f.role not in read_anyway)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for _ in pool.map(partial(verify_file, model), files):
            pass


def held_bytes(record: GroupRecord) -> int:
    """Return about how much memory a group's loaded model takes.

    Twice its files: a bank is searched beside a centred copy, triangles are unpacked to squares. Of
    a gallery, which stays where it is, only what is kept of it for searching.
    """
    galleries = gallery_files(record.files)
    loaded = (f for f in record.files if not f.role.startswith(NOT_SCORED_WITH))
    files = sum(file.bytes for file in loaded) - sum(file.bytes for file in galleries)
    return 2 * files + (SLOTS_BYTES if galleries else 0)


@dataclass(frozen=True)
class LoadedGroup:
    """A fitted group from its model folder. Build it with `load_group`."""

    arrays: Arrays
    # The rows of an exact bank, or a search over it that others have made; None: there is no bank.
    bank: np.ndarray | Search | None
    maps: StoredGallery | None
    # Of a search.
    threads: int

    def state(self) -> Arrays:
        """Return the arrays of the method."""
        return self.arrays

    def search(self) -> Search:
        """Return the search over the bank. Raises `LookupError` where the model has none.

        An exact bank is searched in whichever way is fastest here; all ways give the same numbers.
        """
        if self.bank is None:
            raise LookupError("there is no memory bank among them")
        if isinstance(self.bank, np.ndarray | ExactSearch):
            return fastest(self.bank, self.threads)
        return self.bank

    def rows(self) -> Float32[np.ndarray, "bank dim"]:
        """Return the rows of an exact bank that is in this process.

        Raises:
            ConfigError: if others hold it in parts, or its index is approximate.
            LookupError: where the model has none.
        """
        if self.bank is None:
            raise LookupError("there is no memory bank among them")
        if isinstance(self.bank, ExactSearch):
            return self.bank.bank
        if not isinstance(self.bank, np.ndarray):
            raise ConfigError(
                f"a bank in a {type(self.bank).__name__} is not searched near places or layer by "
                "layer (method.position_radius, method.layers_apart); use index.kind=exact, and a "
                "memory_budget that holds it"
            )
        return self.bank

    def gallery(self) -> StoredGallery:
        """Return what is kept of the images. Raises `LookupError` where nothing is."""
        if self.maps is None:
            raise LookupError("there is no gallery among them")
        return self.maps


def load_group(
    model: Folder, record: GroupRecord, threads: int, bank: Search | None = None
) -> LoadedGroup:
    """Return a group, each file read and checked, also those that its method does not ask for.

    Args:
        model: The model folder.
        record: The group's.
        threads: Of a search.
        bank: Where others have it: the dense search over it, or a search of theirs.

    Raises:
        ModelError: if a file is missing or damaged.
    """
    found: np.ndarray | Search | None = bank
    if found is None and record.index is not None:
        found = _bank(read_bank(model, record), record.index)
    state = load_state(model, record)
    files = gallery_files(record.files)
    gallery = StoredGallery.open(model, files) if files else None
    return LoadedGroup(state, found, gallery, threads)


def read_bank(
    model: Folder, record: GroupRecord, files: Sequence[FileRecord] | None = None
) -> dict[str, bytes]:
    """Return the content of the bank's files by role, checked before faiss sees any of it.

    Args:
        model: The model folder.
        record: The group's, which has a bank.
        files: Some of `bank_records`; without, all.

    Raises:
        ModelError: if a file is missing, damaged, or no index of the kind that `record` says.
    """
    assert record.index is not None, "asked for where there is a bank"
    contents: dict[str, bytes] = {}
    shapes: list[tuple[int, int]] = []
    for file in bank_records(record) if files is None else files:
        content = read_file(model, file)
        with reading(model.path(file.name), _AGAIN, ModelError):
            shapes.append(require_index(content, _KINDS[record.index]))
            if shapes[-1][1] != shapes[0][1]:
                raise ValueError(f"its rows have {shapes[-1][1]} dimensions, not {shapes[0][1]}")
            if files is None and len(contents) + 1 == len(bank_records(record)):
                require_bank(sum(rows for rows, _ in shapes), record)
        contents[file.role] = content
    return contents


def _bank(shards: dict[str, bytes], index: str) -> np.ndarray | Search:
    kind = _KINDS[index]
    if kind != "flat":
        return ApproximateSearch.over(load_shards(shards, kind=kind))
    return from_shards(shards)


def fastest(bank: Float32[np.ndarray, "bank dim"] | ExactSearch, threads: int) -> Search:
    """Return the fastest search over a bank, or a dense one's; all give the same numbers."""
    if torch.cuda.is_available():
        rows = bank.bank if isinstance(bank, ExactSearch) else bank
        return AcceleratedSearch.over(rows, torch.device("cuda"))
    dense = bank if isinstance(bank, ExactSearch) else ExactSearch.over(bank)
    return search_over(dense, threads=threads)
