"""What people ask of a score table: which parts, which nights, which images."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pyarrow as pa

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import drift as _drift
from patchlake.pipeline.driver import parts as _parts
from patchlake.pipeline.driver import picture as _picture
from patchlake.pipeline.driver import review as _review
from patchlake.pipeline.driver import worst as _worst
from patchlake.pipeline.driver.chosen import Choice
from patchlake.pipeline.driver.desk import Reviewed
from patchlake.pipeline.driver.library.asked import Uri, as_uri, settled
from patchlake.pipeline.driver.worst import Worst
from patchlake.pipeline.score_table.ranking import RowOrder

if TYPE_CHECKING:
    from patchlake.pipeline.driver.report import Report


def parts(
    scores: Uri,
    out: Uri | None = None,
    *,
    version: str | None = None,
    settings: Settings | None = None,
) -> pa.Table:
    """Return one verdict for each `part_id` of each group, from all its images (`tables.PARTS`).

    Its p-value is that of its worst image times the number of its images that have one, and at
    most 1: Bonferroni's, which is valid however the images depend on one another, and costs power
    where they see the same. So a part of `m` images is never anomalous where `m / (K + 1)` is above
    the rate, `K` being the parts that its model was calibrated on; what the table tells of that is
    logged. Images without a `part_id` are left out. Memory grows with the parts.

    Args:
        scores: The score table, or a compacted one; without a `part_id` there is nothing to say.
        out: A Parquet file that the same is written to, in one put.
        version: As of `open_scores`.
        settings: Of which `storage` counts, and `verdict.false_alarm_rate` if it is given; else it
            is that of the newest run.

    Raises:
        ConfigError: if there is no such table or version, no `part_id`, no rate, or `out` is no
            name of a Parquet file.
        TableError: if the table has no column `part_id`.

    >>> patchlake.parts("scores")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ConfigError: none of the 44 rows has a part_id
    """
    chosen = settled(settings)
    if out is not None:
        _parts.require_out(as_uri(out), as_uri(scores), chosen)
    found = _parts.run(as_uri(scores), version, chosen)
    if out is not None:
        _parts.write(found, as_uri(out), chosen)
    return found


def drift(
    scores: Uri,
    out: Uri | None = None,
    *,
    night: str | None = None,
    version: str | None = None,
    settings: Settings | None = None,
) -> pa.Table:
    """Return what each group's nights look like, and which of them drift (`tables.DRIFT`).

    A night drifts if its parts are not as those that its model was trained on, in brightness,
    sharpness, their short embedding, or scores. The test needs no law; of the nights that it finds
    in a table 5 % have not changed, in expectation, at the most. No image and no model is read.

    Args:
        scores: The score table, or a compacted one.
        out: A Parquet file that the same is written to, in one put.
        night: The column that tells nights; else `dt`, `date`, `day` or `night`, where there is
            one, or the day of `scored_at`.
        version: As of `open_scores`.
        settings: Of which `storage` counts.

    Raises:
        ConfigError: if there is no such table, version or column, or `out` is no name of a Parquet
            file.
        TableError: if a column is not what we write.

    >>> nights = patchlake.drift("scores")
    >>> nights.select(["group", "images", "unreadable"]).to_pydict()
    {'group': ['brushed_plate', 'woven_cloth'], 'images': [22, 22], 'unreadable': [0, 0]}
    """
    chosen = settled(settings)
    if out is not None:
        _parts.require_out(as_uri(out), as_uri(scores), chosen)
    found = _drift.run(as_uri(scores), version, chosen, night)
    if out is not None:
        _parts.write(found, as_uri(out), chosen, _drift.KEY)
    return found


def picture(path: Uri, *, settings: Settings | None = None) -> bytes:
    """Return one heatmap of a score table as JPEG, of at most 64 MiB.

    Of a packed one (`score.heatmap_store`) only the index and the picture are read, where the table
    is on a disk or in S3.

    Args:
        path: The score table and the `heatmap_path` of a row, with a slash between them.
        settings: Of which `storage` counts.

    Raises:
        ConfigError: if the path is none, nothing is there, or it is not what patchlake writes.
        StorageError: if storage gives no answer.

    >>> rows = patchlake.open_scores("scores").to_table(columns=["heatmap_path"])
    >>> path = rows.column("heatmap_path").drop_null()[0].as_py()
    >>> patchlake.picture(f"scores/{path}")[:3].hex()  # as every JPEG begins
    'ffd8ff'
    """
    return _picture.read(as_uri(path), settled(settings).storage)


def review(
    scores: Uri,
    reviews: Uri,
    *,
    given: Uri | None = None,
    reviewer: str | None = None,
    order: RowOrder = "worst",
    count: int = 100,
    group: str | None = None,
    night: str | None = None,
    again: bool = False,
    port: int = 0,
    ready: Callable[[str], None] | None = None,
    settings: Settings | None = None,
) -> Reviewed:
    r"""Have a person decide on images of a score table, on a page; or take decisions out of a file.

    The page is served to this machine alone, and to who has its link, until the person is done. It
    needs `pip install 'patchlake[review]'`. Each decision is written to the reviews table at once;
    several people may review at the same time. The score table is only read.

    Args:
        scores: The score table, or a compacted one.
        reviews: Folder of the reviews table (`tables.REVIEWS`); it need not exist yet.
        given: A CSV or Parquet file with columns `image_id` and `verdict` (`defective`, `good` or
            `unsure`), and any other of `tables.REVIEWS`: then there is no page. Each decision is
            joined with its row of scores; the same file once more adds nothing.
        reviewer: Who decides: the login name if absent, or the file's name where it says nobody.
        order: Of the page: the most anomalous first, those near the threshold, or a random sample.
        count: How many images the page shows, at the most.
        group: Only of this group.
        night: Only of this night, as of `worst`.
        again: Also images that this reviewer has decided on before.
        port: Of the page; any that is free if 0.
        ready: Is called with the link of the page; it is logged if absent.
        settings: Of which `storage` counts, and `seed` for a random order.

    Raises:
        ConfigError: if a folder has another role, or an image of the file is not among the scores,
            or is not told from others.
        TableError: if a cell of the file means nothing.

    >>> (one,) = patchlake.worst("scores", count=1).images
    >>> with open("decided.csv", "w") as file:
    ...     _ = file.write(f"image_id,group,verdict\n{one.image_id},{one.group},good\n")
    >>> done = patchlake.review("scores", "reviews", given="decided.csv", reviewer="ann")
    >>> done.decisions, done.good
    (1, 1)
    """
    chosen = settled(settings)
    if given is not None:
        return _review.take(as_uri(scores), as_uri(reviews), as_uri(given), reviewer, chosen)
    choice = Choice(order, count, group, night, chosen.seed)
    asked = _review.Asked(choice, reviewer, again, port)
    return _review.run(as_uri(scores), as_uri(reviews), asked, chosen, ready)


def worst(
    scores: Uri,
    out: Uri | None = None,
    *,
    count: int = 20,
    group: str | None = None,
    night: str | None = None,
    version: str | None = None,
    settings: Settings | None = None,
) -> Worst:
    """Return the worst images of a score table, the worst first.

    Anomalous ones come first, by p-value and then by score / threshold, as scores of two groups do
    not compare. Images without a verdict come last: each group's by score, in turns.

    Args:
        scores: The score table, or a compacted one.
        out: A PNG file that a contact sheet is written to: the photo and the heatmap of each.
        count: How many images; on a sheet at most 200.
        group: Only of this group.
        night: Only of this night: a value of the hive key `dt`, `date`, `day` or `night`, or where
            there is none, a day of `scored_at`.
        version: As of `open_scores`.
        settings: Of which `storage` counts.

    Raises:
        ConfigError: if there is no such table, version, group or night, or `out` is no name of a
            PNG file.

    >>> found = patchlake.worst("scores", "worst.png", count=3)
    >>> len(found.images), found.scored, found.images[0].image_score >= found.images[2].image_score
    (3, 44, True)
    """
    chosen = settled(settings)
    if out is not None:
        _worst.require_out(as_uri(out), as_uri(scores), count, chosen)
    found = _worst.run(
        *(as_uri(scores), count), group=group, night=night, version=version, settings=chosen
    )
    if out is not None:
        _worst.write(found, as_uri(scores), as_uri(out), chosen)
    return found


def report(
    scores: Uri,
    out: Uri,
    *,
    version: str | None = None,
    night: str | None = None,
    settings: Settings | None = None,
) -> "Report":
    """Write one page of HTML that says what a score table holds, for people to look at.

    It needs no network and no other file, and is under 10 MB: `docs/report.md` says what is on it.
    Memory grows with the groups and nights, not with the images.

    Args:
        scores: The score table, or a compacted one.
        out: The page, a file or URI that ends with `.html`; what is there is replaced.
        version: As of `open_scores`.
        night: The night that it is of: a value of the hive key `dt`, `date`, `day` or `night`, or
            else a day of `scored_at`. The last one if absent.
        settings: Of which `storage` counts.

    Raises:
        ConfigError: if there is no such table, version or night, or `out` is no name of a page.

    >>> patchlake.report("scores", "scores.html").images
    44
    """
    # Imported here: charts and templates take a second, for which no other verb has a use.
    from patchlake.pipeline.driver import report as reporting

    chosen = settled(settings)
    return reporting.run(as_uri(scores), as_uri(out), version=version, night=night, settings=chosen)
