"""Rows of the score table by group and night: counts, scores, and some images to compare.

Rows come in any order and cut, and the same rows give the same. Of a night's images those are kept
that represent it: of images with a `part_id` one a part, and all others; of parts and images those
with the smallest digest of their name or place, up to 1,024. So memory is 4 bytes a row, and at
most 1 MB a group and night.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.errors import TableError
from patchlake.pipeline.score_table.splitmix import mixed

# What is read of a row, beside its night. The last ones are not in tables of before.
LOOKS = ("brightness", "sharpness", "embedding", "thumbnail")
COLUMNS = (
    *("group", "status", "image_score", "p_value", "is_anomalous", "model_id"),
    *("source_path", "source_row", "part_id", *LOOKS),
)
# Images of a night that are kept.
_KEPT = 1_024
# Of a thumbnail.
_CELLS = 256
# Whole numbers add up the same in any order: 2**-20 of a grey level, 2**34 of them in 62 bits.
_UNIT = 2.0**20
_KEY = ("group", "night", "model_id")


@dataclass(frozen=True, order=True)
class NightKey:
    """What is counted together."""

    group: str
    night: str
    model_id: str


@dataclass
class Night:
    """What is known so far of one group and night."""

    images: int = 0
    # Rows without a score, but for those of a group without a model.
    unreadable: int = 0
    tested: int = 0
    # Of images that have brightness and sharpness: how many, and their sums in `_UNIT`s.
    measured: int = 0
    _sums: list[int] = field(default_factory=lambda: [0, 0])
    _scores: list[np.ndarray] = field(default_factory=list)
    # part_id -> [alarms, other verdicts]; None: of all images without one.
    verdicts: dict[str | None, list[int]] = field(default_factory=dict)
    _kept: list[np.ndarray] = field(default_factory=list)
    # Units from this one on are left out: those below it were too many already.
    _limit: int = 2**64 - 1

    @property
    def brightness(self) -> float | None:
        """Mean over the images that have one."""
        return self._sums[0] / _UNIT / self.measured if self.measured else None

    @property
    def sharpness(self) -> float | None:
        """Mean over the images that have one."""
        return self._sums[1] / _UNIT / self.measured if self.measured else None

    def scores(self) -> np.ndarray:
        """Return all image scores, float32, rising."""
        return np.sort(np.concatenate([np.empty(0, np.float32), *self._scores]))

    def add(self, rows: pa.Table) -> None:
        """Count rows with `COLUMNS` but the key's, of which the last ones may be missing.

        Raises:
            TableError: if embeddings are of different lengths.
        """
        score = _floats(rows, "image_score")
        scored = np.isfinite(score)
        self.images += len(rows)
        self.unreadable += int(_count(pc.not_equal(rows.column("status"), "no_model"), ~scored))
        self.tested += int((scored & np.isfinite(_floats(rows, "p_value"))).sum())
        self._scores.append(score[scored])
        self._count_verdicts(rows)
        looks = np.stack([_floats(rows, name) for name in LOOKS[:2]], axis=1)
        known = np.isfinite(looks).all(axis=1)
        self.measured += int(known.sum())
        for at, total in enumerate(np.rint(looks[known] * _UNIT).astype(np.int64).sum(axis=0)):
            self._sums[at] += int(total)
        self._keep(rows, score, looks)

    def _count_verdicts(self, rows: pa.Table) -> None:
        said = rows.select(["part_id", "is_anomalous"]).filter(
            rows.column("is_anomalous").is_valid()
        )
        counted = said.group_by(["part_id", "is_anomalous"], use_threads=False).aggregate(
            [([], "count_all")]
        )
        for part, is_alarm, count in zip(*(c.to_pylist() for c in counted.columns), strict=True):
            self.verdicts.setdefault(part, [0, 0])[0 if is_alarm else 1] += count

    def _keep(self, rows: pa.Table, score: np.ndarray, looks: np.ndarray) -> None:
        useful = np.isfinite(score) | np.isfinite(looks).all(axis=1)
        if not useful.any():
            return
        found = _images(rows, score, looks)[useful]
        if self._kept and self._kept[0].dtype != found.dtype:
            widths = (some["embedding"].shape[1] for some in (self._kept[0], found))
            raise TableError("embeddings of one group have {} and {} numbers".format(*widths))
        self._kept.append(found[found["unit"] < self._limit])
        if sum(map(len, self._kept)) >= 2 * _KEPT:
            self._thin()

    def _thin(self) -> None:
        """Leave out what is too much: in the end the same, however rows come.

        Units are whole or left out. So many rows of units below one that it would be too many with
        it can only become more.
        """
        images = np.concatenate(self._kept)
        images = images[np.lexsort((images["mark"], images["unit"]))]
        units = images["unit"]
        is_first = np.append(True, units[1:] != units[:-1])
        images = images[is_first | ~images["has_part"]]
        if len(images) > _KEPT:
            self._limit = int(images["unit"][_KEPT])
            images = images[images["unit"] < self._limit]
        self._kept = [images]

    def kept(self) -> np.ndarray | None:
        """Return the images that represent the night, as `image_type`, by their marks."""
        if not self._kept:
            return None
        self._thin()
        (found,) = self._kept
        return found[np.argsort(found["mark"], kind="stable")]


def image_type(width: int) -> np.dtype:
    """Return the type of an image that is kept, with an embedding of so many numbers.

    `unit` is the digest of its part, or its mark, and `mark` the digest of its place. What it does
    not have is NaN; a thumbnail is then black.
    """
    return np.dtype(
        [
            *((name, np.uint64) for name in ("unit", "mark")),
            *((name, np.float32) for name in ("brightness", "sharpness", "score")),
            *((name, bool) for name in ("has_part", "has_thumbnail")),
            ("embedding", np.float32, (width,)),
            ("thumbnail", np.uint8, (_CELLS,)),
        ]
    )


def by_night(tables: Iterable[pa.Table]) -> dict[NightKey, Night]:
    """Return what is known of each group and night, sorted.

    Args:
        tables: Rows with `COLUMNS`, of which the last ones may be missing, and `night`.

    Raises:
        TableError: if embeddings of one night are of different lengths.
    """
    found: dict[NightKey, Night] = {}
    for rows in tables:
        for key, some in _apart(rows):
            found.setdefault(key, Night()).add(some)
    return dict(sorted(found.items()))


def marks_of(paths: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    """Return a number for each place that is as good as random, and the same everywhere."""
    return mixed(_digests(paths) ^ mixed(rows.astype(np.uint64)))


def embeddings_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return embeddings (images, width), NaN where there is none; no width where none has one.

    Raises:
        TableError: if they are of different lengths.
    """
    array = column.combine_chunks()
    lengths = pc.list_value_length(array)
    widths = pc.unique(lengths.drop_null()).to_pylist()
    if len(widths) > 1:
        raise TableError(f"embeddings of one group have {widths[0]} and {widths[1]} numbers")
    width = widths[0] if widths else 0
    found = np.full((len(array), width), np.nan, np.float32)
    if width == 0:
        return found
    # Of null lists nothing is among the values.
    valid = array.drop_null()
    found[array.is_valid().to_numpy(zero_copy_only=False)] = (
        valid.flatten().to_numpy(zero_copy_only=False).reshape(len(valid), width)
    )
    return found


def _apart(rows: pa.Table) -> Iterator[tuple[NightKey, pa.Table]]:
    """Yield the rows of each group and night."""
    if not len(rows):
        return
    # A night may be unknown, and is then its own.
    coded = [rows.column(name).combine_chunks().dictionary_encode() for name in _KEY]
    codes = np.stack([one.indices.to_numpy(zero_copy_only=False) for one in coded], axis=1)
    kinds, kind = np.unique(codes, axis=0, return_inverse=True)
    for number, places in enumerate(kinds.tolist()):
        texts = (one.dictionary[at].as_py() for one, at in zip(coded, places, strict=True))
        yield NightKey(*texts), rows.filter(pa.array(kind.ravel() == number))


def _images(rows: pa.Table, score: np.ndarray, looks: np.ndarray) -> np.ndarray:
    names = rows.column_names
    embeddings = (
        embeddings_of(rows.column("embedding"))
        if "embedding" in names
        else np.empty((len(rows), 0), np.float32)
    )
    found = np.zeros(len(rows), image_type(embeddings.shape[1]))
    parts = rows.column("part_id")
    found["has_part"] = parts.is_valid().to_numpy()
    found["mark"] = marks_of(rows.column("source_path"), rows.column("source_row").to_numpy())
    found["unit"] = np.where(found["has_part"], _digests(pc.fill_null(parts, "")), found["mark"])
    found["brightness"], found["sharpness"], found["score"] = looks[:, 0], looks[:, 1], score
    found["embedding"] = embeddings
    if "thumbnail" in names:
        has = has_thumbnail(rows.column("thumbnail"))
        found["has_thumbnail"] = has
        found["thumbnail"][has] = thumbnails_of(rows.column("thumbnail"), has)
    return found


def has_thumbnail(column: pa.ChunkedArray) -> np.ndarray:
    """Return which images have a thumbnail of ours."""
    is_ours = pc.equal(pc.binary_length(column), _CELLS)
    return np.asarray(pc.fill_null(is_ours, False).to_numpy())  # noqa: FBT003 - Arrow's own


def thumbnails_of(column: pa.ChunkedArray, has: np.ndarray) -> np.ndarray:
    """Return the thumbnails (images, 256) of those that have one."""
    content = b"".join(column.filter(pa.array(has)).to_pylist())
    return np.frombuffer(content, np.uint8).reshape(-1, _CELLS)


def _count(one: pa.ChunkedArray, other: np.ndarray) -> int:
    return int((one.to_numpy() & other).sum())


def _floats(rows: pa.Table, name: str) -> np.ndarray:
    if name not in rows.column_names:
        return np.full(len(rows), np.nan, np.float32)
    values: np.ndarray = rows.column(name).cast(pa.float32()).to_numpy()
    return values


def _digests(texts: pa.ChunkedArray) -> np.ndarray:
    coded = texts.combine_chunks().dictionary_encode()
    digests = np.array([_digest(one) for one in coded.dictionary.to_pylist()], np.uint64)
    found: np.ndarray = digests[coded.indices.to_numpy(zero_copy_only=False)]
    return found


@lru_cache(maxsize=4096)
def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
