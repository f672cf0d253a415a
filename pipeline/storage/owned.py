"""Files of our own are input as well: a disk flips bits, a copy is cut short, a hand edits.

Whoever reads one parses it in `reading`, which turns whatever a parser says of such bytes into one
line that names the file and what to do. Errors of storage, and of a file that is not there, pass.
"""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError

from patchlake.pipeline.errors import ConfigError, PatchlakeError, StorageError, TableError
from patchlake.pipeline.shown import refused
from patchlake.pipeline.storage.folder import Folder

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

# What parsers of JSON, Arrow, Parquet, safetensors, faiss and numpy raise on bytes that are not
# what we wrote. Arrow's own OSError is of no errno; `RuntimeError` has `RecursionError` in it.
_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    MemoryError,
    SafetensorError,
    pa.ArrowException,
)
_NOT_A_FILE = (IsADirectoryError, NotADirectoryError, PermissionError)
_SHOWN = 200


@contextmanager
def reading(path: str, then: str, kind: type[ConfigError] = ConfigError) -> Iterator[None]:
    """Say of a file of ours that is not what we wrote which one it is, and what to do.

    Args:
        path: Of the file, for the message.
        then: What to do.
        kind: Of the error.

    Raises:
        ConfigError: of that kind, whatever is wrong with the contents.
        FileNotFoundError: as it comes; so do `StorageError` and our own errors.
    """
    try:
        yield
    except (PatchlakeError, StorageError, FileNotFoundError):
        raise
    except _NOT_A_FILE as error:
        raise kind(f"{path} cannot be read ({error.strerror or error}); {then}") from None
    except _DAMAGE as error:
        raise kind(f"{path} is damaged or of another format ({one_line(error)}); {then}") from None
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise kind(f"{path} cannot be read ({error.strerror or error}); {then}") from None
        if error.errno is not None:
            raise
        raise kind(f"{path} is damaged or of another format ({one_line(error)}); {then}") from None


def one_line(error: BaseException) -> str:
    """Return an error in one short line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        text = f"{place}: {refused(first['msg'])}" if place else refused(first["msg"])
    else:
        text = str(error) or type(error).__name__
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"


def read_json(
    folder: Folder, name: str, model: type[M], then: str, kind: type[ConfigError] = ConfigError
) -> M:
    """Return one JSON file of ours. Raises as `reading`, and `FileNotFoundError`."""
    with reading(folder.path(name), then, kind):
        return model.model_validate_json(folder.read(name))


def read_arrow(folder: Folder, name: str, schema: pa.Schema, then: str) -> pa.Table:
    """Return a table of ours of Arrow's IPC format.

    Raises:
        TableError: if it cannot be read, or is of another schema.
        FileNotFoundError: if there is none.
    """
    with reading(folder.path(name), then, TableError):
        return arrow_table(folder.read(name), schema)


def arrow_table(content: bytes, schema: pa.Schema) -> pa.Table:
    """Return the table of an Arrow IPC file, every buffer checked against its length.

    Raises:
        ValueError, OSError: if it is none, or of another schema.
    """
    table = pa.ipc.open_file(content).read_all()
    # What Arrow reads it does not look through: offsets may point anywhere.
    table.validate(full=True)
    if not table.schema.equals(schema):
        raise ValueError(f"columns {table.schema.names} are not {schema.names}")
    nulls = [f.name for f in schema if not f.nullable and table.column(f.name).null_count]
    if nulls:
        raise ValueError(f"nulls in {nulls}")
    return table


def parquet_table(content: bytes) -> pa.Table:
    """Return the rows of a Parquet file in memory.

    Not `pq.read_table` of a Python file: that is Arrow's dataset scanner, whose threads still hold
    the file when it has returned. Where the process ends at once, one of them lets go of it after
    the interpreter is gone: "terminate called without an active exception", exit code 134, in 2 of
    60 runs, and in none of 200 this way (https://github.com/apache/arrow/issues/33975, open).
    """
    return pq.ParquetFile(pa.BufferReader(content)).read()


def or_none(read: Callable[[], T]) -> T | None:
    """Return what is read, or None where it is not there or damaged: it can be made again."""
    try:
        return read()
    except (FileNotFoundError, ConfigError):
        return None
