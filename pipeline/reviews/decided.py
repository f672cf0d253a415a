"""What the reviews of each image come to.

Of each reviewer the last decision counts, and `unsure` is none: whoever says it abstains. Reviewers
who disagree make an image `disputed`, and so does one who says two things at the same time.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.reviews.table import sorted_rows
from patchlake.pipeline.tables import DECIDED, REVIEWS

_KEYS = ("root", "source_path", "source_row", "group", "image_id")
_SAID = ("reviewer", "reviewed_at", "verdict", "sha256")
# Told by the last review that tells them; the rest of `DECIDED` is what is decided.
_TOLD = tuple(name for name in REVIEWS.names if name in DECIDED.names and name != "verdict")


class _Said(NamedTuple):
    """One review, by its row."""

    row: int
    reviewer: str
    at: datetime
    verdict: str
    sha256: str | None


def decided(reviews: pa.Table) -> pa.Table:
    """Return one row an image, schema `DECIDED`, in the order of what tells images.

    An image is told by root, `source_path` and `source_row` where a review has all three, else by
    `group` and `image_id`. Where reviews of one place are of files with other contents, those of
    the file that was looked at last count. The result does not depend on the order of rows.

    Args:
        reviews: Of schema `REVIEWS`.
    """
    ordered = sorted_rows(reviews)
    by_image: dict[tuple[str, ...], list[_Said]] = defaultdict(list)
    keys = zip(*(ordered.column(name).to_pylist() for name in _KEYS), strict=True)
    said = zip(*(ordered.column(name).to_pylist() for name in _SAID), strict=True)
    for row, (key, words) in enumerate(zip(keys, said, strict=True)):
        by_image[_identity(*key)].append(_Said(row, *words))
    found = [_of_last_content(by_image[key]) for key in sorted(by_image)]
    verdicts = [_verdict(one) for one in found]
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        name: _told(ordered.column(name), found) for name in _TOLD
    }
    columns["verdict"] = pa.array([verdict for verdict, _ in verdicts], pa.string())
    columns["reviewers"] = pa.array([voices for _, voices in verdicts], pa.int64())
    return pa.Table.from_arrays([columns[name] for name in DECIDED.names], schema=DECIDED)


def _identity(
    root: str | None, path: str | None, row: int | None, group: str | None, image_id: str
) -> tuple[str, ...]:
    if root is not None and path is not None and row is not None:
        return ("place", root, path, f"{row:020d}")
    return ("id", "" if group is None else f"={group}", image_id)


def _of_last_content(said: Sequence[_Said]) -> list[_Said]:
    """Return the reviews of the file that was looked at last, and those that name no content."""
    contents = [(one.at, one.sha256) for one in said if one.sha256 is not None]
    if not contents:
        return list(said)
    last = max(contents)[1]
    return [one for one in said if one.sha256 in (None, last)]


def _verdict(said: Iterable[_Said]) -> tuple[str, int]:
    """Return what reviews of one image come to, and how many people have decided."""
    last: dict[str, list[_Said]] = defaultdict(list)
    for one in said:
        before = last[one.reviewer]
        if not before or one.at > before[0].at:
            last[one.reviewer] = [one]
        elif one.at == before[0].at:
            before.append(one)
    voices = [{one.verdict for one in ones} - {"unsure"} for ones in last.values()]
    words = set().union(*voices)
    decisions = sum(map(bool, voices))
    if not words:
        return "unsure", decisions
    return (words.pop() if len(words) == 1 else "disputed"), decisions


def _told(values: pa.ChunkedArray, found: Sequence[Sequence[_Said]]) -> pa.Array:
    """Return what the last review of each image that tells a column says; null if none does."""
    is_told = pc.is_valid(values).to_pylist()
    rows = [max((one.row for one in some if is_told[one.row]), default=None) for some in found]
    return values.combine_chunks().take(pa.array(rows, pa.int64()))
