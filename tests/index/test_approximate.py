"""Approximate search, against exact search over the same bank."""

import hashlib
from dataclasses import dataclass

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.errors import ModelError
from patchlake.pipeline.index.approximate import ApproximateSearch, Quality, measure
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.shards import from_shards, load_shards, to_shards

KINDS = ["flat", "hnsw", "ivf"]


def clustered(count, *, seed, dim=48, clusters=40):
    """Rows around separate centres, each cluster of a few directions, as patches of textures are.

    The centres are the same for every seed: what another seed gives is held out.
    """
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    centres = fixed.normal(size=(clusters, dim)) * 2
    directions = fixed.normal(size=(clusters, 8, dim)) / 4
    cluster = rng.integers(clusters, size=count)
    rows = centres[cluster] + np.einsum(
        "ni,nid->nd", rng.normal(size=(count, 8)), directions[cluster]
    )
    return (rows + 0.1 * rng.normal(size=rows.shape)).astype(np.float32)


def stored(bank, kind, shards=1, **options):
    """A search over the bank after it was written and read."""
    shard_bytes = -(-bank.nbytes // shards)
    indexes = load_shards(to_shards(bank, kind=kind, shard_bytes=shard_bytes, **options), kind=kind)
    assert len(indexes) == shards
    return ApproximateSearch.over(indexes)


def assert_equal_answers(answer, expected):
    np.testing.assert_array_equal(answer[1], expected[1])
    np.testing.assert_array_equal(answer[0].view(np.uint32), expected[0].view(np.uint32))


@pytest.fixture(scope="module")
def bank():
    return clustered(4000, seed=1)


@pytest.fixture(scope="module")
def held_out():
    return clustered(500, seed=2)


@pytest.fixture(scope="module")
def searches(bank):
    return {kind: stored(bank, kind, shards=3) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 2000))
def test_write_then_read_is_the_identity(kind, rows, dim, shard_bytes):
    bank = np.random.default_rng(rows).normal(size=(rows, dim)).astype(np.float32)
    contents = to_shards(bank, kind=kind, shard_bytes=shard_bytes)

    np.testing.assert_array_equal(from_shards(contents, kind=kind), bank)
    assert sum(index.ntotal for index in load_shards(contents, kind=kind)) == rows


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_give_the_same_bytes_with_any_number_of_threads(kind, bank):
    before = faiss.omp_get_max_threads()
    digests = set()
    try:
        for threads in (1, 3, 3):
            faiss.omp_set_num_threads(threads)
            contents = to_shards(bank, kind=kind, shard_bytes=bank.nbytes // 2)
            assert faiss.omp_get_max_threads() == threads
            digests.add(hashlib.sha256(b"".join(contents.values())).hexdigest())
    finally:
        faiss.omp_set_num_threads(before)
    assert len(digests) == 1


@pytest.mark.parametrize(("kind", "other"), [("hnsw", "ivf"), ("ivf", "flat"), ("flat", "hnsw")])
def test_another_kind_than_the_model_says_is_refused(kind, other):
    contents = to_shards(np.eye(3, dtype=np.float32), kind=kind)
    for read in (from_shards, load_shards):
        with pytest.raises(ModelError, match=f"of-00001.faiss is a Index.*, not a {other} index"):
            read(contents, kind=other)


def test_the_effort_is_kept_in_the_file(bank):
    graph = load_shards(to_shards(bank, kind="hnsw", effort=30), kind="hnsw")[0]
    lists = load_shards(to_shards(bank, kind="ivf", effort=5), kind="ivf")[0]
    # 4 sqrt(4000) = 253 lists would have 16 rows each: 4000 // 39.
    assert (graph.hnsw.efSearch, lists.nprobe, lists.nlist) == (30, 5, 102)


def test_flat_shards_lose_nothing(searches, bank, held_out):
    exact = ExactSearch.over(bank)
    assert measure(searches["flat"], exact, held_out) == Quality(500, 1.0, 0.0, 0.0)
    assert measure(searches["flat"], exact, bank[:500], are_rows=True) == Quality(500, 1.0, 0, 0)
    for k in (1, 3, 9):
        assert_equal_answers(searches["flat"].nearest(held_out, k), exact.nearest(held_out, k))


@pytest.mark.parametrize("k", [1, 3, 9])
def test_ivf_that_looks_into_every_list_is_exact(k, bank, held_out):
    repeated = np.concatenate([bank, bank[:300], bank[:100]])
    search = stored(repeated, "ivf", shards=2, effort=10_000)
    queries = np.concatenate([held_out, bank[:50]])
    ignore = np.arange(7, 4100, 41)

    for left_out in (None, ignore):
        assert_equal_answers(
            search.nearest(queries, k, ignore=left_out),
            ExactSearch.over(repeated).nearest(queries, k, ignore=left_out),
        )


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_recall_on_clusters(kind, searches, bank, held_out):
    quality = measure(searches[kind], ExactSearch.over(bank), held_out)
    assert quality.recall_at_1 >= 0.95
    assert 0 <= quality.mean_score_error_relative <= quality.max_score_error_relative < 1


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_those_of_the_rows_and_never_below_the_exact_ones(
    kind, searches, bank, held_out
):
    distances, rows = searches[kind].nearest(held_out, 9)
    exact, _ = ExactSearch.over(bank).nearest(held_out, 9)
    difference = held_out[:, None].astype(np.float64) - bank[rows]

    np.testing.assert_allclose(distances, np.linalg.norm(difference, axis=2), rtol=1e-7)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert (distances >= exact).all()
    assert all(len(set(found)) == 9 for found in rows.tolist())
    np.testing.assert_array_equal(searches[kind].vectors(rows), bank[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_the_other_queries(kind, bank):
    # From 2,667 queries of 48 dimensions on, faiss 1.15 compares queries with centroids by a
    # matrix product, which at 3,000 from the origin chooses other lists than differences do.
    search, queries = stored(bank + 3000, kind, effort=1), clustered(3000, seed=5) + 3000
    distances, rows = search.nearest(queries, 3)
    for number in range(0, 3000, 50):
        alone = search.nearest(queries[number : number + 1], 3)
        assert_equal_answers((distances[number : number + 1], rows[number : number + 1]), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_tie_in_float32_are_ordered_in_float64(kind):
    rng = np.random.default_rng(0)
    # Around each query six rows whose distances are 1, but for the rounding of their coordinates.
    queries = rng.integers(-3, 4, size=(100, 48)).astype(np.float32)
    around = rng.normal(size=(6, 100, 48))
    around /= np.linalg.norm(around, axis=2, keepdims=True)
    bank = (queries + around).astype(np.float32).reshape(-1, 48)

    search = stored(bank, kind, effort=10_000)
    assert_equal_answers(search.nearest(queries, 1), ExactSearch.over(bank).nearest(queries, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_rows_are_not_found_and_do_not_crowd_out_the_others(kind, searches, bank, held_out):
    exact = ExactSearch.over(bank)
    # All that would be found, and more: the 30 nearest rows of the first query.
    ignore = exact.nearest(held_out[:1], 30)[1][0]
    distances, rows = searches[kind].nearest(held_out, 3, ignore=ignore)

    assert not np.isin(rows, ignore).any()
    expected = exact.nearest(held_out, 3, ignore=ignore)
    np.testing.assert_array_equal(distances[0], expected[0][0])
    assert (distances == expected[0]).mean() > 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_k_neighbours_even_where_the_index_finds_fewer(kind):
    bank = clustered(400, seed=3)
    search, exact = stored(bank, kind, shards=2, effort=1), ExactSearch.over(bank)
    queries = clustered(5, seed=4)
    ignore = np.arange(0, 400, 2)

    # A list of 39 rows or so cannot hold 150: these queries are searched exactly.
    assert_equal_answers(
        search.nearest(queries, 200, ignore=ignore), exact.nearest(queries, 200, ignore=ignore)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiny_bank_is_searched_whole(kind):
    bank = np.array([[0, 0], [3, 0], [0, 0], [0, 4]], np.float32)
    distances, rows = stored(bank, kind, shards=2).nearest(np.zeros((1, 2), np.float32), 4)
    assert (distances.tolist(), rows.tolist()) == ([[0, 0, 3, 4]], [[0, 2, 1, 3]])


def test_no_queries_give_no_rows(searches):
    for search in searches.values():
        distances, rows = search.nearest(np.empty((0, 48), np.float32), 2)
        assert (distances.shape, rows.shape) == ((0, 2), (0, 2))
        assert search.vectors(rows).shape == (0, 2, 48)


def test_what_cannot_be_answered_is_refused(searches):
    search = searches["ivf"]
    with pytest.raises(ValueError, match=r"4001 neighbours of queries of 48 .* 4000 rows of 48"):
        search.nearest(np.zeros((1, 48), np.float32), 4001)
    with pytest.raises(ValueError, match=r"1 neighbours of queries of 5 .* 3999 rows of 48"):
        search.nearest(np.zeros((1, 5), np.float32), 1, ignore=np.array([7, 7]))


@dataclass(frozen=True)
class Scripted:
    """A search that gives prepared distances."""

    distances: tuple[float, ...]

    @property
    def size(self):
        return 1

    def nearest(self, *_queries, **_options):
        found = np.array(self.distances, np.float32)[:, None]
        return found, np.zeros(found.shape, np.int64)

    def vectors(self, rows):
        raise NotImplementedError


def test_quality_counts_what_was_missed_and_by_how_much():
    # Found; a quarter of the score is error; a patch of the bank missed; found at distance 0.
    search, exact = Scripted((1, 2, 0.5, 0)), Scripted((1, 1.5, 0, 0))
    quality = measure(search, exact, np.zeros((4, 1), np.float32))

    assert quality == Quality(
        queries=4,
        recall_at_1=0.5,
        mean_score_error_relative=(0.25 + 1) / 4,
        max_score_error_relative=1,
    )
