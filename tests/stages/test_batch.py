"""What stages hand on: the batch as Arrow, its failure, and its result."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from patchlake.pipeline.errors import ConfigError, InputChanged
from patchlake.pipeline.reading.fragments import Fragment, Fragments
from patchlake.pipeline.stages.batch import (
    FragmentBatch,
    FragmentResult,
    advance,
    given_up,
    key_of,
    result_of,
)
from patchlake.pipeline.tables import FRAGMENT_BATCH, FRAGMENT_RESULT

FRAGMENT = Fragment("g=a/part.parquet", (0, 2), 5, "a", 3, "v1").keyed("settings")


def rows_of(*statuses, ids=None):
    ids = ids or [f"image-{number}" for number in range(len(statuses))]
    return pa.table({"image_id": ids, "status": pa.array(statuses, pa.string())})


BATCH = FragmentBatch(
    FRAGMENT, rows_of("ok", "unreadable", "ok"), np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
)


def travel(batch):
    """As between two processes: through an Arrow file."""
    sink = pa.BufferOutputStream()
    table = batch.to_arrow()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


@given(
    array=arrays.arrays(
        st.sampled_from([np.uint8, np.float32]),
        arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4),
    ),
    statuses=st.lists(st.sampled_from(["ok", "unreadable", "missing"]), max_size=5),
    failure=st.none() | st.text(max_size=20),
    seconds=st.dictionaries(st.sampled_from(["read", "decode", "infer"]), st.floats(0, 1e6)),
    transposed=st.booleans(),
)
def test_a_batch_comes_back_as_it_was(array, statuses, failure, seconds, transposed):
    array = array.T if transposed else array
    batch = FragmentBatch(FRAGMENT, rows_of(*statuses), array, failure, seconds)
    table = travel(batch)

    back = FragmentBatch.from_arrow(table)

    assert table.schema.equals(FRAGMENT_BATCH)
    assert len(table) == 1
    assert back.fragment == FRAGMENT
    assert back.rows.equals(batch.rows)
    assert (back.array.dtype, back.array.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back.array, array)
    assert (back.failure, back.seconds) == (failure, seconds)
    assert back.statuses() == statuses


def test_a_stage_adds_its_seconds_to_those_before():
    before = replace(BATCH, seconds={"read": 1.5})

    after = advance(
        "infer", lambda b: replace(b, array=b.array[:, 0].astype(np.float32)), before.to_arrow()
    )

    assert after.failure is None
    assert after.array.shape == (2, 2, 3)
    assert list(after.seconds) == ["read", "infer"]
    assert after.seconds["read"] == 1.5
    assert after.seconds["infer"] >= 0


def test_a_stage_that_raises_gives_the_fragment_up_with_stage_and_error():
    def fail(_batch):
        raise ValueError("7 is not 8")

    failed = advance("decode", fail, BATCH.to_arrow())

    assert failed.failure == "decode: ValueError: 7 is not 8"
    assert failed.fragment == FRAGMENT
    assert len(failed.rows) == len(failed.array) == 0
    assert list(failed.seconds) == ["decode"]


def test_later_stages_pass_a_failure_on_without_working():
    failed = replace(BATCH, failure="decode: ValueError: 7 is not 8")
    calls = []
    passed = advance("infer", calls.append, failed.to_arrow())
    assert calls == []
    assert passed.failure == failed.failure
    assert "infer" not in passed.seconds


def test_storage_that_fails_once_is_asked_again():
    calls = []

    def recovers(batch):
        calls.append(batch)
        if len(calls) == 1:
            raise ConnectionResetError("try again")
        return replace(batch, rows=rows_of("ok"))

    done = advance("read", recovers, BATCH.to_arrow())

    assert len(calls) == 2
    assert done.failure is None
    assert done.rows.equals(rows_of("ok"))
    # The pause counts.
    assert done.seconds["read"] >= 0.5


def test_an_error_of_the_whole_job_is_raised():
    def wrong(_batch):
        raise ConfigError("no such column")

    with pytest.raises(ConfigError, match="no such column"):
        advance("read", wrong, BATCH.to_arrow())


def test_a_result_counts_statuses_and_repeated_ids():
    rows = rows_of("ok", "ok", "missing", "ok", "ok", ids=["a", "b", "a", "a", "b"])
    batch = FragmentBatch(FRAGMENT, rows, seconds={"read": 0.25}, nodes={"read": "here"})
    table = result_of(batch)

    assert table.schema.equals(FRAGMENT_RESULT)
    assert FragmentResult.from_arrow(table) == FragmentResult(
        key=FRAGMENT.key,
        path=FRAGMENT.path,
        planned=FRAGMENT.images,
        statuses={"ok": 4, "missing": 1},
        duplicates=2,
        failure=None,
        seconds={"read": 0.25},
        nodes={"read": "here"},
    )


def test_the_result_of_a_failed_fragment_is_its_failure():
    result = FragmentResult.from_arrow(result_of(FragmentBatch(FRAGMENT, failure="read: OSError")))
    assert result == FragmentResult(
        FRAGMENT.key, FRAGMENT.path, FRAGMENT.images, {}, 0, "read: OSError", {}, {}
    )


@pytest.mark.parametrize(
    ("fails", "attempts", "is_done"), [(2, 3, True), (3, 3, False), (1, 1, False)]
)
def test_a_stage_that_raises_is_tried_as_often_as_is_set(fails, attempts, is_done):
    calls = []

    def works_at_last(batch):
        calls.append(batch)
        if len(calls) <= fails:
            raise RuntimeError(f"fault {len(calls)}")
        return batch

    done = advance("infer", works_at_last, replace(BATCH, attempts=attempts).to_arrow())

    assert len(calls) == min(fails + 1, attempts)
    assert (done.failure is None) == is_done
    if not is_done:
        assert done.failure == f"infer: RuntimeError: fault {attempts}"


def test_a_changed_input_is_not_tried_again():
    calls = []

    def changed(batch):
        calls.append(batch)
        raise InputChanged("a.parquet vanished since it was planned")

    done = advance("decode", changed, BATCH.to_arrow())
    assert (len(calls), done.failure) == (1, "decode: a.parquet vanished since it was planned")


@pytest.mark.parametrize("row", [BATCH.to_arrow(), Fragments.of([FRAGMENT]).table])
def test_a_row_that_is_given_up_is_passed_on_as_failed(row):
    table = given_up(row, "infer: its worker died")
    assert key_of(table) == key_of(row) == FRAGMENT.key
    result = FragmentResult.from_arrow(result_of(advance("infer", list.append, table)))
    assert (result.key, result.failure) == (FRAGMENT.key, "infer: its worker died")
