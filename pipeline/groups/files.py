"""The files of one group in a model but its bank: written, and read with a check of each.

Nothing here computes: who asks only which images a model was trained on loads no network.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from patchlake.pipeline.errors import ConfigError, ModelError
from patchlake.pipeline.methods.shared.corpus import Arrays
from patchlake.pipeline.model_store.arrays import from_bytes, to_bytes
from patchlake.pipeline.model_store.models import (
    MANIFEST,
    FileRecord,
    GroupRecord,
    read_file,
    write_files,
)
from patchlake.pipeline.scores.calibration import Calibration
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import parquet_table, reading
from patchlake.pipeline.tables import PROVENANCE, TRAINING_IMAGES

STATE = "state.safetensors"
_STATISTICS = "statistics.safetensors"
IMAGES = "images.parquet"
CALIBRATION = "calibration.json"
_PROVENANCE = "provenance.parquet"
_BANK = ".faiss"
_AGAIN = "restore it, or fit again"


@dataclass(frozen=True)
class Accounts:
    """What a group's files say beside what it scores with."""

    calibration: Calibration
    # Every image that was ever in it, schema `TRAINING_IMAGES`.
    images: pa.Table
    # Of the bank's rows, schema `PROVENANCE`, where they are of images.
    provenance: pa.Table | None
    # `FitResult.statistics`.
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
    contents = {STATE: to_bytes(state), **bank, CALIBRATION: accounts.calibration.to_json()}
    if accounts.statistics:
        contents[_STATISTICS] = to_bytes(accounts.statistics)
    for role, table in ((_PROVENANCE, accounts.provenance), (IMAGES, accounts.images)):
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
    if IMAGES not in roles:
        raise ConfigError(
            f"{model.root} was fitted before models recorded their images: none can join or leave; "
            "fit again"
        )

    def table(role: str) -> pa.Table | None:
        if role not in roles:
            return None
        schema = TRAINING_IMAGES if role == IMAGES else PROVENANCE
        with reading_file(model, record, role) as content:
            return _as_written(parquet_table(content), schema)

    statistics = read_arrays(model, record, _STATISTICS) if _STATISTICS in roles else {}
    images, provenance = table(IMAGES), table(_PROVENANCE)
    assert images is not None, "its role is there"
    with reading_file(model, record, IMAGES):
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
    if all(file.role != IMAGES for file in record.files):
        return None
    with reading_file(model, record, IMAGES) as content:
        return parquet_table(content)


def load_state(model: Folder, record: GroupRecord) -> Arrays:
    """Return the arrays of the method. Raises `ModelError`."""
    return read_arrays(model, record, STATE)


def require_bank(rows: int, record: GroupRecord) -> None:
    """Raise `ValueError` if a bank has another number of rows than the manifest says."""
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


def read_arrays(model: Folder, record: GroupRecord, role: str) -> Arrays:
    """Return the arrays of a file, all finite. Raises `ModelError`."""
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
        raise ValueError("its rows are not numbered as those of a bank, from 0")
    require_bank(len(rows), record)


def load_calibration(model: Folder, record: GroupRecord) -> Calibration:
    """Return how normal images of a group score. Raises `ModelError`."""
    with reading_file(model, record, CALIBRATION) as content:
        return Calibration.from_json(content)


def bank_records(record: GroupRecord) -> list[FileRecord]:
    """Return the files of a group's bank, in the order of its rows."""
    found = [file for file in record.files if file.role.endswith(_BANK)]
    return sorted(found, key=lambda file: file.role)


def bank_rows(record: GroupRecord) -> int:
    """Return how many rows a group's bank has."""
    return int(record.facts["bank_rows"])
