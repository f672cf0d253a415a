"""Sharded selection is exact selection; partitioned selection keeps its proven bound."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.maths.coreset import Shards, greedy, select
from patchlake.pipeline.maths.partitioned import covering_radius, partitioned
from patchlake.pipeline.maths.projection import gaussian_projection
from patchlake.pipeline.maths.shard import Shard


def draw(kind: str, count: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "clustered":
        centres = rng.normal(size=(5, dim)) * 10
        rows = centres[rng.integers(0, 5, count)] + rng.normal(size=(count, dim))
    elif kind == "grid":
        rows = rng.integers(0, 3, size=(count, dim))
    elif kind == "scales":
        # Each row is ten times as far out as another: whoever misses the outermost is far off.
        rows = rng.permutation(rng.normal(size=(count, dim)) * 10.0 ** -np.arange(count)[:, None])
    else:
        rows = rng.normal(size=(count, dim)) + 100
    return rows.astype(np.float32)


def reach(rows: np.ndarray, centres: np.ndarray) -> float:
    """Return the covering radius of the centres, in float64."""
    differences = rows[:, None].astype(np.float64) - centres
    return float(np.linalg.norm(differences, axis=2).min(axis=1).max())


def sharded(rows: np.ndarray, count: int, size: int, start: int, pool: int = 64):
    pieces = np.array_split(rows, count)
    offsets = np.cumsum([0, *map(len, pieces)]).tolist()
    shards = [Shard(p, pool=pool, offset=o) for p, o in zip(pieces, offsets, strict=False)]
    return select(Shards(shards), rows[start], start, size)


@pytest.mark.parametrize("shards", [1, 2, 7, 16])
@pytest.mark.parametrize("kind", ["clustered", "grid", "offset"])
def test_any_sharding_selects_the_same_sequence(kind: str, shards: int):
    rows = draw(kind, 3000, 12, seed=3)
    whole = greedy(rows, 400, start=17)
    split = sharded(rows, shards, 400, 17)
    np.testing.assert_array_equal(split.indices, whole.indices)
    np.testing.assert_array_equal(split.radii, whole.radii)


@given(
    st.sampled_from(["clustered", "grid", "offset"]),
    st.integers(1, 60),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(1, 9),
    st.data(),
)
def test_small_pools_and_shards_select_what_plain_greedy_does(
    kind: str, count: int, dim: int, shards: int, pool: int, data: st.DataObject
):
    rows = draw(kind, count, dim, seed=count)
    start = data.draw(st.integers(0, count - 1))
    size = data.draw(st.integers(1, count))
    whole = greedy(rows, size, start=start)
    split = sharded(rows, min(shards, count), size, start, pool)
    np.testing.assert_array_equal(split.indices, whole.indices)


@dataclass(frozen=True)
class Counted:
    """Shards of which every question is counted."""

    shards: Shards
    questions: list[int] = field(default_factory=list)

    def farthest(self, centres: np.ndarray, threshold: float):
        self.questions.append(len(centres))
        return self.shards.farthest(centres, threshold)


@pytest.mark.parametrize(("shards", "pool"), [(1, 512), (8, 64)])
def test_a_question_to_the_shards_is_for_many_picks(shards: int, pool: int):
    # Of 4000 rows, which lie in 24 of 64 dimensions but for some noise, an eighth are candidates
    # in a round. 13 rounds were measured with one shard, 14 with eight: 17 picks each.
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(4000, 24)) @ rng.normal(size=(24, 64))
    rows = (rows + rng.normal(size=rows.shape) / 100).astype(np.float32)
    pieces = np.array_split(rows, shards)
    offsets = np.cumsum([0, *map(len, pieces)]).tolist()
    counted = Counted(
        Shards([Shard(p, pool=pool, offset=o) for p, o in zip(pieces, offsets, strict=False)])
    )

    found = select(counted, rows[3], 3, 240)

    np.testing.assert_array_equal(found.indices, greedy(rows, 240, start=3).indices)
    assert len(counted.questions) <= 28
    # No centre is told twice; the last ones need not be told at all.
    assert sum(counted.questions) < 240


@dataclass(frozen=True)
class Parts:
    pieces: Sequence[np.ndarray]

    def each(self, work: Callable):
        return [work(piece) for piece in self.pieces]


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_partitioned_selection_reports_its_radius_and_keeps_its_bound(share: float):
    rows = draw("clustered", 2000, 8, seed=1)
    parts = Parts(np.array_split(rows, 7))
    chosen = partitioned(parts, 40, share)
    assert chosen.radius == pytest.approx(reach(rows, rows[chosen.indices]), rel=1e-5)
    assert chosen.radius <= chosen.bound * (1 + 1e-6)
    if share == 1.0:
        assert chosen.radius == pytest.approx(greedy(rows, 40).radii[-1], rel=1e-6)


# 0.001 of a part is a row of it: the union has fewer rows than are asked for.
@pytest.mark.parametrize("share", [0.001, 0.05, 0.3])
def test_the_bound_is_the_largest_local_radius_and_that_of_the_union(share: float):
    # The part of the largest radius is neither the first nor the last.
    pieces = [draw("clustered", 300 + 7 * scale, 8, seed=scale) * scale for scale in (2, 5, 1)]
    pieces = [piece.astype(np.float32) for piece in pieces]
    sizes = [max(1, int(np.ceil(share * len(piece)))) for piece in pieces]
    kept = [piece[greedy(piece, size).indices] for piece, size in zip(pieces, sizes, strict=True)]
    local_radii = [reach(piece, some) for piece, some in zip(pieces, kept, strict=True)]
    assert local_radii[1] == max(local_radii)
    union = np.concatenate(kept)
    centres = union[greedy(union, min(30, len(union))).indices]

    chosen = partitioned(Parts(pieces), 30, share)

    np.testing.assert_array_equal(np.concatenate(pieces)[chosen.indices], centres)
    assert chosen.bound == pytest.approx(local_radii[1] + reach(union, centres), rel=1e-6)
    assert chosen.radius == pytest.approx(reach(np.concatenate(pieces), centres), rel=1e-6)


def in_reverse(work: Callable, pieces: Sequence[np.ndarray]):
    return [work(piece) for piece in reversed(pieces)][::-1]


def in_threads(work: Callable, pieces: Sequence[np.ndarray]):
    with ThreadPoolExecutor(len(pieces)) as pool:
        yield from pool.map(work, pieces)


def in_one_buffer(work: Callable, pieces: Sequence[np.ndarray]):
    buffer = np.empty_like(max(pieces, key=len))
    for piece in pieces:
        buffer[: len(piece)] = piece
        yield work(buffer[: len(piece)])


@dataclass(frozen=True)
class Answered:
    """Parts that are worked on in some way."""

    pieces: Sequence[np.ndarray]
    way: Callable[[Callable, Sequence[np.ndarray]], Iterable]

    def each(self, work: Callable):
        return self.way(work, self.pieces)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("way", [in_reverse, in_threads, in_one_buffer])
def test_when_and_where_the_parts_are_worked_on_changes_nothing(way: Callable, threads: int):
    rows = draw("clustered", 4000, 6, seed=5)
    # The union of 2000 rows is more than one block for the threads.
    pieces = np.split(rows, [1, 700, 2500, 3900])
    expected = partitioned(Parts(pieces), 60, 0.5)

    found = partitioned(Answered(pieces, way), 60, 0.5, threads=threads)

    np.testing.assert_array_equal(found.indices, expected.indices)
    assert (found.radius, found.bound) == (expected.radius, expected.bound)


@dataclass(frozen=True)
class Watched:
    """Parts, and how many rows each of them gives to the union."""

    pieces: Sequence[np.ndarray]
    kept: list[int] = field(default_factory=list)

    def each(self, work: Callable):
        for piece in self.pieces:
            found = work(piece)
            # The second time around it is a part's radius.
            if not isinstance(found, float):
                self.kept.append(len(found.rows))
            yield found


@given(
    st.sampled_from(["clustered", "grid", "offset", "scales"]),
    st.lists(st.integers(3, 5), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 2**32),
    st.integers(1, 3),
)
def test_parts_that_keep_the_size_asked_for_give_four_times_the_smallest_radius_at_most(
    kind: str, counts: list[int], dim: int, seed: int, size: int
):
    rows = draw(kind, sum(counts), dim, seed)
    parts = Watched(np.split(rows, np.cumsum(counts)[:-1]))
    chosen = partitioned(parts, size, size / min(counts))
    # Rows that are all equal to chosen ones are not kept.
    distinct = [min(size, len(np.unique(piece, axis=0))) for piece in parts.pieces]
    assert all(kept >= least for kept, least in zip(parts.kept, distinct, strict=True))
    smallest = min(reach(rows, rows[list(some)]) for some in combinations(range(len(rows)), size))
    assert chosen.radius <= 4 * smallest * (1 + 1e-6)


@pytest.mark.parametrize("parts", [2, 7])
@pytest.mark.parametrize("mixed", [True, False])
def test_partitioned_selection_is_near_the_exact_one_where_a_random_choice_is_not(
    mixed: bool, parts: int
):
    # A dense cluster of 3000 rows and a tail of 300, which a random choice of 40 mostly misses;
    # unmixed, one part has nothing but cluster.
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(300, 4))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    tail = directions * np.geomspace(1, 10, 300)[:, None]
    rows = np.concatenate([rng.normal(size=(3000, 4)) / 20, tail]).astype(np.float32)
    if mixed:
        rows = rng.permutation(rows)
    pieces = Watched(np.array_split(rows, parts))
    exact = greedy(rows, 40).radii[-1]

    chosen = partitioned(pieces, 40, 40 / len(pieces.pieces[-1]))

    assert min(pieces.kept) >= 40
    assert chosen.radius < 1.3 * exact
    for _ in range(5):
        some = rng.choice(len(rows), 40, replace=False)
        assert covering_radius(pieces, rows[some]) > 1.6 * exact


@pytest.mark.parametrize("share", [0.001, 0.1, 0.37, 1.0])
def test_the_union_is_the_share_asked_for_and_at_most_a_row_a_part_more(share: float):
    rows = draw("offset", 1000, 3, seed=0)
    parts = Watched(np.split(rows, [1, 8, 400, 900]))
    partitioned(parts, 5, share)
    assert parts.kept == [max(1, int(np.ceil(share * len(piece)))) for piece in parts.pieces]
    assert share * 1000 <= sum(parts.kept) < share * 1000 + len(parts.pieces)


def test_partitioned_selection_takes_something_of_every_part():
    rows = draw("offset", 100, 3, seed=2)
    parts = Parts([rows[:1], rows[1:3], rows[3:]])
    chosen = partitioned(parts, 100, 0.0001)
    assert len(chosen.indices) == 3
    assert covering_radius(parts, rows) == 0


def test_a_projection_keeps_distances_to_its_stated_accuracy():
    rows = draw("clustered", 400, 300, seed=4)
    projection = gaussian_projection(300, 128, np.random.default_rng(0))
    ratio = np.linalg.norm(np.diff(rows @ projection, axis=0), axis=1)
    ratio /= np.linalg.norm(np.diff(rows, axis=0), axis=1)
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert ratio.std() == pytest.approx(1 / np.sqrt(2 * 128), rel=0.2)
    with pytest.raises(ValueError, match="does not reduce"):
        gaussian_projection(10, 10, np.random.default_rng(0))
