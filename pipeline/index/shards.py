"""The memory bank as faiss files: flat L2 indexes, global row ids in shard order."""

import faiss
import numpy as np
from jaxtyping import Float32

from pipeline.errors import ModelError

# One shard stays well under what object stores take in a single put.
_SHARD_BYTES = 256 * 2**20


def to_shards(
    bank: Float32[np.ndarray, "bank dim"], *, shard_bytes: int = _SHARD_BYTES
) -> dict[str, bytes]:
    """Return file name -> content of the bank's shards, of about equal size."""
    count = max(1, -(-bank.nbytes // shard_bytes))
    contents = {}
    for number, rows in enumerate(np.array_split(bank, count)):
        index = faiss.IndexFlatL2(bank.shape[1])
        index.add(np.ascontiguousarray(rows))
        name = f"index-{number:05d}-of-{count:05d}.faiss"
        contents[name] = faiss.serialize_index(index).tobytes()
    return contents


def from_shards(contents: dict[str, bytes]) -> Float32[np.ndarray, "bank dim"]:
    """Return the bank that `to_shards` wrote.

    Raises:
        ModelError: if a shard is missing or is no flat index.
    """
    expected = next(iter(contents), "").rpartition("-")[2].removesuffix(".faiss")
    if not expected or len(contents) != int(expected):
        raise ModelError(f"the memory bank has {len(contents)} of its shards: {sorted(contents)}")
    banks = []
    for name in sorted(contents):
        index = faiss.deserialize_index(np.frombuffer(contents[name], np.uint8))
        if not isinstance(index, faiss.IndexFlat):
            raise ModelError(f"{name} is a {type(index).__name__}, not a flat index")
        banks.append(index.reconstruct_n(0, index.ntotal))
    return np.concatenate(banks)
