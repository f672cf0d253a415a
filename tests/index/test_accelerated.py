"""The search for GPUs, on the device "cpu", against the dense search."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchlake.pipeline.index import accelerated, exact
from patchlake.pipeline.index.accelerated import AcceleratedSearch
from patchlake.pipeline.index.exact import ExactSearch

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


def rows(count: int, *, rank: int, offset: float, seed: int) -> np.ndarray:
    basis = np.random.default_rng(99).standard_normal((rank, 64))
    values = np.random.default_rng(seed).standard_normal((count, rank)) @ basis
    return (values + offset).astype(np.float32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize(("rank", "offset"), [(5, 0.0), (64, 0.0), (20, 1000.0)])
def test_results_equal_the_dense_search_to_the_bit(device, k, rank, offset, monkeypatch):
    # Blocks of 25 queries, so that there are several.
    monkeypatch.setattr(accelerated, "_BOUNDS", 50_000)
    bank = rows(2000, rank=rank, offset=offset, seed=0)
    # As a bank is that the workers of a node have in common.
    bank.flags.writeable = False
    normal = rows(60, rank=rank, offset=offset, seed=1)
    queries = np.concatenate([normal, bank[:30], normal + 50 * normal[::-1], bank[:30] + 1e-3])
    search = AcceleratedSearch.over(bank, torch.device(device))

    for ignore in (None, np.arange(0, 2000, 7)):
        expected, expected_rows = ExactSearch.over(bank).nearest(queries, k, ignore=ignore)
        distances, found = search.nearest(queries, k, ignore=ignore)
        np.testing.assert_array_equal(found, expected_rows)
        np.testing.assert_array_equal(distances, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_bfloat16_rounds_as_wrongly_as_it_can_are_told_apart(device):
    # Just above and below the middle of two bfloat16s: one rounds up, the other down.
    middle = 1 + 2.0**-8
    up, down = (np.full(64, middle + by, np.float32) for by in (2.0**-16, -(2.0**-16)))
    bank = np.stack([up, -up, down, -down])
    distances, found = AcceleratedSearch.over(bank, torch.device(device)).nearest(down[None], 1)
    assert (distances.item(), found.item()) == (0, 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_pairs_beyond_the_memory_are_measured_in_parts(device, spread, monkeypatch):
    """As of a bank of equal rows, where no bound rules out anything."""
    bank = spread * rows(500, rank=20, offset=0.0, seed=0) + np.float32(3)
    queries = rows(60, rank=20, offset=3.0, seed=1)
    monkeypatch.setattr(accelerated, "_MOST_PAIRS", 700)
    held = []
    found_near = torch.Tensor.nonzero

    def noted(mask):
        held.append(int(mask.sum()))
        return found_near(mask)

    monkeypatch.setattr(torch.Tensor, "nonzero", noted)
    distances, found = AcceleratedSearch.over(bank, torch.device(device)).nearest(queries, 2)
    expected, expected_rows = ExactSearch.over(bank).nearest(queries, 2)
    np.testing.assert_array_equal(found, expected_rows)
    np.testing.assert_array_equal(distances, expected)
    assert max(held) <= 700
    assert len(held) > 1 or spread


@pytest.mark.parametrize("device", DEVICES)
def test_one_long_row_does_not_make_all_others_possible(device, monkeypatch):
    bank = rows(2000, rank=8, offset=0.0, seed=0)
    queries = rows(100, rank=8, offset=0.0, seed=1)
    measured_pairs = []
    for length in (1, 300):
        bank[17] *= length
        search = AcceleratedSearch.over(bank, torch.device(device))
        count = []
        monkeypatch.setattr(
            AcceleratedSearch,
            "_measure",
            lambda self, q, query, row, kind, f=AcceleratedSearch._measure, c=count: (
                c.append(len(query)) or f(self, q, query, row, kind)
            ),
        )
        search.nearest(queries, 1)
        monkeypatch.undo()
        measured_pairs.append(sum(count))
    # The bound of a pair is by its own row: by the longest of all it would leave all 200,000.
    assert measured_pairs[1] < 1.2 * measured_pairs[0]
    assert measured_pairs[1] < 0.1 * bank.shape[0] * len(queries)


def test_ties_go_to_the_lowest_row_and_a_bank_of_one_row_works():
    bank = np.repeat(rows(50, rank=20, offset=0.0, seed=0), 4, axis=0)
    search = AcceleratedSearch.over(bank, torch.device("cpu"))
    distances, found = search.nearest(bank[::4], 2)
    np.testing.assert_array_equal(found[:, 0], np.arange(0, 200, 4))
    np.testing.assert_array_equal(found[:, 1], np.arange(1, 200, 4))
    assert not distances.any()

    one = AcceleratedSearch.over(bank[:1], torch.device("cpu"))
    assert one.nearest(bank, 1)[1].tolist() == [[0]] * 200
    assert one.size == 1
    np.testing.assert_array_equal(one.vectors(np.array([0])), bank[:1])


def test_the_product_alone_would_find_other_neighbours():
    """What the measuring is for: without it this data has wrong rows."""
    bank = rows(2000, rank=64, offset=0.0, seed=0)
    queries = rows(300, rank=64, offset=0.0, seed=1)
    search = AcceleratedSearch.over(bank, torch.device("cpu"))
    centred = torch.from_numpy(queries - bank.mean(axis=0))
    bounds = accelerated._product(accelerated._query_factors(centred), search._factors)
    assert (bounds.argmin(dim=1).numpy() != search.nearest(queries, 1)[1][:, 0]).any()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
    st.sampled_from([0.0, 1.0, 1e4]),
)
def test_no_distance_is_below_its_bound(dim, seed, scale, offset):
    random = np.random.default_rng(seed)
    lengths = 10.0 ** random.uniform(-3, 3, (60, 1))
    vectors = (scale * (random.standard_normal((60, dim)) * lengths + offset)).astype(np.float32)
    queries, bank = torch.from_numpy(vectors[:20]), torch.from_numpy(vectors[20:])
    centred, bank_centred = queries - bank.mean(dim=0), bank - bank.mean(dim=0)
    bounds = accelerated._product(
        accelerated._query_factors(centred), accelerated._bank_factors(bank_centred)
    ).double()
    _, rest = accelerated._errors(dim)
    lengths_squared = centred.double().square().sum(dim=1, keepdim=True)
    exact = torch.cdist(centred.double(), bank_centred.double()).square()
    assert (bounds + lengths_squared * (1 - rest) <= exact + 1e-35).all()
    # And it is no bound of nothing: it is nearer than 5 % of the two lengths' product.
    scales = lengths_squared + bank_centred.double().square().sum(dim=1)
    assert (exact - bounds - lengths_squared * (1 - rest) <= 0.05 * scales + 1e-30).all()


@pytest.mark.parametrize("device", DEVICES)
def test_what_float64_leaves_in_doubt_is_decided_on_the_cpu(device, monkeypatch):
    """Rows twice in the bank, and a distance on the border of two float32."""
    bank = rows(200, rank=64, offset=0.0, seed=0)
    bank[100:150] = bank[:50]
    queries = rows(80, rank=64, offset=0.0, seed=1)
    queries[:50] = bank[:50] + np.float32(0.25)
    asked = []
    monkeypatch.setattr(
        accelerated, "measured", lambda q, *rest: asked.append(len(q)) or exact.measured(q, *rest)
    )
    for k in (1, 2, 5):
        asked.clear()
        found = AcceleratedSearch.over(bank, torch.device(device)).nearest(queries, k)
        expected = ExactSearch.over(bank).nearest(queries, k)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert 50 <= sum(asked) < 80


@pytest.mark.parametrize("device", DEVICES)
def test_queries_on_the_device_are_searched_for_there(device):
    bank, queries = (rows(count, rank=20, offset=1.0, seed=count) for count in (500, 60))
    search = AcceleratedSearch.over(bank, torch.device(device))
    found = search.nearest_on_device(torch.from_numpy(queries).to(device), 3)
    for one, other in zip(found, search.nearest(queries, 3), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("device", DEVICES)
def test_values_that_are_not_finite_are_refused(device):
    bank = rows(50, rank=20, offset=0.0, seed=0)
    search = AcceleratedSearch.over(bank, torch.device(device))
    with pytest.raises(ValueError, match="not finite"):
        search.nearest(np.full((3, 64), np.nan, np.float32), 1)


def test_too_many_neighbours_are_refused():
    search = AcceleratedSearch.over(np.zeros((3, 4), np.float32), torch.device("cpu"))
    with pytest.raises(ValueError, match="4 neighbours"):
        search.nearest(np.zeros((1, 4), np.float32), 4)
