"""Greedy k-centre, against a plain float64 loop and the laws of farthest-first selection."""

import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchlake.pipeline.maths.coreset import Shards, greedy, select
from patchlake.pipeline.maths.shard import Shard

# Two candidates whose distances agree to this are the same to float32.
NEAR_TIE = 1e-6
# More rows than are looked at together.
POOL = 2048


def normal(rng, count, dim):
    return rng.normal(size=(count, dim))


def clustered(rng, count, dim):
    centres = rng.normal(size=(5, dim)) * 1000
    return centres[rng.integers(5, size=count)] + rng.normal(size=(count, dim))


def duplicated(rng, count, dim):
    return rng.normal(size=(7, dim))[rng.integers(7, size=count)]


def collinear(rng, count, dim):
    return rng.normal(size=(count, 1)) * rng.normal(size=dim)


def offset(rng, count, dim):
    return rng.normal(size=(count, dim)) + 1e5 * rng.normal(size=dim)


def one_far_away(rng, count, dim):
    rows = rng.normal(size=(count, dim)) * 1e-3
    rows[count // 2] = 1e5
    return rows


KINDS = (normal, clustered, duplicated, collinear, offset, one_far_away)


@st.composite
def selections(draw, counts, dims, sizes):
    """Rows of one of the kinds, how many to select, and the first."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind, count, dim = draw(st.sampled_from(KINDS)), draw(counts), draw(dims)
    size = draw(st.one_of(sizes.map(lambda size: min(size, count)), st.just(count)))
    return kind(rng, count, dim).astype(np.float32), size, draw(st.integers(0, count - 1))


@st.composite
def grids(draw):
    """Integer rows with many exact ties and duplicates; every distance is exact in float32."""
    count, dim = draw(st.integers(1, 80)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = rng.integers(0, draw(st.integers(1, 6)), size=(count, dim)).astype(np.float32)
    return rows, draw(st.integers(1, count)), draw(st.integers(0, count - 1))


def plain_greedy(rows, size, start, dtype=np.float64):
    """Algorithm 1, one pass over all rows a step; ties to the lowest index."""
    exact = rows.astype(dtype)
    indices, radii = [start], []
    distance = np.full(len(rows), np.inf, dtype)
    while True:
        away = exact - exact[indices[-1]]
        distance = np.minimum(distance, np.einsum("nd,nd->n", away, away))
        radii.append(np.sqrt(distance.max()))
        if len(indices) == size or radii[-1] == 0:
            return np.array(indices), np.array(radii)
        indices.append(int(distance.argmax()))


def assert_follows_plain_greedy(rows, size, start, found):
    """Each pick is the farthest row in float64 given those before it, but for near ties."""
    exact = rows.astype(np.float64)
    assert found.indices[0] == start
    assert len(found.indices) == len(found.radii) == len(set(found.indices.tolist()))
    distance = np.full(len(rows), np.inf)
    for step, index in enumerate(found.indices):
        farthest = distance.max()
        assert distance[index] >= farthest * (1 - NEAR_TIE) ** 2, step
        away = exact - exact[index]
        distance = np.minimum(distance, np.einsum("nd,nd->n", away, away))
        assert found.radii[step] == pytest.approx(np.sqrt(distance.max()), rel=NEAR_TIE), step
    assert len(found.indices) == size or distance.max() == 0


def assert_is_plain_greedy(rows, size, start, found):
    """The indices are those of a plain float64 loop, but for the order of rows that nearly tie.

    Rows that tie and do not cover one another are all picked before any other, in whatever order:
    the set, and every radius, is that of the loop, and so is what follows. Where one covers
    another, only the first of them is picked: nothing that follows is comparable (of `one_far_away`
    the last radius then differs by up to 7 %), and `assert_follows_plain_greedy` is the judge.
    """
    indices, radii = plain_greedy(rows, size, start)
    exact = rows.astype(np.float64)
    distance = np.full(len(rows), np.inf)
    step = 0
    while step < min(len(indices), len(found.indices)):
        end = step + 1
        if found.indices[step] != indices[step]:
            farthest = distance.max() * (1 - NEAR_TIE)
            assert distance[found.indices[step]] >= farthest, step
            tied = np.flatnonzero(distance >= farthest)
            if any(_covers(exact, row, tied, farthest) for row in tied):
                return
            end = step + len(tied)
            assert set(found.indices[step:end].tolist()) <= set(tied.tolist())
        for index in found.indices[step:end]:
            distance = np.minimum(distance, np.linalg.norm(exact - exact[index], axis=1))
        step = end
        np.testing.assert_allclose(found.radii[:step], radii[:step], rtol=NEAR_TIE)
    assert len(found.indices) == len(indices)


def _covers(exact, row, tied, farthest):
    others = tied[tied != row]
    return (np.linalg.norm(exact[others] - exact[row], axis=1) < farthest).any()


@given(selections(counts=st.integers(1, 120), dims=st.integers(1, 40), sizes=st.integers(1, 40)))
def test_every_pick_is_the_farthest_row(selection):
    rows, size, start = selection
    assert_follows_plain_greedy(rows, size, start, greedy(rows, size, start=start))


more_than_a_pool = selections(
    counts=st.integers(POOL, 2 * POOL + 1), dims=st.integers(1, 8), sizes=st.integers(1, 60)
).filter(lambda selection: selection[1] <= 60)


@given(more_than_a_pool)
@settings(max_examples=40)
def test_every_pick_is_the_farthest_row_of_more_than_a_pool(selection):
    rows, size, start = selection
    assert_follows_plain_greedy(rows, size, start, greedy(rows, size, start=start))


@given(selections(counts=st.integers(1, 120), dims=st.integers(1, 40), sizes=st.integers(1, 40)))
def test_the_sequence_is_that_of_a_plain_loop_but_for_the_order_of_near_ties(selection):
    rows, size, start = selection
    assert_is_plain_greedy(rows, size, start, greedy(rows, size, start=start))


@given(more_than_a_pool)
@settings(max_examples=20)
def test_the_sequence_of_more_than_a_pool_is_that_of_a_plain_loop_but_for_near_ties(selection):
    rows, size, start = selection
    assert_is_plain_greedy(rows, size, start, greedy(rows, size, start=start))


@given(
    st.one_of(
        selections(counts=st.integers(1, 120), dims=st.integers(1, 40), sizes=st.integers(1, 40)),
        more_than_a_pool,
    )
)
def test_the_sequence_is_that_of_a_plain_float32_loop_to_the_bit(selection):
    # Near ties, too: float32 orders them in its own way, but always in the same.
    rows, size, start = selection
    indices, radii = plain_greedy(rows, size, start, dtype=np.float32)

    found = greedy(rows, size, start=start)

    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.radii, radii)


@pytest.mark.parametrize(
    ("kind", "count", "dim", "size"),
    [(normal, 30_000, 32, 600), (clustered, 5000, 32, 600)]
    + [(normal, 300, dim, 300) for dim in (1, 2, 40)]
    + [(normal, 2 * POOL + 1, dim, 500) for dim in (2, 8)],
)
def test_where_nothing_ties_the_whole_sequence_is_that_of_a_plain_loop(kind, count, dim, size):
    rows = kind(np.random.default_rng(0), count, dim).astype(np.float32)
    indices, radii = plain_greedy(rows, size, 3)

    found = greedy(rows, size, start=3)

    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_allclose(found.radii, radii, rtol=NEAR_TIE)


@pytest.mark.parametrize("dim", [8, 128])
def test_rows_that_nearly_tie_are_the_same_set_with_the_same_radii_in_another_order(dim):
    # Three shells of rows at right angles around the first centre: no row covers another, and
    # those of a shell are equally far but for their rounding.
    rng = np.random.default_rng(0)
    right_angled = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    rows = np.concatenate([np.zeros((1, dim)), *(scale * right_angled for scale in (16, 4, 1))])
    order = rng.permutation(len(rows))
    rows, start = rows[order].astype(np.float32), int(order.argmin())
    indices, radii = plain_greedy(rows, len(rows), start)

    found = greedy(rows, len(rows), start=start)

    assert_is_plain_greedy(rows, len(rows), start, found)
    assert (found.indices != indices).sum() > dim
    np.testing.assert_allclose(found.radii, radii, rtol=NEAR_TIE)
    for shells in (1, 2, 3):
        shell = slice(0, 1 + shells * dim)
        assert set(found.indices[shell].tolist()) == set(indices[shell].tolist())


def test_rows_that_wait_for_thousands_of_centres_are_still_measured_against_all():
    # The dense cluster is not looked at again before the 5,000 others are selected.
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(1000, 2)) * 1e-5 + 3
    rows = np.concatenate([dense, rng.uniform(-10, 10, size=(5000, 2))]).astype(np.float32)
    assert_follows_plain_greedy(rows, 5500, 0, greedy(rows, 5500))


@given(grids())
def test_ties_go_to_the_lowest_index(grid):
    rows, size, start = grid
    indices, radii = plain_greedy(rows, size, start)

    found = greedy(rows, size, start=start)

    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.radii, radii.astype(np.float32))


@pytest.mark.parametrize("sides", [3, 12])
def test_ties_go_to_the_lowest_index_of_more_than_a_pool(sides):
    # 27 distinct rows, 220 times each: the largest distance is shared by more than a pool.
    rows = np.random.default_rng(0).integers(0, sides, size=(6000, 3)).astype(np.float32)
    indices, radii = plain_greedy(rows, 400, 17)

    found = greedy(rows, 400, start=17)

    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.radii, radii.astype(np.float32))


def test_when_all_rows_are_equally_far_the_lowest_are_selected():
    found = greedy(np.eye(POOL + 100, dtype=np.float32), 12, start=5)

    assert found.indices.tolist() == [5, 0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    np.testing.assert_array_equal(found.radii, np.sqrt(np.full(12, 2, np.float32)))


@pytest.mark.parametrize("repeats", [3, 1000])
def test_duplicates_end_the_selection_at_radius_zero(repeats):
    distinct = np.random.default_rng(0).normal(size=(40, 32)).astype(np.float32)
    rows = np.tile(distinct, (repeats, 1))

    found = greedy(rows, 41)

    assert sorted(found.indices.tolist()) == list(range(40))
    assert found.radii[-1] == 0
    assert found.radii[-2] > 0


@pytest.mark.parametrize("count", [1, 5, POOL + 1])
def test_rows_that_are_all_equal_give_one_row(count):
    found = greedy(np.full((count, 3), 0.1, np.float32), count, start=count - 1)

    assert found.indices.tolist() == [count - 1]
    assert found.radii.tolist() == [0]


@given(selections(counts=st.integers(1, 120), dims=st.integers(1, 8), sizes=st.integers(1, 120)))
def test_radii_do_not_rise_and_every_prefix_is_the_coreset_of_its_size(selection):
    rows, size, start = selection
    found = greedy(rows, size, start=start)
    assert (np.diff(found.radii) <= 0).all()
    for shorter in {1, (len(found.indices) + 1) // 2}:
        prefix = greedy(rows, shorter, start=start)
        np.testing.assert_array_equal(prefix.indices, found.indices[:shorter])
        np.testing.assert_array_equal(prefix.radii, found.radii[:shorter])


@given(
    st.integers(0, 2**32), st.sampled_from(KINDS), st.integers(3, 9), st.integers(1, 3), st.data()
)
def test_the_radius_is_at_most_twice_the_smallest_possible(seed, kind, count, size, data):
    rows = kind(np.random.default_rng(seed), count, 2).astype(np.float32)
    found = greedy(rows, size, start=data.draw(st.integers(0, count - 1)))
    between = np.linalg.norm(rows[:, None].astype(np.float64) - rows, axis=2)
    best = min(between[:, list(c)].min(axis=1).max() for c in combinations(range(count), size))
    assert found.radii[-1] <= 2 * best * (1 + NEAR_TIE)


@given(
    selections(counts=st.integers(2, 150), dims=st.integers(1, 8), sizes=st.integers(1, 60)),
    st.integers(1, 12),
    st.data(),
)
@settings(max_examples=40)
@pytest.mark.slow
def test_neither_the_cut_into_shards_nor_the_pool_changes_the_selection(selection, pool, data):
    rows, size, start = selection
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows) - 1), max_size=4)))
    shards = [
        Shard(rows[begin:end], pool=pool, offset=begin)
        for begin, end in zip([0, *cuts], [*cuts, len(rows)], strict=True)
    ]

    found = select(Shards(shards), rows[start], start, size)

    whole = greedy(rows, size, start=start)
    np.testing.assert_array_equal(found.indices, whole.indices)
    np.testing.assert_array_equal(found.radii, whole.radii)


def test_threads_do_not_change_the_selection():
    rows = normal(np.random.default_rng(0), 3 * POOL, 16).astype(np.float32)
    one, two = (greedy(rows, 200, threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_array_equal(one.radii, two.radii)


def test_rows_are_not_changed():
    rows = normal(np.random.default_rng(0), 3000, 4).astype(np.float32)
    rows.setflags(write=False)
    before = rows.copy()
    greedy(rows, 100)
    np.testing.assert_array_equal(rows, before)


@pytest.mark.parametrize(
    ("count", "dim"),
    [(60_000, 256), (20_000, 1024), pytest.param(2_000_000, 2, marks=pytest.mark.soak)],
)
@pytest.mark.parametrize("threads", [1, 3])
def test_memory_beside_the_rows_is_what_is_promised(count: int, dim: int, threads: int):
    rows, size = np.random.default_rng(0).standard_normal((count, dim), np.float32), 300
    promised = (12 + 6) * count + 2 * size * dim * 4 + 50_000 * dim + 12 * 2**20
    promised += (threads - 1) * (9_000 * dim + 2 * 2**20)
    tracemalloc.start()
    greedy(rows, size, threads=threads)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # So that a copy of the rows would show.
    assert promised - rows.nbytes < taken < promised


@pytest.mark.parametrize(("size", "start"), [(0, 0), (-1, 0), (4, 0), (2, 3), (2, -1)])
def test_a_size_or_start_that_does_not_fit_is_named(size, start):
    with pytest.raises(ValueError, match=f"size {size} and start {start} do not fit 3 rows"):
        greedy(np.zeros((3, 2), np.float32), size, start=start)


def test_progress_rises_towards_the_size():
    calls = []
    rows = normal(np.random.default_rng(0), 3 * POOL, 4).astype(np.float32)
    greedy(rows, 1000, progress=lambda *call: calls.append(call))
    done = [selected for selected, _ in calls]
    assert len(done) > 2
    assert done == sorted(set(done))
    assert {size for _, size in calls} == {1000}
    assert done[-1] <= 1000
