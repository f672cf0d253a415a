"""What one stage hands to the next: a fragment's rows and one array, as one Arrow row.

A stage is a function of one such row. It never raises for the fragment's own fault: the fragment
is given up with a message, later stages pass it on, and the job goes on with the others.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from patchlake.pipeline.errors import FileDamaged, InputChanged, PatchlakeError
from patchlake.pipeline.maths.interior import Interior
from patchlake.pipeline.reading.fragments import Fragment, Fragments
from patchlake.pipeline.record.runs import here
from patchlake.pipeline.tables import FRAGMENT_BATCH, FRAGMENT_RESULT, PLAN

# Of `Settings.fragment_attempts`.
ATTEMPTS = 3
# Storage that does not answer may answer in a moment: after 0.5, 2, 8 and then 30 s.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0

_NO_ROWS = pa.table({"status": pa.array([], pa.string())})


@dataclass(frozen=True)
class FragmentBatch:
    """A fragment on its way: one row an image, and an array with an entry for each ok image."""

    fragment: Fragment
    rows: pa.Table = field(default_factory=lambda: _NO_ROWS)
    array: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    failure: str | None = None
    # By stage: the time it took, and the node it ran on.
    seconds: Mapping[str, float] = field(default_factory=dict)
    nodes: Mapping[str, str] = field(default_factory=dict)
    # How often each stage tries it before it is given up.
    attempts: int = ATTEMPTS

    def to_arrow(self) -> pa.Table:
        """Return the batch as a one-row table of schema `FRAGMENT_BATCH`."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.rows.schema) as writer:
            writer.write_table(self.rows)
        array = np.ascontiguousarray(self.array)
        columns = [
            pa.array([self.fragment.to_json()], pa.string()),
            _binary(sink.getvalue()),
            _binary(pa.py_buffer(array)),
            pa.array([str(array.dtype)]),
            pa.array([list(array.shape)], pa.list_(pa.int64())),
            pa.array([self.failure], pa.string()),
            pa.array([list(self.seconds.items())], FRAGMENT_BATCH.field("seconds").type),
            pa.array([list(self.nodes.items())], FRAGMENT_BATCH.field("nodes").type),
            pa.array([self.attempts], pa.int32()),
        ]
        return pa.Table.from_arrays(columns, schema=FRAGMENT_BATCH)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "FragmentBatch":
        """Return the batch that `to_arrow` wrote; the array is a read-only view, not a copy."""
        row = {name: table.column(name)[0] for name in FRAGMENT_BATCH.names}
        buffer = row["array"].as_buffer()
        array = (
            np.frombuffer(buffer, np.dtype(row["dtype"].as_py()))
            if buffer.size
            else np.empty(0, np.dtype(row["dtype"].as_py()))
        )
        return cls(
            fragment=Fragment.from_json(row["fragment"].as_py()),
            rows=pa.ipc.open_stream(row["rows"].as_buffer()).read_all(),
            array=array.reshape(row["shape"].as_py()),
            failure=row["failure"].as_py(),
            seconds=dict(row["seconds"].as_py()),
            nodes=dict(row["nodes"].as_py()),
            attempts=row["attempts"].as_py(),
        )

    def statuses(self) -> list[str]:
        """Return the status of each row."""
        return list(self.rows.column("status").to_pylist())

    def interiors(self) -> list[Interior]:
        """Return what counts of each ok image, in order; nothing where there is no such region."""
        if "interior" not in self.rows.column_names:
            return []
        found = [one for one in self.rows.column("interior").to_pylist() if one is not None]
        return [Interior.from_bytes(one) for one in found]


@dataclass(frozen=True)
class FragmentResult:
    """The outcome of one fragment."""

    key: str
    path: str
    # Rows of the fragment, whatever became of them.
    planned: int
    statuses: Mapping[str, int]
    duplicates: int
    failure: str | None
    seconds: Mapping[str, float]
    nodes: Mapping[str, str]

    @classmethod
    def from_arrow(cls, table: pa.Table) -> "FragmentResult":
        """Return the result that `result_of` wrote."""
        row = table.to_pylist()[0]
        return cls(
            key=row["key"],
            path=row["path"],
            planned=row["planned"],
            statuses=dict(row["statuses"]),
            duplicates=row["duplicates"],
            failure=row["failure"],
            seconds=dict(row["seconds"]),
            nodes=dict(row["nodes"]),
        )


def advance(
    name: str, work: Callable[[FragmentBatch], FragmentBatch], table: pa.Table
) -> FragmentBatch:
    """Return the batch after `work`, or with the reason why it was given up.

    Any error is tried again, `batch.attempts` times in all. Errors that belong to the whole job (a
    wrong table, a damaged model) are not one fragment's, and are raised.
    """
    batch = FragmentBatch.from_arrow(table)
    if batch.failure is not None:
        return batch
    started = time.perf_counter()
    done = _tried(name, work, batch)
    seconds = {**batch.seconds, name: time.perf_counter() - started}
    if done.failure is not None:
        done = replace(batch, rows=_NO_ROWS, array=np.empty(0), failure=done.failure)
    return replace(done, seconds=seconds, nodes={**batch.nodes, name: here()})


def _tried(
    name: str, work: Callable[[FragmentBatch], FragmentBatch], batch: FragmentBatch
) -> FragmentBatch:
    pause = _FIRST_PAUSE_S
    for left in reversed(range(batch.attempts)):
        try:
            return work(batch)
        except (FileDamaged, InputChanged) as error:
            # A file that was replaced does not become what was planned; a read may have gone wrong.
            if left == 0 or isinstance(error, InputChanged):
                return replace(batch, failure=f"{name}: {error}")
        except PatchlakeError:
            raise
        except Exception as error:  # noqa: BLE001 - the fragment is listed with it, see above
            if left == 0:
                return replace(batch, failure=_describe(name, error))
            if isinstance(error, OSError):
                time.sleep(pause)
                pause = min(4 * pause, _LONGEST_PAUSE_S)
    raise AssertionError("no attempt was made")


def key_of(table: pa.Table) -> str:
    """Return the key of the fragment of a row of the plan, or of a batch that `to_arrow` wrote."""
    return _batch_of(table).fragment.key


def given_up(table: pa.Table, reason: str) -> pa.Table:
    """Return the batch without its rows: every stage passes it on, and it is listed as failed.

    Args:
        table: A one-row table, of schema `PLAN` or `FRAGMENT_BATCH`.
        reason: What is listed.
    """
    batch = _batch_of(table)
    return replace(batch, rows=_NO_ROWS, array=np.empty(0), failure=reason).to_arrow()


def result_of(batch: FragmentBatch) -> pa.Table:
    """Return the outcome as a one-row table of schema `FRAGMENT_RESULT`."""
    identities = Counter(
        batch.rows.column("image_id").to_pylist() if "image_id" in batch.rows.column_names else []
    )
    row = {
        "key": batch.fragment.key,
        "path": batch.fragment.path,
        "planned": batch.fragment.images,
        "statuses": list(Counter(batch.statuses()).items()),
        "duplicates": sum(1 for count in identities.values() if count > 1),
        "failure": batch.failure,
        "seconds": list(batch.seconds.items()),
        "nodes": list(batch.nodes.items()),
    }
    return pa.Table.from_pylist([row], schema=FRAGMENT_RESULT)


def _batch_of(table: pa.Table) -> FragmentBatch:
    is_planned = table.column_names == PLAN.names
    return FragmentBatch(Fragments(table)[0]) if is_planned else FragmentBatch.from_arrow(table)


def _binary(buffer: pa.Buffer) -> pa.Array:
    offsets = np.array([0, buffer.size], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(offsets), buffer])


def _describe(name: str, error: Exception) -> str:
    return f"{name}: {type(error).__name__}: {error}"
