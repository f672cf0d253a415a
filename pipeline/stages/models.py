"""A group's model between memory and the model folder, whole or spread over processes."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float32

from pipeline.config import IndexSettings
from pipeline.errors import ConfigError, ModelError
from pipeline.index.accelerated import AcceleratedSearch
from pipeline.index.approximate import ApproximateSearch, Quality, measure
from pipeline.index.choose import search_over
from pipeline.index.exact import ExactSearch
from pipeline.index.files import require_index
from pipeline.index.galleries import SLOTS_BYTES
from pipeline.index.search import Search
from pipeline.index.shards import Kind, from_shards, load_shards, to_shards
from pipeline.lake.arrays import from_bytes, to_bytes
from pipeline.lake.folder import Folder
from pipeline.lake.models import (
    MANIFEST,
    NOT_SCORED_WITH,
    FileRecord,
    GroupRecord,
    read_file,
    verify_file,
    write_files,
)
from pipeline.lake.owned import parquet_table, reading
from pipeline.methods.contract import Arrays, MemoryBank, Model
from pipeline.scores.calibration import Calibration
from pipeline.stages.gallery import StoredGallery, gallery_files
from pipeline.tables import PROVENANCE, TRAINING_IMAGES

_STATE = "state.safetensors"
_STATISTICS = "statistics.safetensors"
_IMAGES = "images.parquet"
_CALIBRATION = "calibration.json"
_PROVENANCE = "provenance.parquet"
_BANK = ".faiss"
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


@dataclass(frozen=True)
class Accounts:
    """What a group's files say beside what it scores with."""

    calibration: Calibration
    # Every image that was ever in it, schema `TRAINING_IMAGES`.
    images: pa.Table
    # Of the bank's rows, schema `PROVENANCE`, where they are of images.
    provenance: pa.Table | None
    # `Fitted.statistics`.
    statistics: Arrays


def store_group(
    model: Folder, group: str, state: Arrays, bank: Mapping[str, bytes], accounts: Accounts
) -> list[FileRecord]:
    """Write a group's files; it counts only once `model.json` names them.

    Args:
        model: The model folder.
        group: Its name.
        state: Arrays of the method.
        bank: From `bank_files`; empty where there is none.
        accounts: What else is stored.
    """
    contents = {_STATE: to_bytes(state), **bank, _CALIBRATION: accounts.calibration.to_json()}
    if accounts.statistics:
        contents[_STATISTICS] = to_bytes(accounts.statistics)
    for role, table in ((_PROVENANCE, accounts.provenance), (_IMAGES, accounts.images)):
        if table is not None:
            sink = io.BytesIO()
            pq.write_table(table, sink, compression="zstd")
            contents[role] = sink.getvalue()
    return write_files(model, group, contents)


def load_accounts(model: Folder, record: GroupRecord) -> Accounts:
    """Return what is stored of a group beside what it scores with, each file checked.

    Raises:
        ConfigError: if the model was fitted before its images were recorded.
        ModelError: if a file is missing or damaged.
    """
    roles = {file.role for file in record.files}
    if _IMAGES not in roles:
        raise ConfigError(
            f"{model.root} was fitted before models recorded their images: none can join or leave; "
            "fit again"
        )

    def table(role: str) -> pa.Table | None:
        if role not in roles:
            return None
        schema = TRAINING_IMAGES if role == _IMAGES else PROVENANCE
        with reading_file(model, record, role) as content:
            return _as_written(parquet_table(content), schema)

    statistics = _arrays(model, record, _STATISTICS) if _STATISTICS in roles else {}
    images, provenance = table(_IMAGES), table(_PROVENANCE)
    assert images is not None, "its role is there"
    with reading_file(model, record, _IMAGES):
        present = images.column("left").null_count
        if present != record.images:
            raise ValueError(f"it lists {present} images, {MANIFEST} says {record.images}")
    if provenance is not None:
        with reading_file(model, record, _PROVENANCE):
            _require_rows(provenance, record)
    return Accounts(load_calibration(model, record), images, provenance, statistics)


def load_images(model: Folder, record: GroupRecord) -> pa.Table | None:
    """Return the images of a group, schema `TRAINING_IMAGES` of its time; None where none are kept.

    Raises:
        ModelError: if the file is missing or damaged.
    """
    files = [file for file in record.files if file.role == _IMAGES]
    return pq.read_table(io.BytesIO(read_file(model, files[0]))) if files else None


def load_state(model: Folder, record: GroupRecord) -> Arrays:
    """Return the arrays of the method. Raises `ModelError`."""
    return _arrays(model, record, _STATE)


def load_bank_rows(model: Folder, record: GroupRecord) -> np.ndarray | None:
    """Return the rows of the memory bank, if there is one. Raises `ModelError`."""
    if record.index is None:
        return None
    return from_shards(read_bank(model, record), kind=_KINDS[record.index])


def verify_groups(model: Folder, records: Iterable[GroupRecord]) -> None:
    """Read and check the files of these groups, several at a time. Raises `ModelError`.

    But for two small ones, which a score reads, and so checks, before it scores anything: the
    calibration (`load_calibration`) and the list of images (`stages.trained.write_trained`).
    """
    read_anyway = (_CALIBRATION, _IMAGES)
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


def load_group(
    model: Folder, record: GroupRecord, threads: int, search: Search | None = None
) -> Model:
    """Return what scoring needs of a group, each file checked.

    An exact bank is searched in whichever way is fastest here; all ways give the same numbers.

    Args:
        model: The model folder.
        record: The group's.
        threads: Of a search.
        search: Over the bank, where others hold it.

    Raises:
        ModelError: if a file is missing or damaged.
    """
    if search is None and record.index is not None:
        search = _search(read_bank(model, record), record.index, threads)
    state = load_state(model, record)
    files = gallery_files(record.files)
    return Model(state, search, StoredGallery.open(model, files) if files else None)


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
                _require_bank(sum(rows for rows, _ in shapes), record)
        contents[file.role] = content
    return contents


def _require_bank(rows: int, record: GroupRecord) -> None:
    if rows != record.facts.get("bank_rows", rows):
        raise ValueError(f"the bank has {rows} rows, {MANIFEST} says {record.facts['bank_rows']}")


@contextmanager
def reading_file(model: Folder, record: GroupRecord, role: str) -> Iterator[bytes]:
    """Read a file of a group, and say of what is wrong with it which file that is.

    Raises:
        ModelError: if it is missing or damaged, or what the block does with it fails.
    """
    found = next((file for file in record.files if file.role == role), None)
    if found is None:
        raise ModelError(f"{model.path(MANIFEST)} names no {role} of a group; {_AGAIN}")
    content = read_file(model, found)
    with reading(model.path(found.name), _AGAIN, ModelError):
        yield content


def _arrays(model: Folder, record: GroupRecord, role: str) -> Arrays:
    with reading_file(model, record, role) as content:
        arrays: Arrays = from_bytes(content)
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"array '{name}' has values that are not finite")
    return arrays


def _as_written(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table of a schema. Raises `ValueError`; a nullable column may be absent."""
    table.validate(full=True)
    for field in schema:
        if field.name not in table.column_names:
            if not field.nullable:
                raise ValueError(f"it lacks column '{field.name}'")
            continue
        column = table.column(field.name)
        if column.type != field.type or (column.null_count and not field.nullable):
            raise ValueError(f"column '{field.name}' is {column.type}, or has nulls")
    return table


def _require_rows(provenance: pa.Table, record: GroupRecord) -> None:
    rows = provenance.column("bank_row").to_numpy()
    if not np.array_equal(rows, np.arange(len(rows))):
        raise ValueError("its rows are not those of a bank, from 0")
    _require_bank(len(rows), record)


def _search(shards: dict[str, bytes], index: str, threads: int) -> Search:
    kind = _KINDS[index]
    if kind != "flat":
        return ApproximateSearch.over(load_shards(shards, kind=kind))
    return fastest(from_shards(shards), threads)


def fastest(bank: Float32[np.ndarray, "bank dim"] | ExactSearch, threads: int) -> Search:
    """Return the fastest search over a bank, or a dense one's; all give the same numbers."""
    if torch.cuda.is_available():
        rows = bank.bank if isinstance(bank, ExactSearch) else bank
        return AcceleratedSearch.over(rows, torch.device("cuda"))
    dense = bank if isinstance(bank, ExactSearch) else ExactSearch.over(bank)
    return search_over(dense, threads=threads)


def load_calibration(model: Folder, record: GroupRecord) -> Calibration:
    """Return how normal images of a group score. Raises `ModelError`."""
    with reading_file(model, record, _CALIBRATION) as content:
        return Calibration.from_json(content)


def bank_records(record: GroupRecord) -> list[FileRecord]:
    """Return the files of a group's bank, in the order of its rows."""
    found = [file for file in record.files if file.role.endswith(_BANK)]
    return sorted(found, key=lambda file: file.role)


def bank_rows(record: GroupRecord) -> int:
    """Return how many rows a group's bank has."""
    return int(record.facts["bank_rows"])
