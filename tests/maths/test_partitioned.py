"""Sharded selection is exact selection; partitioned selection keeps its proven bound."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.maths.coreset import Shards, greedy, select
from pipeline.maths.partitioned import covering_radius, partitioned
from pipeline.maths.projection import gaussian_projection
from pipeline.maths.shard import Shard


def draw(kind: str, count: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "clustered":
        centres = rng.normal(size=(5, dim)) * 10
        rows = centres[rng.integers(0, 5, count)] + rng.normal(size=(count, dim))
    elif kind == "grid":
        rows = rng.integers(0, 3, size=(count, dim))
    else:
        rows = rng.normal(size=(count, dim)) + 100
    return rows.astype(np.float32)


def sharded(rows: np.ndarray, count: int, size: int, start: int, pool: int = 64):
    pieces = np.array_split(rows, count)
    offsets = np.cumsum([0, *map(len, pieces)])
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
class Parts:
    pieces: Sequence[np.ndarray]

    def each(self, work: Callable):
        return [work(piece) for piece in self.pieces]


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_partitioned_selection_reports_its_radius_and_keeps_its_bound(share: float):
    rows = draw("clustered", 2000, 8, seed=1)
    parts = Parts(np.array_split(rows, 7))
    chosen = partitioned(parts, 40, share)
    centres = rows[chosen.indices]
    distances = np.linalg.norm(rows[:, None].astype(np.float64) - centres, axis=2).min(axis=1)
    assert chosen.radius == pytest.approx(distances.max(), rel=1e-5)
    assert chosen.radius <= chosen.bound * (1 + 1e-6)
    exact = greedy(rows, 40).radii[-1]
    # Greedy on parts and union is a 4-approximation of the optimum, which is over half of greedy's.
    assert exact / 2 <= chosen.radius
    if share == 1.0:
        assert chosen.radius == pytest.approx(exact, rel=1e-6)


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
