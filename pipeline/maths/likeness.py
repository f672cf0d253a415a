"""Which photos look alike: shots of one part, where nobody says which they are.

Two photos are linked if their thumbnails, each without its brightness and contrast, differ by less
than a quarter of what two photos of the group typically differ by; what is linked, also by others,
is one part. On magnetic tiles, of which several shots each were taken, 757 photos become 157 parts,
the largest of 94 photos; of hazelnuts, 28 photos of different nuts, none are linked. Photos of
different parts which are taken for one cost certainty: fewer parts promise less. Shots of one part
which are taken for several promise what does not hold: with a tenth in the place of a quarter, DN2
calls 23 of 100 good tiles of other parts anomalous where 5 are promised, and with every photo a
part of its own 36 (docs/benchmarks.md, "Verdicts").

Photos of a night are linked as those that a model was trained on were, up to the same difference: a
night may be of one part.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

_ALIKE = 0.25
# Squared distance up to which thumbnails are the same but for rounding, which is 5e-4; two photos
# that have nothing in common are 512 apart.
_SAME = 1e-2
# Photos by which the typical distance is measured: half a million pairs.
_SAMPLED = 1_000
# Photos compared at once: 16 MB of distances. Beyond so many blocks in the order of the lake,
# photos are not compared, as shots of one part lie near each other.
_BLOCK = 2_048
_BLOCKS_AHEAD = 8


def alike_limit(thumbnails: UInt8[np.ndarray, "images cells"]) -> float:
    """Return up to which squared difference photos of a group are taken for shots of one part."""
    return _limit(_standardised(thumbnails))


def alike_pairs(
    one: UInt8[np.ndarray, "a cells"], other: UInt8[np.ndarray, "b cells"], limit: float
) -> Bool[np.ndarray, "a b"]:
    """Return which photos, of each two, are taken for shots of one part; what links them is not.

    Args:
        one: Thumbnails of some photos.
        other: Of others.
        limit: `alike_limit` of the group.
    """
    return np.asarray(_squared(_standardised(one), _standardised(other)) <= limit)


def look_alikes(
    thumbnails: UInt8[np.ndarray, "images cells"], limit: float | None = None
) -> Int[np.ndarray, " images"]:
    """Return of each photo the number of the first one that is taken for a shot of its part.

    Up to 18,432 photos all are compared with all; of more, each with those at most 16,384 places
    from it in their order. Time is O(n * min(n, 18,432)) times the cells.

    Args:
        thumbnails: Of the photos.
        limit: `alike_limit` of others of the group; if absent, it is that of these.
    """
    count = len(thumbnails)
    if count < 2:  # noqa: PLR2004 - one photo has nothing to be like
        return np.arange(count)
    standard = _standardised(thumbnails)
    limit = _limit(standard) if limit is None else limit
    first = np.arange(count)
    for begin in range(0, count, _BLOCK):
        block = standard[begin : begin + _BLOCK]
        for other in range(begin, min(count, begin + (1 + _BLOCKS_AHEAD) * _BLOCK), _BLOCK):
            one, two = np.nonzero(_squared(block, standard[other : other + _BLOCK]) <= limit)
            first = _joined(first, one + begin, two + other)
    return first


def _limit(standard: Float32[np.ndarray, "images cells"]) -> float:
    return max(_SAME, (_ALIKE**2) * _typical(standard))


def _joined(
    first: Int[np.ndarray, " images"],
    one: Int[np.ndarray, " links"],
    two: Int[np.ndarray, " links"],
) -> Int[np.ndarray, " images"]:
    """Return the parts once the ends of some links are of one part.

    Links are joined block by block, and so never held all: of three views of many parts there would
    be as many as a third of all pairs.
    """
    different = first[one] != first[two]
    if not different.any():
        return first
    count = len(first)
    ends = np.append(np.arange(count), one[different]), np.append(first, two[different])
    linked = coo_matrix((np.ones(len(ends[0]), bool), ends), (count, count))
    _, part = connected_components(linked, directed=False)
    _, least = np.unique(part, return_index=True)
    return np.asarray(least[part])


def _standardised(thumbnails: UInt8[np.ndarray, "images cells"]) -> Float32[np.ndarray, "i c"]:
    grey = thumbnails.astype(np.float32)
    centred = grey - grey.mean(axis=1, keepdims=True)
    # A photo without contrast is like any other such photo.
    return np.asarray(centred / np.maximum(centred.std(axis=1, keepdims=True), 1))


def _typical(standard: Float32[np.ndarray, "images cells"]) -> float:
    """Return the median squared distance between two photos that are not the same."""
    step = -(-len(standard) // _SAMPLED)
    some = standard[::step]
    squared = _squared(some, some)[np.triu_indices(len(some), 1)]
    different = squared[squared > _SAME]
    return float(np.median(different)) if len(different) else 0.0


def _squared(
    one: Float32[np.ndarray, "a cells"], two: Float32[np.ndarray, "b cells"]
) -> Float32[np.ndarray, "a b"]:
    lengths = np.sum(one**2, axis=1)[:, None] + np.sum(two**2, axis=1)[None]
    return np.asarray(np.maximum(0, lengths - 2 * (one @ two.T)))
