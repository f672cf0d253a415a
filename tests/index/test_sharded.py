"""A bank in shards gives what the whole bank gives, to the bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.pruned import PrunedSearch
from patchlake.pipeline.index.sharded import ShardedSearch, ShardMember, merge_nearest


def cut(bank, count, member=ShardMember.over):
    """The bank in `count` members, and a search that asks them all and notes whom it fetches."""
    parts = np.array_split(bank, count)
    offsets = np.cumsum([0, *map(len, parts)])
    members = [member(*pair) for pair in zip(parts, offsets.tolist(), strict=False)]
    fetched = []

    def ask(queries, k, ignore):
        return [member.answer(queries, k, ignore) for member in members]

    def fetch(wanted):
        fetched.append(set(wanted))
        return {shard: members[shard].vectors(rows) for shard, rows in wanted.items()}

    return ShardedSearch(tuple(map(len, parts)), ask, fetch), fetched


@st.composite
def searches(draw):
    """A bank with duplicates, queries near, in and far from it, k, and rows to ignore."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    k, ignored = draw(st.sampled_from([1, 3, 9])), draw(st.integers(0, 12))
    count, dim = draw(st.integers(k + ignored + 7, 80)), draw(st.integers(1, 40))
    bank = rng.normal(size=(count, dim)) + draw(st.sampled_from([0, 1e3]))
    # Few different rows: duplicates within shards and across them.
    bank = bank[rng.integers(draw(st.integers(1, count)), size=count)].astype(np.float32)
    queries = bank[rng.integers(count, size=6)].copy()
    queries[:3] += rng.normal(size=(3, dim)) * draw(st.sampled_from([1e-3, 1, 1e4]))
    ignore = rng.choice(count, ignored, replace=False) if ignored else None
    return bank, queries, k, ignore


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
@given(searches())
def test_any_number_of_shards_gives_the_bits_of_the_whole(shards, search):
    bank, queries, k, ignore = search
    distances, rows = ExactSearch.over(bank).nearest(queries, k, ignore=ignore)

    sharded, _ = cut(bank, shards)
    found_distances, found_rows = sharded.nearest(queries, k, ignore=ignore)

    assert sharded.size == len(bank)
    assert (found_distances.dtype, found_rows.dtype) == (distances.dtype, rows.dtype)
    np.testing.assert_array_equal(found_rows, rows)
    np.testing.assert_array_equal(found_distances.view(np.uint32), distances.view(np.uint32))


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_a_bank_of_the_real_size_of_an_embedding_gives_the_same_bits(shards):
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(700, 384)).astype(np.float32)
    bank[500:] = bank[:200]
    queries = np.concatenate([bank[450:550], rng.normal(size=(100, 384)).astype(np.float32)])

    distances, rows = ExactSearch.over(bank).nearest(queries, 9)
    found_distances, found_rows = cut(bank, shards)[0].nearest(queries, 9)

    np.testing.assert_array_equal(found_rows, rows)
    np.testing.assert_array_equal(found_distances, distances)


@pytest.mark.parametrize("k", [1, 9])
def test_shards_that_prune_give_the_same_bits(k):
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(8, 96))
    bank = (rng.normal(size=(2000, 8)) @ basis).astype(np.float32)
    queries = (rng.normal(size=(100, 8)) @ basis).astype(np.float32)
    ignore = np.arange(0, 2000, 3)

    def pruned(rows, offset):
        return ShardMember(offset, PrunedSearch.over(ExactSearch.over(rows), 32))

    distances, rows = ExactSearch.over(bank).nearest(queries, k, ignore=ignore)
    found_distances, found_rows = cut(bank, 3, pruned)[0].nearest(queries, k, ignore=ignore)

    np.testing.assert_array_equal(found_rows, rows)
    np.testing.assert_array_equal(found_distances, distances)


def test_a_tie_in_float32_goes_to_the_row_that_is_nearer_in_float64():
    # 1 + 1e-10 rounds to 1 in float32, but it is not the nearest row.
    bank = np.array([[1, 1e-5], [1, 0]], np.float32)
    query = np.zeros((1, 2), np.float32)
    distances, rows = ExactSearch.over(bank).nearest(query, 2)
    assert (rows.tolist(), distances.tolist()) == ([[1, 0]], [[1, 1]])

    assert cut(bank, 2)[0].nearest(query, 2)[1].tolist() == [[1, 0]]


def test_equal_rows_of_different_shards_go_to_the_lowest_row_in_any_order_of_answers():
    member = [ShardMember.over(np.ones((2, 3), np.float32), offset) for offset in (0, 2, 4)]
    answers = [one.answer(np.zeros((1, 3), np.float32), 3) for one in member]

    assert merge_nearest(answers)[1].tolist() == [[0, 1, 2]]
    assert merge_nearest(answers[::-1])[1].tolist() == [[0, 1, 2]]


def test_a_shard_of_fewer_rows_than_k_pads_its_answer():
    member = ShardMember.over(np.array([[3], [1]], np.float32), 10)
    queries = np.zeros((2, 1), np.float32)

    squared, rows = member.answer(queries, 4)
    assert squared.tolist() == [[1, 9, np.inf, np.inf]] * 2
    assert rows.tolist() == [[11, 10, -1, -1]] * 2

    # Rows of other shards do not count here, and a row that is named twice counts once.
    squared, rows = member.answer(queries, 2, np.array([11, 11, 9, 12]))
    assert (squared.tolist(), rows.tolist()) == ([[9, np.inf]] * 2, [[10, -1]] * 2)
    squared, rows = member.answer(queries, 1, np.array([10, 11]))
    assert (squared.tolist(), rows.tolist()) == ([[np.inf]] * 2, [[-1]] * 2)


@given(st.integers(1, 7), st.lists(st.integers(0, 22), max_size=12), st.booleans())
def test_vectors_come_from_the_shards_that_hold_them_and_no_other(shards, wanted, grid):
    bank = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)
    rows = np.array(wanted, np.int64)
    if grid:
        rows = rows.reshape(1, -1, 1)
    sharded, fetched = cut(bank, shards)

    np.testing.assert_array_equal(sharded.vectors(rows), bank[rows])

    number = np.concatenate([np.full(size, i) for i, size in enumerate(sharded.sizes)])
    assert fetched == [set(number[wanted].tolist()) if wanted else {0}]


def test_more_neighbours_than_rows_are_refused():
    sharded, _ = cut(np.zeros((5, 2), np.float32), 2)
    with pytest.raises(ValueError, match=r"4 neighbours .* among 3 rows in 2 shards"):
        sharded.nearest(np.zeros((1, 2), np.float32), 4, ignore=np.array([0, 4, 4]))
