"""The pruned search gives the dense search's results to the bit, whatever the data."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from patchlake.pipeline.index import bounds, choose, products, pruned, sieve
from patchlake.pipeline.index.bounds import Projection, principal_directions
from patchlake.pipeline.index.choose import ChosenSearch, search_over
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.index.pace import _TRIAL
from patchlake.pipeline.index.pruned import PrunedSearch
from tests.conftest import ASSETS

DIM = 96


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that 3000 rows are two tiles, of which 600 queries are two chunks of a block."""
    monkeypatch.setattr(pruned, "TILE", 1500)
    monkeypatch.setattr(sieve, "_ESTIMATES", 400 * 1500)
    # Buffers of that size are kept in it.
    monkeypatch.setattr(sieve, "_local", threading.local())


def low_rank(rng: np.random.Generator, rows: int) -> np.ndarray:
    basis = np.random.default_rng(7).standard_normal((12, DIM))
    spread = 0.8 ** np.arange(12)
    exact = (rng.standard_normal((rows, 12)) * spread) @ basis
    return (exact + 0.05 * rng.standard_normal((rows, DIM))).astype(np.float32)


def exactly_low_rank(rng: np.random.Generator, rows: int) -> np.ndarray:
    basis = np.random.default_rng(7).standard_normal((5, DIM))
    return (rng.standard_normal((rows, 5)) @ basis).astype(np.float32)


def isotropic(rng: np.random.Generator, rows: int) -> np.ndarray:
    return rng.standard_normal((rows, DIM)).astype(np.float32)


def clustered(rng: np.random.Generator, rows: int) -> np.ndarray:
    centres = 10 * np.random.default_rng(7).standard_normal((20, DIM))
    chosen = centres[rng.integers(20, size=rows)]
    return (chosen + rng.standard_normal((rows, DIM))).astype(np.float32)


def duplicated(rng: np.random.Generator, rows: int) -> np.ndarray:
    return np.resize(low_rank(np.random.default_rng(7), max(1, rows // 5)), (rows, DIM))


def offset(rng: np.random.Generator, rows: int) -> np.ndarray:
    return low_rank(rng, rows) + np.float32(3000)


def with_outliers(rng: np.random.Generator, rows: int) -> np.ndarray:
    far = rng.choice([1, 30, 1000], (rows, 1), p=[0.96, 0.03, 0.01])
    return (far * low_rank(rng, rows)).astype(np.float32)


def tiny(rng: np.random.Generator, rows: int) -> np.ndarray:
    """With squares that float32 rounds to 0, or nearly."""
    return low_rank(rng, rows) * np.float32(1e-22)


def constant(rng: np.random.Generator, rows: int) -> np.ndarray:
    return np.full((rows, DIM), 2.5, np.float32)


KINDS = [
    low_rank,
    exactly_low_rank,
    isotropic,
    clustered,
    duplicated,
    offset,
    with_outliers,
    tiny,
    constant,
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
# Of numbers that float32 barely holds, and of blocks that are searched densely after all: they take
# ten times as long as the others.
LENGTHY = (with_outliers, tiny)


def assert_same(
    search: PrunedSearch | ChosenSearch, queries: np.ndarray, k: int, ignore=None
) -> None:
    distances, rows = search.nearest(queries, k, ignore=ignore)
    expected, expected_rows = search.dense.nearest(queries, k, ignore=ignore)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(distances, expected)


def queries_for(kind, rng: np.random.Generator, bank: np.ndarray, count: int) -> np.ndarray:
    """Normal ones, bank rows, points between two, and defects near and far."""
    normal = kind(rng, count)
    some = bank[rng.integers(len(bank), size=count)]
    others = bank[rng.integers(len(bank), size=count)]
    far = normal + rng.choice([3, 1e2, 1e5], (count, 1)) * rng.standard_normal((count, DIM))
    return np.concatenate([normal, some, (some + others) / 2, far]).astype(np.float32)


def every_case() -> list:
    """Return each kind with each number of components and neighbours, most for a soak."""
    cases = []
    for kind, components, k in product(KINDS, (32, 64, 256), (1, 3, 9)):
        here = [(64, 3)] if kind in LENGTHY else [(32, 1), (64, 3), (256, 9)]
        marks = () if (components, k) in here else pytest.mark.soak
        name = f"{kind.__name__}-{components}-{k}"
        cases.append(pytest.param(kind, components, k, marks=marks, id=name))
    return cases


@pytest.mark.parametrize(("kind", "components", "k"), every_case())
@pytest.mark.usefixtures("small_tiles")
def test_results_equal_the_dense_search_to_the_bit(kind, components, k):
    rng = np.random.default_rng(k)
    bank = kind(rng, 3000)
    search = PrunedSearch.over(ExactSearch.over(bank), components, threads=1)
    assert_same(search, queries_for(kind, rng, bank, 150), k)


@given(
    seed=st.integers(0, 2**20),
    rows=st.integers(1, 60),
    queries=st.integers(0, 40),
    kind=st.sampled_from(KINDS),
    components=st.sampled_from([1, 8, 32, 128]),
    data=st.data(),
)
@settings(max_examples=60)
def test_small_banks_and_ignored_rows_equal_the_dense_search(
    seed, rows, queries, kind, components, data
):
    rng = np.random.default_rng(seed)
    bank = kind(rng, rows)
    ignore = np.array(sorted(data.draw(st.sets(st.integers(0, rows - 1), max_size=rows - 1))), int)
    k = data.draw(st.integers(1, min(9, rows - len(ignore))))
    search = PrunedSearch.over(ExactSearch.over(bank), components, threads=1)
    assert_same(search, queries_for(kind, rng, bank, queries), k, ignore if len(ignore) else None)


@pytest.mark.parametrize("k", [1, pytest.param(9, marks=pytest.mark.soak)])
@kinds
@pytest.mark.usefixtures("small_tiles")
def test_rows_that_are_ignored_are_never_neighbours(kind, k):
    rng = np.random.default_rng(3)
    bank = kind(rng, 3000)
    # The queries' own rows, on both sides of a border between tiles.
    ignore = np.concatenate([np.arange(40), np.arange(1480, 1520)])
    queries = np.tile(bank[ignore], (7, 1))
    search = PrunedSearch.over(ExactSearch.over(bank), 32, threads=1)
    assert_same(search, queries, k, ignore)
    assert not np.isin(search.nearest(queries, k, ignore=ignore)[1], ignore).any()


@kinds
def test_a_bound_is_never_above_the_distance(kind):
    """The law that the search rests on, in the terms in which it is used."""
    rng = np.random.default_rng(5)
    bank = kind(rng, 800)
    queries = queries_for(kind, rng, bank, 100)
    projection = Projection.onto(bank, principal_directions(bank)[0], 32)
    left, right = projection.of_queries(queries), projection.of_bank(bank)
    difference = queries[:, None].astype(np.float64) - bank
    distance = np.linalg.norm(difference, axis=2)
    float_error = left.float_error[:, None] + right.float_error

    exact = left.floats[:, None].astype(np.float64) - right.floats
    assert (np.linalg.norm(exact, axis=2) <= distance * (1 + 1e-12) + float_error).all()
    coordinates = right.floats.shape[1]
    steps = left.bytes[:, None].astype(np.float64) - right.bytes[:, :coordinates]
    error = left.byte_error[:, None] + right.byte_error
    assert (projection.step * np.linalg.norm(steps, axis=2) <= distance + float_error + error).all()
    digits = right.bytes[:, coordinates:].astype(np.int64)
    digits[:, :-1] *= 127
    np.testing.assert_array_equal(digits.sum(axis=1), right.squared // 2 - projection.half_offset)


@kinds
def test_no_row_within_the_limit_has_an_estimate_above_the_threshold(kind):
    """The same law of the integers that decide, where the limit is the distance itself."""
    rng = np.random.default_rng(5)
    bank = kind(rng, 800)
    queries = queries_for(kind, rng, bank, 25)
    projection = Projection.onto(bank, principal_directions(bank)[0], 32)
    coordinates = projection.of_bank(bank)
    block = sieve.Block(projection, coordinates.as_bank(), bank, queries, 1)
    estimates = block._bytes.astype(np.int64) @ coordinates.bytes.T.astype(np.int64)
    difference = queries[:, None].astype(np.float64) - bank
    for row, squared in enumerate(np.einsum("qbd,qbd->bq", difference, difference)):
        block._best[:, 0] = squared
        highest = block._highest_estimate(slice(None))
        assert (estimates[:, row] <= highest).all()
        parts = [block._highest_estimate(chunk) for chunk in (slice(0, 60), slice(60, None))]
        np.testing.assert_array_equal(np.concatenate(parts), highest)


@given(
    half_offset=st.integers(0, 2_000_000),
    learned=st.lists(st.integers(0, 2_000_000), min_size=1, max_size=5),
    others=st.lists(st.integers(0, 2_000_000), min_size=1, max_size=5),
)
def test_bytes_give_the_number_and_too_few_of_them_less(half_offset, learned, others):
    def total(digits: np.ndarray) -> np.ndarray:
        return digits[:, :-1].sum(axis=1, dtype=int) * 127 + digits[:, -1]

    numbers = np.array(others, np.int32)
    digits = bounds._as_bytes(numbers, half_offset)
    np.testing.assert_array_equal(total(digits), numbers - half_offset)
    # Room for others is learned from a sample: see `Slots.put`.
    width = bounds._as_bytes(np.array(learned, np.int32), half_offset).shape[1]
    cut = np.column_stack([digits[:, :-1][:, : width - 1], digits[:, -1]])
    assert (total(cut) <= numbers - half_offset).all()


def test_bounds_leave_few_rows_of_low_rank_data():
    rng = np.random.default_rng(0)
    search = PrunedSearch.over(ExactSearch.over(low_rank(rng, 6000)), 32, threads=1)
    queries = low_rank(rng, 200)
    query, _ = search._survivors(queries, 1, None)
    assert 200 <= len(query) <= 220


@pytest.mark.parametrize("other", [pruned, sieve], ids=["of a tile", "of a block"])
def test_a_block_that_cannot_be_pruned_goes_dense(other, monkeypatch: pytest.MonkeyPatch):
    # Each of the two limits alone.
    monkeypatch.setattr(other, "_MAX_LEFT", np.inf)
    rng = np.random.default_rng(0)
    search = PrunedSearch.over(ExactSearch.over(isotropic(rng, 6000)), 8, threads=1)
    queries = isotropic(rng, 200)
    assert search._survivors(queries, 1, None) is None
    assert_same(search, queries, 1)


def test_far_defects_do_not_spoil_the_bounds_of_others_in_other_blocks():
    rng = np.random.default_rng(0)
    search = PrunedSearch.over(ExactSearch.over(low_rank(rng, 6000)), 32, threads=1)
    queries = low_rank(rng, 800)
    queries[:5] += 1e4
    assert_same(search, queries, 1)
    assert search._survivors(queries[400:], 1, None) is not None


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("queries", [0, 1, 391, 784, 1201])
@pytest.mark.usefixtures("small_tiles")
def test_blocks_and_threads_change_nothing(threads, queries):
    rng = np.random.default_rng(0)
    bank = low_rank(rng, 5500)
    asked = low_rank(rng, queries)
    search = PrunedSearch.over(ExactSearch.over(bank), 32, threads=threads)
    assert_same(search, asked, 1)


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.usefixtures("small_tiles")
def test_callers_at_the_same_time_change_nothing(k):
    rng = np.random.default_rng(0)
    search = PrunedSearch.over(ExactSearch.over(low_rank(rng, 5500)), 32, threads=1)
    asked = [low_rank(rng, 800) for _ in range(6)]
    ignore = np.arange(2700, 2800)
    with ThreadPoolExecutor(6) as callers:
        found = list(callers.map(lambda queries: search.nearest(queries, k, ignore=ignore), asked))
    for queries, (distances, rows) in zip(asked, found, strict=True):
        expected, expected_rows = search.dense.nearest(queries, k, ignore=ignore)
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_array_equal(distances, expected)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("row", [0, 5999])
@pytest.mark.usefixtures("small_tiles")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_bank_that_is_not_finite_raises_what_the_dense_search_raises(k, row):
    rng = np.random.default_rng(0)
    bank = low_rank(rng, 6000)
    bank[row, 3] = np.nan
    search = PrunedSearch.over(
        ExactSearch.over(bank), 32, threads=1, principal=principal_directions(low_rank(rng, 500))[0]
    )
    for one in (search, search.dense):
        with pytest.raises(ValueError, match=f"fewer than {k} rows can be compared"):
            one.nearest(low_rank(rng, 50), k)


def test_distances_near_zero_have_no_error_of_the_product():
    rng = np.random.default_rng(0)
    bank = offset(rng, 3000)
    queries = bank[:50].copy()
    queries[:, 0] = np.nextafter(queries[:, 0], np.float32(1e9))
    distances, rows = PrunedSearch.over(ExactSearch.over(bank), 32, threads=1).nearest(queries, 1)
    expected = np.linalg.norm(queries.astype(np.float64) - bank[:50], axis=1)
    np.testing.assert_array_equal(rows[:, 0], np.arange(50))
    np.testing.assert_allclose(distances[:, 0], expected, rtol=1e-6)


def test_too_few_rows_or_other_dimensions_are_refused():
    search = PrunedSearch.over(ExactSearch.over(np.zeros((4, 8), np.float32)), 4, threads=1)
    queries = np.zeros((2, 8), np.float32)
    with pytest.raises(ValueError, match=r"4 neighbours of queries of 8 .* 3 rows of 8"):
        search.nearest(queries, 4, ignore=np.array([1]))
    with pytest.raises(ValueError, match=r"1 neighbours of queries of 7 .* 4 rows of 8"):
        search.nearest(queries[:, :7], 1)


@kinds
def test_a_choice_changes_no_result(kind):
    rng = np.random.default_rng(1)
    bank = kind(rng, 800)
    # As a bank is that the workers of a node have in common.
    bank.flags.writeable = False
    search = search_over(ExactSearch.over(bank), threads=1)
    assert search.components in (0, *choose.COMPONENTS)
    assert search.components < DIM
    assert_same(search, queries_for(kind, rng, bank, 50), 1)


@pytest.mark.slow
def test_what_prunes_is_chosen_and_what_does_not_is_not(monkeypatch: pytest.MonkeyPatch):
    # Processor seconds: other processes on the machine must not decide.
    monkeypatch.setattr(choose, "perf_counter", process_time)
    rng = np.random.default_rng(1)
    basis = 0.8 ** np.arange(64)[:, None] * rng.standard_normal((64, 512))
    low = (rng.standard_normal((8000, 64)) @ basis).astype(np.float32)
    # All rows are about as far as one another from what is not a row.
    high, new = rng.standard_normal((2, 8000, 512)).astype(np.float32)
    new = new[:300]
    with threadpool_limits(1):
        searches = {
            name: search_over(ExactSearch.over(bank), threads=1)
            for name, bank in (("low", low), ("high", high))
        }
        for _ in range(_TRIAL):
            searches["low"].nearest(low[:300] + np.float32(0.1), 1)
            searches["high"].nearest(new, 1)
    chosen = searches["low"]
    # Without a fast product of bytes the dense search may be the faster one.
    if products.pays(products.of_bytes):
        assert chosen.components > 0
        assert chosen._paces[1].prunes()
    chosen = searches["high"]
    assert chosen.pruned is None or not chosen._paces[1].prunes()


def test_which_is_faster_is_found_out_in_the_first_queries_of_a_call():
    rng = np.random.default_rng(2)
    dense = ExactSearch.over(low_rank(rng, 1000))
    pruned = PrunedSearch.over(dense, 32, threads=1)
    chosen = ChosenSearch(dense, pruned)
    queries = low_rank(rng, (_TRIAL + 3) * pruned.tried + 1)
    found, expected = chosen.nearest(queries, 2), dense.nearest(queries, 2)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    # All that was left after the trial is one call, and so is whatever comes then.
    assert chosen._paces[2]._calls == _TRIAL + 1
    chosen.nearest(queries, 2)
    assert chosen._paces[2]._calls == _TRIAL + 2


@pytest.mark.parametrize("rows", [1, 2, 511])
def test_small_banks_are_searched_densely(rows):
    bank = low_rank(np.random.default_rng(0), rows)
    search = search_over(ExactSearch.over(bank))
    assert (search.components, search.size) == (0, rows)
    assert_same(search, bank, 1)
    np.testing.assert_array_equal(search.vectors(np.array([[0]])), bank[[[0]]])


@pytest.fixture(scope="module")
def tiles() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patch embeddings of real tiles: of training images, of good and of defective ones."""
    from patchlake.pipeline.config import BackboneSettings
    from patchlake.pipeline.features.backbone import load_backbone
    from patchlake.pipeline.features.extractor import Extractor
    from patchlake.pipeline.images.files import decode_image
    from patchlake.pipeline.images.formats import Limits
    from patchlake.pipeline.images.geometry import Geometry
    from patchlake.pipeline.methods.patchcore import PatchCore

    weights = str(ASSETS / "weights/resnet18.safetensors")
    settings = BackboneSettings(name="resnet18.tv_in1k", weights=weights, layers=(2, 3))
    extract = Extractor(load_backbone(settings), partial(PatchCore().embed, seed=0))
    geometry = Geometry((224, 224), None)

    def embed(folder: str, count: int) -> np.ndarray:
        paths = sorted((ASSETS / "data/magnetic_tile" / folder).iterdir())
        images = [
            decode_image(path.read_bytes(), Limits())
            for path in paths[:: len(paths) // count][:count]
        ]
        embeddings = extract(np.stack([geometry.apply(image) for image in images]))["patches"]
        return embeddings.reshape(-1, embeddings.shape[-1])

    return embed("train/good", 40), embed("test/good", 3), embed("test/crack", 3)


@pytest.mark.assets
@pytest.mark.slow
def test_real_tiles_equal_the_dense_search_and_are_faster(tiles):
    train, good, cracks = tiles
    bank = train[np.random.default_rng(0).permutation(len(train))[:12000]]
    with threadpool_limits(1):
        search = search_over(ExactSearch.over(bank), good, threads=1)
        for queries in (good, cracks):
            for k in (1, 9):
                assert_same(search, queries, k)
        if not products.pays(products.of_bytes):
            pytest.skip("no fast product of bytes on this processor")
        # Processor seconds, in turns: other processes take time from both.
        ours, dense = [], []
        for _ in range(5):
            for times, one in ((ours, search), (dense, search.dense)):
                start = process_time()
                one.nearest(good, 1)
                times.append(process_time() - start)
    assert search.components > 0
    # The benchmark has the real figure, about 5.
    assert min(dense) > 2 * min(ours)
