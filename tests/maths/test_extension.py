"""Greedy that goes on from given centres, against a plain float64 loop."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchlake.pipeline.maths.coreset import Shards, extend, greedy, select_further
from patchlake.pipeline.maths.partitioned import extended
from patchlake.pipeline.maths.shard import Shard
from tests.maths.test_coreset import KINDS, NEAR_TIE, POOL
from tests.maths.test_partitioned import Parts

FEW = st.integers(1, 120)


@st.composite
def continuations(draw, counts):
    """Rows, centres that may be rows or not, and how many to pick."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind, count, dim = draw(st.sampled_from(KINDS)), draw(counts), draw(st.integers(1, 20))
    given_count = draw(st.integers(1, 150))
    every = kind(rng, count + given_count, dim).astype(np.float32)
    rows, centres = every[:count], every[count:]
    if draw(st.booleans()):
        centres = np.concatenate([centres, rows[: draw(st.integers(0, 3))]])
    return rows, centres, draw(st.integers(0, min(count, 40)))


def assert_goes_on_greedily(rows, centres, size, found):
    """Each pick is the farthest row in float64 given what came before, but for near ties."""
    exact = rows.astype(np.float64)
    away = exact[:, None] - centres.astype(np.float64)
    distance = np.einsum("ncd,ncd->nc", away, away).min(axis=1)
    assert found.radii[0] == pytest.approx(np.sqrt(distance.max()), rel=NEAR_TIE)
    assert len(found.radii) == len(found.indices) + 1
    assert len(set(found.indices.tolist())) == len(found.indices)
    for step, index in enumerate(found.indices, 1):
        assert distance[index] >= distance.max() * (1 - NEAR_TIE) ** 2, step
        away = exact - exact[index]
        distance = np.minimum(distance, np.einsum("nd,nd->n", away, away))
        assert found.radii[step] == pytest.approx(np.sqrt(distance.max()), rel=NEAR_TIE), step
    assert len(found.indices) == size or distance.max() == 0


@given(continuations(FEW))
@settings(max_examples=60)
def test_every_pick_is_the_farthest_row(case):
    rows, centres, size = case
    assert_goes_on_greedily(rows, centres, size, extend(rows, centres, size))


@given(continuations(st.integers(POOL, POOL + 300)))
@settings(max_examples=10)
def test_every_pick_is_the_farthest_row_of_more_than_a_pool(case):
    rows, centres, size = case
    assert_goes_on_greedily(rows, centres, size, extend(rows, centres, size))


@given(st.sampled_from(KINDS), st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=40)
def test_greedy_is_its_prefix_continued(kind, seed, first, more):
    rows = kind(np.random.default_rng(seed), 80, 5).astype(np.float32)
    whole = greedy(rows, first + more)
    if len(whole.indices) < first + more:
        return
    found = extend(rows, rows[whole.indices[:first]], more)
    np.testing.assert_array_equal(found.indices, whole.indices[first:])
    np.testing.assert_array_equal(found.radii, whole.radii[first - 1 :])


@given(continuations(FEW), st.integers(1, 12), st.data())
@settings(max_examples=40)
def test_neither_the_cut_into_shards_nor_the_pool_changes_the_selection(case, pool, data):
    rows, centres, size = case
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(rows) - 1)), max_size=4)))
    edges = [0, *(cut for cut in cuts if cut < len(rows)), len(rows)]
    shards = [Shard(rows[begin:end], pool=pool, offset=begin) for begin, end in pairwise(edges)]
    found, whole = select_further(Shards(shards), centres, size), extend(rows, centres, size)
    np.testing.assert_array_equal(found.indices, whole.indices)
    np.testing.assert_array_equal(found.radii, whole.radii)


def test_nothing_is_picked_where_centres_cover_everything():
    rows = np.ones((5, 3), np.float32)
    found = extend(rows, rows[:1], 3)
    assert (found.indices.tolist(), found.radii.tolist()) == ([], [0])


@pytest.mark.parametrize(("rows", "centres", "size"), [(3, 1, 4), (3, 0, 1), (0, 2, 0), (3, 1, -1)])
def test_what_does_not_fit_is_named(rows, centres, size):
    with pytest.raises(ValueError, match=f"size {size} does not fit {rows} rows and {centres}"):
        extend(np.zeros((rows, 2), np.float32), np.zeros((centres, 2), np.float32), size)


@pytest.mark.parametrize("share", [0.05, 1.0])
def test_parts_go_on_within_their_bound(share: float):
    every = KINDS[1](np.random.default_rng(1), 2000, 8).astype(np.float32)
    rows, centres = every[:1700], every[1700:1720]
    chosen = extended(Parts(np.array_split(rows, 7)), centres, 40, share)
    held = np.concatenate([centres, rows[chosen.indices]]).astype(np.float64)
    radius = np.linalg.norm(rows[:, None] - held, axis=2).min(axis=1).max()
    assert chosen.radius == pytest.approx(radius, rel=1e-5)
    assert chosen.radius <= chosen.bound * (1 + 1e-6)
    if share == 1.0:
        assert chosen.radius == pytest.approx(extend(rows, centres, 40).radii[-1], rel=1e-6)
