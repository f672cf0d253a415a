"""reviewed: which rows of a lake reviews are of, and whether their images are still those.

A review that names its place (root, file, row) is of the row there; one that does not is of the row
with its group and `image_id`, if there is one only. Where a review names the content that was
looked at, a row with another one is another image.
"""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.lake.trained import checksums
from patchlake.pipeline.reading.fragments import Fragment, Fragments
from patchlake.pipeline.reviews.decided import decided
from patchlake.pipeline.shown import counted
from patchlake.pipeline.tables import DECIDED, REVIEWS

log = logging.getLogger(__name__)

# Fragments whose images are held at the same time, where only their content can tell.
_IMAGES_AT_ONCE = 4
_PLACE = ("root", "source_path", "source_row")

ABSENT = "of no row of these images"
AMBIGUOUS = "whose image_id several rows have"
CHANGED = "whose file has changed since"
ELSEWHERE = "of another images table"

Decision = Mapping[str, object]


@dataclass(frozen=True)
class ReviewedRows:
    """What reviews say of the rows of a lake."""

    # One row an image, schema `DECIDED`, with the places that were found for it.
    decided: pa.Table
    # Path -> row in that file -> what was decided of the image that is there now.
    rows: Mapping[str, Mapping[int, Decision]]
    # Images of which nothing is known here, by why.
    left_out: Mapping[str, int]

    def verdicts(self, path: str) -> dict[int, str]:
        """Return what was decided of the rows of a file."""
        return {row: str(one["verdict"]) for row, one in self.rows.get(path, {}).items()}

    def say_left_out(self) -> None:
        """Log of how many images nothing is known here, and why."""
        for why, count in sorted(self.left_out.items()):
            log.warning("left out are %s %s", counted(count, "reviewed images"), why)


def reviewed(source: Source, fragments: Fragments, reviews: pa.Table) -> ReviewedRows:
    """Return what reviews say of the rows of a lake.

    Reads the names of the files that reviews name, or of all where one names no place; and images
    of which reviews tell the content and the lake does not.

    Args:
        source: The lake; rows that its `where` leaves out are not there.
        fragments: Its fragments.
        reviews: Of schema `REVIEWS`.
    """
    is_placed = pc.is_valid(reviews.column("root"))
    for name in _PLACE[1:]:
        is_placed = pc.and_(is_placed, pc.is_valid(reviews.column(name)))
    ids = frozenset(reviews.filter(pc.invert(is_placed)).column("image_id").to_pylist())
    here = reviews.filter(pc.and_(is_placed, pc.equal(reviews.column("root"), source.images.root)))
    paths = frozenset(here.column("source_path").to_pylist())
    if not ids:
        named = pa.array(sorted(paths), pa.string())
        fragments = fragments.only(pc.is_in(fragments.table.column("path"), value_set=named))
    places = frozenset(zip(*(here.column(name).to_pylist() for name in _PLACE[1:]), strict=True))
    found = _Found.of(source, fragments, places, ids)
    located, ambiguous = _located(reviews, source.images.root, found)
    summed = decided(located)
    rows, left_out = _rows(source, found, summed)
    left_out[AMBIGUOUS] += len(ambiguous)
    left_out[ABSENT] -= len(ambiguous)
    return ReviewedRows(summed, rows, +left_out)


@dataclass(frozen=True)
class _Row:
    fragment: Fragment
    number: int
    image_id: str


@dataclass(frozen=True)
class _Found:
    """Rows of a lake that reviews may be of."""

    by_place: Mapping[tuple[str, int], _Row]
    by_id: Mapping[str, Sequence[_Row]]

    @classmethod
    def of(
        cls,
        source: Source,
        fragments: Fragments,
        places: frozenset[tuple[str, int]],
        ids: frozenset[str],
    ) -> "_Found":
        by_place: dict[tuple[str, int], _Row] = {}
        by_id: dict[str, list[_Row]] = defaultdict(list)
        for fragment, named in zip(fragments, source.each_names(fragments), strict=True):
            columns = (named.column(name).to_pylist() for name in ("source_row", "image_id"))
            for number, image_id in zip(*columns, strict=True):
                is_asked = image_id in ids
                if is_asked or (fragment.path, number) in places:
                    row = _Row(fragment, number, image_id)
                    by_place[fragment.path, number] = row
                    if is_asked:
                        by_id[image_id].append(row)
        return cls(by_place, by_id)

    def called(self, group: str | None, image_id: str) -> list[_Row]:
        """Return the rows with a group, if one is said, and an image_id."""
        rows = self.by_id.get(image_id, ())
        return [row for row in rows if group in (None, row.fragment.group)]


def _located(
    reviews: pa.Table, root: str, found: _Found
) -> tuple[pa.Table, set[tuple[str | None, str]]]:
    """Return the reviews with the places that their ids tell; and the ids that tell several."""
    columns = {name: reviews.column(name).to_pylist() for name in (*_PLACE, "group", "image_id")}
    ambiguous = set()
    for at, place in enumerate(zip(*(columns[name] for name in _PLACE), strict=True)):
        if None not in place:
            continue
        called = (columns["group"][at], columns["image_id"][at])
        rows = found.called(*called)
        if len(rows) == 1:
            (row,) = rows
            columns["root"][at], columns["source_path"][at] = root, row.fragment.path
            columns["source_row"][at] = row.number
            columns["group"][at] = row.fragment.group
        elif rows:
            ambiguous.add(called)
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else reviews.column(field.name)
        for field in REVIEWS
    ]
    return pa.Table.from_arrays(arrays, schema=REVIEWS), ambiguous


def _rows(
    source: Source, found: _Found, summed: pa.Table
) -> tuple[dict[str, dict[int, Decision]], Counter[str]]:
    """Return what was decided of each row whose image is the one that was looked at."""
    left_out: Counter[str] = Counter()
    by_fragment: dict[Fragment, list[tuple[_Row, Decision]]] = defaultdict(list)
    for one in summed.select(_KEPT).to_pylist():
        is_placed = all(one[name] is not None for name in _PLACE)
        row = found.by_place.get((one["source_path"], one["source_row"])) if is_placed else None
        if is_placed and one["root"] != source.images.root:
            left_out[ELSEWHERE] += 1
        elif row is None:
            left_out[ABSENT] += 1
        elif row.image_id != one["image_id"]:
            left_out[CHANGED] += 1
        else:
            by_fragment[row.fragment].append((row, one))
    rows: dict[str, dict[int, Decision]] = defaultdict(dict)
    with ThreadPoolExecutor(_IMAGES_AT_ONCE) as pool:
        same = pool.map(lambda item: _same(source, *item), by_fragment.items())
        for some, are_same in zip(by_fragment.values(), same, strict=True):
            for (row, one), is_same in zip(some, are_same, strict=True):
                if is_same:
                    rows[row.fragment.path][row.number] = one
                else:
                    left_out[CHANGED] += 1
    return dict(rows), left_out


_KEPT = tuple(name for name in DECIDED.names if name != "regions")


def _same(source: Source, fragment: Fragment, some: Iterable[tuple[_Row, Decision]]) -> list[bool]:
    """Return whether rows of a fragment have the contents that were looked at, as far as known."""
    rows = list(some)
    kept = checksums(source, fragment, [row.number for row, _ in rows])
    known = [
        one["sha256"] is None or one["sha256"] == sha256
        for (_, one), sha256 in zip(rows, kept, strict=True)
    ]
    unsure = [row.number for (row, _), is_known in zip(rows, known, strict=True) if not is_known]
    if not unsure:
        return known
    # A lake keeps no checksum, or a column of that name is of something else.
    contents = _contents(source, fragment, unsure)
    return [
        is_known or contents[row.number] == one["sha256"]
        for (row, one), is_known in zip(rows, known, strict=True)
    ]


def _contents(source: Source, fragment: Fragment, numbers: Sequence[int]) -> dict[int, str | None]:
    """Return the SHA-256 of the images in some rows; None of one that cannot be had."""
    rows = source.read(fragment)
    asked = pa.array(numbers, pa.int64())
    rows = rows.filter(pc.is_in(rows.column("source_row"), value_set=asked))
    found: dict[int, str | None] = {}
    for batch in rows.select(["source_row", "image", "uri"]).to_batches(max_chunksize=1):
        for row in batch.to_pylist():
            try:
                content = source.read_image(row)
                found[row["source_row"]] = hashlib.sha256(content).hexdigest()
            except ImageError:
                found[row["source_row"]] = None
    return found
