"""Check that bytes are an index file as `to_shards` writes it, before faiss reads them.

faiss allocates as much memory as a file's header says, and follows the links of a graph without
checking where they lead. So the whole file is checked here: every count against the bytes that are
there, every link and id against the rows. Only the three kinds that we write are accepted: "IxF2"
(rows), "IHNf" (rows and a graph) and "IwFl" (rows by centroid), in the layout of faiss 1.7 to 1.15
(`index_write.cpp`).
"""

from dataclasses import dataclass

import numpy as np

_L2 = 1
_MOST_VISITED = 2**20


@dataclass
class _Cursor:
    """Reads little-endian values one after the other, and never beyond the end."""

    content: memoryview
    at: int = 0

    def take(self, size: int) -> memoryview:
        """Return the next bytes."""
        if not 0 <= size <= len(self.content) - self.at:
            left = len(self.content) - self.at
            raise ValueError(f"{size} bytes are announced at byte {self.at}, {left} are left")
        self.at += size
        return self.content[self.at - size : self.at]

    def numbers(self, dtype: str, count: int) -> np.ndarray:
        """Return the next values as an array, without a copy."""
        kind = np.dtype(dtype)
        return np.frombuffer(self.take(count * kind.itemsize), kind)

    def number(self, dtype: str) -> int:
        """Return the next value."""
        return int(self.numbers(dtype, 1)[0])

    def vector(self, dtype: str) -> np.ndarray:
        """Return an array before which the file has its length."""
        return self.numbers(dtype, self.number("<u8"))

    def expect(self, *names: bytes) -> bytes:
        """Return the next four letters, which name what follows; they must be one of `names`."""
        found = bytes(self.take(4))
        if found not in names:
            raise ValueError(f"{found!r} is none of {[name.decode() for name in names]}")
        return found

    def end(self) -> None:
        """Require that nothing is left."""
        if self.at != len(self.content):
            raise ValueError(f"{len(self.content) - self.at} bytes follow its end")


def require_index(content: bytes, kind: str) -> tuple[int, int]:
    """Return the numbers of rows and dimensions of an index file, after checking all of it.

    Takes time linear in its size, and copies nothing.

    Args:
        content: The file.
        kind: "flat", "hnsw" or "ivf".

    Raises:
        ValueError: if it is not an index of that kind that could be searched safely.
    """
    cursor = _Cursor(memoryview(content))
    rows, dim = {"flat": _flat, "hnsw": _hnsw, "ivf": _ivf}[kind](cursor)
    cursor.end()
    return rows, dim


def _header(cursor: _Cursor, fewest: int = 1) -> tuple[int, int]:
    dim, rows = cursor.number("<i4"), cursor.number("<i8")
    cursor.take(16)
    is_trained, metric = cursor.number("<u1"), cursor.number("<i4")
    _require(dim >= 1 and rows >= fewest, f"it has {rows} rows of {dim} dimensions")
    _require(
        is_trained == 1 and metric == _L2,
        f"it is not a trained L2 index (trained {is_trained}, metric {metric})",
    )
    return rows, dim


def _flat(cursor: _Cursor) -> tuple[int, int]:
    cursor.expect(b"IxF2")
    rows, dim = _header(cursor)
    values = cursor.vector("<f4")
    _require(
        len(values) == rows * dim, f"it has {len(values)} values, which are not {rows} rows x {dim}"
    )
    _require(bool(np.isfinite(values).all()), "a row is not finite")
    return rows, dim


def _hnsw(cursor: _Cursor) -> tuple[int, int]:
    cursor.expect(b"IHNf")
    rows, dim = _header(cursor)
    cursor.vector("<f8")
    cumulated, levels = cursor.vector("<i4"), cursor.vector("<i4")
    offsets, links = cursor.vector("<u8"), cursor.vector("<i4")
    entry, highest, _construction, search, _beam = (cursor.number("<i4") for _ in range(5))
    _require(len(cumulated) > 0 and bool(cumulated[0] == 0), "its graph has no levels")
    _require(
        bool((np.diff(cumulated.astype(np.int64)) >= 0).all()),
        "the levels of its graph are not in order",
    )
    _require(len(levels) == rows, f"it gives levels for {len(levels)} of {rows} rows")
    _require(
        bool(((levels >= 1) & (levels < len(cumulated))).all()),
        "it gives a row a level that its graph does not have",
    )
    expected = np.concatenate([[0], np.cumsum(cumulated[levels].astype(np.int64))])
    _require(
        np.array_equal(offsets, expected.astype(np.uint64)),
        "its offsets do not follow from the levels of its rows",
    )
    _require(len(links) == int(expected[-1]), f"it has {len(links)} links, not {expected[-1]}")
    _require(bool(((links >= -1) & (links < rows)).all()), "a link leads to no row")
    _require(
        0 <= entry < rows and bool(levels[entry] == highest + 1),
        "its search would not begin at a row of the highest level",
    )
    _require(bool((levels <= highest + 1).all()), "a row has a higher level than its highest")
    # faiss allocates a heap of that size for each query.
    _require(0 < search <= max(rows, _MOST_VISITED), f"its search visits {search} of {rows} rows")
    _require_levels(levels, offsets[:-1], cumulated, links)
    _require(_flat(cursor) == (rows, dim), "its rows are not those of the graph")
    return rows, dim


def _require_levels(
    levels: np.ndarray, offsets: np.ndarray, cumulated: np.ndarray, links: np.ndarray
) -> None:
    """Require that links of a level lead to rows that have it: faiss reads their links there."""
    for level in range(1, int(levels.max())):
        first, last = int(cumulated[level]), int(cumulated[level + 1])
        begins = offsets[levels > level].astype(np.int64)
        led = links[(begins[:, None] + np.arange(first, last)[None, :]).ravel()]
        _require(
            bool((levels[led[led >= 0]] > level).all()),
            "a link leads to a row that does not have the link's level",
        )


def _ivf(cursor: _Cursor) -> tuple[int, int]:
    cursor.expect(b"IwFl")
    rows, dim = _header(cursor)
    lists, probed = cursor.number("<u8"), cursor.number("<u8")
    _require(1 <= probed <= lists, f"{probed} of {lists} lists are probed")
    _require(_flat(cursor) == (lists, dim), "it has not as many centroids as lists")
    map_type, mapped = cursor.number("<u1"), cursor.vector("<i8")
    _require(map_type == 0 and len(mapped) == 0, "it has a map of ids")
    cursor.expect(b"ilar")
    sizes = _list_sizes(cursor, lists, 4 * dim)
    _require(int(sizes.sum()) == rows, f"its lists hold {sizes.sum()} of {rows} rows")
    ids = []
    for size in sizes:
        values = cursor.numbers("<f4", int(size) * dim)
        _require(bool(np.isfinite(values).all()), "a row is not finite")
        ids.append(cursor.numbers("<i8", int(size)))
    order = np.sort(np.concatenate(ids))
    _require(np.array_equal(order, np.arange(rows)), "its ids are not those of its rows")
    return rows, dim


def _list_sizes(cursor: _Cursor, lists: int, row_bytes: int) -> np.ndarray:
    found, code_bytes = cursor.number("<u8"), cursor.number("<u8")
    _require(
        (found, code_bytes) == (lists, row_bytes),
        f"it has {found} lists with rows of {code_bytes} bytes, not {lists} with {row_bytes}",
    )
    if cursor.expect(b"full", b"sprs") == b"full":
        sizes = cursor.vector("<u8")
        _require(len(sizes) == lists, f"it gives the sizes of {len(sizes)} of {lists} lists")
    else:
        pairs = cursor.vector("<u8")
        _require(len(pairs) % 2 == 0, "it gives the size of a list without its number")
        numbers, some = pairs[::2], pairs[1::2]
        _require(bool((numbers < lists).all()), "it gives the size of a list that it does not have")
        sizes = np.zeros(lists, np.uint64)
        sizes[numbers.astype(np.int64)] = some
    # Checked before the sizes are added up, so that no sum can exceed 2**64.
    _require(bool((sizes <= len(cursor.content)).all()), "a list is longer than the file")
    return sizes


def _require(holds: bool, fault: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not holds:
        raise ValueError(fault)
