"""An index file is looked through before faiss sees it: what passes can be searched."""

import random

import faiss
import numpy as np
import pytest

from patchlake.pipeline.index.files import require_index
from patchlake.pipeline.index.shards import load_shards, to_shards

KINDS = ("flat", "hnsw", "ivf")


def bank(rows: int, dim: int = 6) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, dim)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 40, 3000])
def test_what_is_written_passes(kind, rows):
    for effort in (None, 1, 5):
        for content in to_shards(bank(rows), kind=kind, effort=effort).values():
            assert require_index(content, kind) == (rows, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_or_metric_is_none(kind):
    [content] = to_shards(bank(40), kind=kind).values()
    for other in set(KINDS) - {kind}:
        with pytest.raises(ValueError, match="is none of"):
            require_index(content, other)
    product = faiss.serialize_index(faiss.IndexFlatIP(6)).tobytes()
    with pytest.raises(ValueError, match="is none of"):
        require_index(product, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_announced_sizes_are_held_against_the_bytes(kind):
    [content] = to_shards(bank(40), kind=kind).values()
    for at in (4, 8):
        for value in (0, -1, 2**31 - 1):
            wrong = content[:at] + value.to_bytes(4, "little", signed=True) + content[at + 4 :]
            with pytest.raises(ValueError, match=r"."):
                require_index(wrong, kind)
    for cut in (b"", content[:3], content[:40], content[:-1], content + b"\0"):
        with pytest.raises(ValueError, match=r"."):
            require_index(cut, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_passes_after_bytes_have_changed_can_be_loaded_and_searched(kind):
    rows = bank(60)
    [(name, content)] = to_shards(rows, kind=kind).items()
    passed = 0
    for seed in range(400):
        choose = random.Random(seed)
        wrong = bytearray(content)
        for _ in range(choose.choice([1, 1, 2, 8])):
            # Headers are few bytes of many.
            at = choose.randrange(choose.choice([64, 4000, len(wrong)]) % len(wrong) or 1)
            wrong[at] = choose.choice([0, 1, 0x7F, 0xFF, choose.randrange(256)])
        try:
            require_index(bytes(wrong), kind)
        except ValueError:
            continue
        passed += 1
        [index] = load_shards({name: bytes(wrong)}, kind=kind)
        _, found = index.search(rows[:4], 3)
        assert ((found >= -1) & (found < 60)).all()
    assert passed > 20, "rows that changed are still rows"
