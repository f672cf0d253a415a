"""The memory bank as faiss files."""

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.errors import ModelError
from patchlake.pipeline.index.shards import from_shards, to_shards


def random_bank(rows, dim):
    return np.random.default_rng(rows * 100 + dim).normal(size=(rows, dim)).astype(np.float32)


@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 2000), st.randoms())
def test_write_then_read_is_the_identity_for_any_shard_size(rows, dim, shard_bytes, random):
    bank = random_bank(rows, dim)
    contents = list(to_shards(bank, shard_bytes=shard_bytes).items())
    # Stores list files in any order.
    random.shuffle(contents)

    np.testing.assert_array_equal(from_shards(dict(contents)), bank)


def test_shards_keep_to_their_size_and_say_which_of_how_many_they_are():
    bank = random_bank(100, 8)
    contents = to_shards(bank, shard_bytes=1000)
    assert list(contents) == [f"index-{i:05d}-of-00004.faiss" for i in range(4)]
    # faiss adds a header of less than 100 bytes.
    assert max(map(len, contents.values())) < 1000 + 100
    assert list(to_shards(bank)) == ["index-00000-of-00001.faiss"]


def test_plain_faiss_finds_the_bank_rows_in_shard_order():
    bank = random_bank(101, 8)
    queries = random_bank(20, 8)
    expected = ((queries[:, None] - bank) ** 2).sum(axis=2)
    found, passed = [], 0
    for content in to_shards(bank, shard_bytes=1000).values():
        index = faiss.deserialize_index(np.frombuffer(content, np.uint8))
        squared, rows = index.search(queries, 1)
        found.append(np.concatenate([squared, rows + passed], axis=1))
        passed += index.ntotal
    best = np.stack(found)[np.argmin([f[:, 0] for f in found], axis=0), np.arange(20)]

    assert passed == 101
    np.testing.assert_array_equal(best[:, 1], expected.argmin(axis=1))
    np.testing.assert_allclose(best[:, 0], expected.min(axis=1), rtol=1e-4)


@pytest.mark.parametrize("missing", [0, 1, 3])
def test_a_missing_shard_is_refused(missing):
    contents = to_shards(random_bank(100, 8), shard_bytes=1000)
    del contents[f"index-{missing:05d}-of-00004.faiss"]
    with pytest.raises(ModelError, match="shards 3 are there"):
        from_shards(contents)


def test_no_shards_at_all_are_refused():
    with pytest.raises(ModelError, match="shards 0 are there"):
        from_shards({})


def test_an_index_that_is_not_flat_is_refused_by_name():
    index = faiss.IndexHNSWFlat(8, 4)
    index.add(random_bank(10, 8))
    name = "index-00000-of-00001.faiss"
    with pytest.raises(ModelError, match=f"{name} is a IndexHNSWFlat, not a flat index"):
        from_shards({name: faiss.serialize_index(index).tobytes()})
