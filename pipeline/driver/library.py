"""The verbs as functions: what `import patchlake` gives.

They print nothing and configure no logging; what they log is below the logger "patchlake". They
raise `PatchlakeError` for whatever a user or operator can mend, `StorageError` where storage gives
no answer, and `InputChanged` where a file was replaced under them (`pipeline.errors`).

Every function takes, where it has a use for them:

    settings    as `settings` or `load_settings` return them; those of the defaults if absent
    runner      "local": in this process and its threads; "ray": on this machine's cores, or on the
                cluster at `address`, or that of RAY_ADDRESS; "auto": "ray" where a cluster is named
                or there are more than 5,000 images, else "local"
    observer    is told how far the job is; see `pipeline.driver.observer`

The examples are run in a folder that has `pictures` (44 of two products, 12 of each good ones to
train on), what `ingest` makes of them in `images`, a `model` of `images`, and `scores` of both, by
small settings without a download, which models and scores keep:

    >>> quick = {
    ...     "image": {"resize": (64, 64)},
    ...     "backbone": {"name": "resnet10t.c3_in1k", "weights": "untrained"},
    ...     "method": {"coreset_fraction": 0.1},
    ... }
"""

import os
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import choose as _choose
from patchlake.pipeline.driver import compact as _compact
from patchlake.pipeline.driver import detector as _detector
from patchlake.pipeline.driver import drift as _drift
from patchlake.pipeline.driver import evaluate as _evaluate
from patchlake.pipeline.driver import fit as _fit
from patchlake.pipeline.driver import ingest as _ingest
from patchlake.pipeline.driver import learning as _learning
from patchlake.pipeline.driver import mutual as _mutual
from patchlake.pipeline.driver import parts as _parts
from patchlake.pipeline.driver import picture as _picture
from patchlake.pipeline.driver import review as _review
from patchlake.pipeline.driver import score as _score
from patchlake.pipeline.driver import status as _status
from patchlake.pipeline.driver import update as _update
from patchlake.pipeline.driver import withdraw as _withdraw
from patchlake.pipeline.driver import worst as _worst
from patchlake.pipeline.driver.choose import Comparison
from patchlake.pipeline.driver.chosen import Choice
from patchlake.pipeline.driver.dataset import ScoreDataset, open_table
from patchlake.pipeline.driver.desk import Reviewed
from patchlake.pipeline.driver.detector import Detector
from patchlake.pipeline.driver.evaluate import Metrics
from patchlake.pipeline.driver.execution import Execution, RunnerName
from patchlake.pipeline.driver.ingest import Ingested
from patchlake.pipeline.driver.observer import Observer, Silent
from patchlake.pipeline.driver.settings import effective
from patchlake.pipeline.driver.status import RunStatus
from patchlake.pipeline.driver.worst import Worst
from patchlake.pipeline.model_store.models import Manifest
from patchlake.pipeline.record.runs import Summary
from patchlake.pipeline.score_table.ranking import RowOrder
from patchlake.pipeline.sources.sources import Arrangement, Layout
from patchlake.pipeline.storage.folder import Folder

if TYPE_CHECKING:
    from patchlake.pipeline.driver.report import Report

# A folder or file: a path, or a URI of whatever storage is known.
Uri = str | os.PathLike[str]


def settings(**sections: object) -> Settings:
    """Return settings by section; a name that is unknown is refused with the nearest known one.

    Raises:
        ConfigError: on an unknown name, or a value that is out of its range.

    >>> chosen = patchlake.settings(preset="padim_paper", image={"resize": (64, 64)})
    >>> chosen.image.resize, chosen.method.name
    ((64, 64), 'padim')
    """
    return load_settings(flags=sections)


def ingest(
    source: Uri,
    images: Uri,
    *,
    layout: Layout | None = None,
    group: str | None = None,
    partitions: Sequence[str] = (),
    settings: Settings | None = None,
    runner: RunnerName = "local",
    address: str | None = None,
    observer: Observer | None = None,
) -> Ingested:
    """Pack image files into Parquet; a second ingest brings what is new or has changed.

    Args:
        source: A folder, or a CSV or Parquet file of URIs.
        images: Folder of the images table.
        layout: mvtec: folders say split and label; folder: images without labels; csv: a manifest.
            Told by the names if absent.
        group: Product or station of all images, where neither folder nor column says it.
        partitions: Hive keys of the files that are written, from columns of these names in a
            manifest or folders `KEY=VALUE`; `dt` also from `captured_at`.
        settings: See above.
        runner: See above.
        address: See above.
        observer: See above.

    Raises:
        ConfigError: if a folder has another role, or `source` has no image.

    >>> patchlake.ingest("pictures", "lake").images
    44
    >>> patchlake.ingest("pictures", "lake").images  # nothing is new
    0
    """
    execution = _execution(runner, address, observer)
    arrangement = Arrangement(layout, group, tuple(partitions))
    return _ingest.run(_uri(source), _uri(images), arrangement, _effective(settings), execution)


def fit(
    images: Uri,
    model: Uri,
    *,
    where: str | None = None,
    overwrite: bool = False,
    settings: Settings | None = None,
    runner: RunnerName = "local",
    address: str | None = None,
    observer: Observer | None = None,
) -> Manifest:
    """Fit one model per group on its known-good images; return what was published.

    Args:
        images: The images table.
        model: Folder of the model.
        where: Which rows count: "dt >= '2026-11-20' AND line = 'L1'".
        overwrite: Replace a different model.
        settings: See above.
        runner: See above.
        address: See above.
        observer: See above.

    Raises:
        ConfigError: if a setting is wrong, or a label has no meaning.
        FragmentsFailed: if a group is not published; the others are, and are its `result`.

    >>> manifest = patchlake.fit("images", "fitted", settings=patchlake.settings(**quick))
    >>> {group: record.images for group, record in manifest.groups.items()}
    {'brushed_plate': 12, 'woven_cloth': 12}
    """
    execution = _execution(runner, address, observer)
    return _fit.run(
        *(_uri(images), _uri(model), _effective(settings), execution),
        where=where,
        overwrite=overwrite,
    )


def choose(
    images: Uri,
    *,
    where: str | None = None,
    repeat: int = 2,
    settings: Settings | None = None,
    runner: RunnerName = "local",
    address: str | None = None,
    observer: Observer | None = None,
) -> Comparison:
    """Compare sizes of the model's input by synthetic defects on good photos, and recommend one.

    Up to 120 good photos of each group are read. Most of them are trained on, those of some parts
    are held out, and each candidate (`driver.choose.CANDIDATES`) scores these as they are and with
    defects drawn on them (`images.flaws`). It takes two fits and scores of that many photos for
    each candidate, the dearest with 16 times the pixels of the first. Whether real defects are
    found as synthetic ones are, nobody can say beforehand.

    Args:
        images: The images table; only good rows to train on are read.
        where: Which rows count.
        repeat: How often held-out parts and defects are drawn, from `settings.seed` on.
        settings: See above; of `image` the candidates have their own.
        runner: See above.
        address: See above.
        observer: See above.

    Raises:
        ConfigError: if photos are too few or of one part, or settings name regions of interest.

    >>> found = patchlake.choose("images", settings=chosen)  # doctest: +SKIP
    >>> found.recommended.name  # doctest: +SKIP
    'square'
    """
    asked = _effective(settings)
    return _choose.run(
        *(_uri(images), asked, _execution(runner, address, observer)),
        where=where,
        seeds=range(asked.seed, asked.seed + repeat),
    )


def update(
    images: Uri,
    model: Uri,
    *,
    where: str | None = None,
    reviews: Uri | None = None,
    settings: Settings | None = None,
    runner: RunnerName = "local",
    address: str | None = None,
    observer: Observer | None = None,
) -> Manifest:
    """Add the good images that a model does not know; it is not fitted again.

    With `reviews` only images join that people decided to be good though they were called
    anomalous, and images of the model that proved defective leave it (docs/reviews.md).

    Args:
        images: The images table.
        model: Folder of the model.
        where: Which rows count, as in `fit`.
        reviews: A reviews table, or a CSV or Parquet file with columns `image_id` and `verdict`.
        settings: See above.
        runner: See above.
        address: See above.
        observer: See above.

    Raises:
        ConfigError: if the method cannot, or the settings contradict the model.
        TableError: if reviews cannot be read.
        FragmentsFailed: if a group keeps its earlier model; what was published is its `result`.

    >>> manifest = patchlake.update("images", "model")  # it knows all of them
    >>> [step.verb for step in manifest.lineage]
    ['fit']
    """
    execution, chosen = _execution(runner, address, observer), _effective(settings)
    if reviews is not None:
        named = (_uri(images), _uri(model), _uri(reviews))
        return _learning.run(*named, chosen, execution, where=where)
    return _update.run(_uri(images), _uri(model), chosen, execution, where=where)


def withdraw(
    model: Uri,
    image_ids: Iterable[str],
    *,
    group: str | None = None,
    images: Uri | None = None,
    settings: Settings | None = None,
    runner: RunnerName = "local",
    address: str | None = None,
    observer: Observer | None = None,
) -> Manifest:
    """Take images out of a model, without fitting it again; return what was published.

    Args:
        model: Folder of the model.
        image_ids: The images.
        group: Theirs, where more than one group has such an image.
        images: The images table, if it has moved. Only PaDiM and Mahalanobis AD read it.
        settings: See above.
        runner: See above.
        address: See above.
        observer: See above.

    Raises:
        ConfigError: if an image was never in the model, or what it was computed from has changed.
        FragmentsFailed: if a group keeps its earlier model; what was published is its `result`.

    >>> manifest = patchlake.withdraw("model", ["woven_cloth/train/good/003.png"])
    >>> {group: record.images for group, record in manifest.groups.items()}
    {'brushed_plate': 12, 'woven_cloth': 11}
    """
    leaving = _withdraw.Withdrawal(
        tuple(image_ids), group, None if images is None else _uri(images)
    )
    execution = _execution(runner, address, observer)
    return _withdraw.run(_uri(model), leaving, _effective(settings), execution)


def score(
    images: Uri,
    model: Uri | Sequence[Uri],
    scores: Uri,
    *,
    where: str | None = None,
    since: datetime | None = None,
    expire: str | None = None,
    restore: str | None = None,
    settings: Settings | None = None,
    runner: RunnerName = "local",
    address: str | None = None,
    observer: Observer | None = None,
) -> Summary:
    """Score every image once; what is committed already is skipped.

    Args:
        images: The images table.
        model: One model, or several: then the scores are those of the ensemble.
        scores: Folder of the score table.
        where: Which fragments are scored: "dt >= '2026-11-20' AND line = 'L1'".
        since: Files that were written earlier are not looked at.
        expire: Parts that are removed in the end: older than an age ("90d"), or those that match.
            Nobody is asked.
        restore: "all", or a condition: expired parts that may be scored again.
        settings: See above.
        runner: See above.
        address: See above.
        observer: See above.

    Raises:
        ConfigError, ModelError: if a setting, the model or the weights are wrong.
        FragmentsFailed: if a fragment failed, or more rows than `max_failed` are errors; the
            summary is its `result`.

    >>> summary = patchlake.score("images", "model", "table", where="g = 'woven_cloth'")
    >>> summary.images, summary.statuses
    (22, {'ok': 22})
    """
    named = [_uri(one) for one in ([model] if isinstance(model, str | os.PathLike) else model)]
    return _score.run(
        *(_uri(images), named, _uri(scores), _effective(settings)),
        _execution(runner, address, observer),
        where=where,
        since=since,
        expire=expire,
        restore=restore,
    )


def mutual(
    images: Uri,
    model: Uri,
    scores: Uri,
    *,
    where: str | None = None,
    settings: Settings | None = None,
    runner: RunnerName = "local",
    address: str | None = None,
    observer: Observer | None = None,
) -> Summary:
    """Compare images with one another, and score each: no label is read, and nothing is fitted.

    It takes five images of a group at least, most of them good (docs/methods.md).

    Args:
        images: The images table.
        model: Folder of the images that are compared with: made of these images; where it is there,
            of an earlier night, they join.
        scores: Folder of the score table.
        where: Which rows join and are scored: "dt = '2026-11-20'".
        settings: See above; the method is "musc".
        runner: See above.
        address: See above.
        observer: See above.

    Raises:
        ConfigError: if the model is of another method, or no group has five images.
        FragmentsFailed: as of `score`: rows of a group with too few images are errors.

    >>> without = {name: quick[name] for name in ("image", "backbone")}
    >>> summary = patchlake.mutual(
    ...     "images", "night", "mutual", settings=patchlake.settings(**without)
    ... )
    >>> summary.images, summary.statuses
    (44, {'ok': 44})
    """
    return _mutual.run(
        *(_uri(images), _uri(model), _uri(scores), _effective(settings)),
        _execution(runner, address, observer),
        where=where,
    )


def evaluate(
    images: Uri,
    scores: Uri,
    *,
    where: str | None = None,
    reviews: Uri | None = None,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> dict[str, Metrics]:
    """Return the metrics of each group over labelled images that are not for training.

    With `reviews`, what people decided on an image stands in the place of its label
    (docs/reviews.md).

    They are image AUROC, pixel AUROC, AUPRO and AUPIMO, which need no threshold, and at the
    threshold that the score table carries recall, false alarms, precision and F1 of the verdicts,
    with intervals of 95 %, and F1 of the pixels. `Metrics` lists all of them.

    Raises:
        ConfigError: if there is nothing to compare, or a split or label has no meaning.

    >>> metrics = patchlake.evaluate("images", "scores")
    >>> sorted(metrics), 0 <= metrics["woven_cloth"]["image_auroc"] <= 1
    (['brushed_plate', 'woven_cloth'], True)
    """
    given = None if reviews is None else _uri(reviews)
    chosen = _effective(settings)
    return _evaluate.run(_uri(images), _uri(scores), where, chosen, observer, reviews=given)


def status(
    folder: Uri, *, reviews: Uri | None = None, settings: Settings | None = None
) -> list[RunStatus]:
    """Return every run of a score table or a model, the newest last.

    With `reviews`, the last step of a model says what it has not learnt of them, by group.

    Raises:
        ConfigError: if there is none.

    >>> [(run.verb, run.state, run.images_done) for run in patchlake.status("scores")]
    [('score', 'finished', 44)]
    """
    storage = _effective(settings).storage
    target = Folder.at(_uri(folder), storage)
    states = _status.with_changed(target, _status.read(_uri(folder), storage))
    return states if reviews is None else _status.with_reviews(target, states, _uri(reviews))


def compact(
    scores: Uri,
    dest: Uri,
    *,
    file_bytes: int = _compact.FILE_BYTES,
    settings: Settings | None = None,
    observer: Observer | None = None,
) -> list[str]:
    """Write the rows of a score table into fewer, larger, sorted files; return those written now.

    Args:
        scores: The score table, which is only read.
        dest: Folder of the compacted one.
        file_bytes: Of one of its files, which is held in memory.
        settings: See above.
        observer: See above.

    Raises:
        ConfigError: if `scores` has no part, or `dest` is of another score table.

    >>> len(patchlake.compact("scores", "compacted"))  # one file a partition
    2
    """
    storage = _effective(settings).storage
    return _compact.run(_uri(scores), _uri(dest), file_bytes, storage, observer)


def open_scores(
    scores: Uri, *, version: str | None = None, settings: Settings | None = None
) -> ScoreDataset:
    """Return a score table, or a compacted one, as an Arrow dataset: rows are read when asked for.

    `.to_table(columns=..., filter=...).to_pandas()` is a pandas frame. Beside the columns of the
    table (`docs/tables.md`) there are those of the hive keys of its paths, as text.
    `.discoveries(q=0.1)` are the rows that are anomalous with a false discovery rate of `q`
    (`pipeline.driver.dataset`).

    Args:
        scores: Its folder.
        version: Of the rows, as in `version=<it>` of the paths; the newest run's if absent.
        settings: Of which `storage` counts.

    Raises:
        ConfigError: if there is no such table or version.

    >>> import pyarrow.compute as pc
    >>> dataset = patchlake.open_scores("scores")
    >>> cloth = pc.field("group") == "woven_cloth"
    >>> rows = dataset.to_table(columns=["image_id", "image_score"], filter=cloth)
    >>> rows.num_rows, list(rows.to_pandas().columns)
    (22, ['image_id', 'image_score'])
    """
    return open_table(Folder.at(_uri(scores), _effective(settings).storage), version)


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
    chosen = _effective(settings)
    if out is not None:
        _parts.require_out(_uri(out), _uri(scores), chosen)
    found = _parts.run(_uri(scores), version, chosen)
    if out is not None:
        _parts.write(found, _uri(out), chosen)
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
    chosen = _effective(settings)
    if out is not None:
        _parts.require_out(_uri(out), _uri(scores), chosen)
    found = _drift.run(_uri(scores), version, chosen, night)
    if out is not None:
        _parts.write(found, _uri(out), chosen, _drift.KEY)
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
    return _picture.read(_uri(path), _effective(settings).storage)


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
    chosen = _effective(settings)
    if given is not None:
        return _review.take(_uri(scores), _uri(reviews), _uri(given), reviewer, chosen)
    choice = Choice(order, count, group, night, chosen.seed)
    asked = _review.Asked(choice, reviewer, again, port)
    return _review.run(_uri(scores), _uri(reviews), asked, chosen, ready)


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
    chosen = _effective(settings)
    if out is not None:
        _worst.require_out(_uri(out), _uri(scores), count, chosen)
    found = _worst.run(
        *(_uri(scores), count), group=group, night=night, version=version, settings=chosen
    )
    if out is not None:
        _worst.write(found, _uri(scores), _uri(out), chosen)
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

    chosen = _effective(settings)
    return reporting.run(_uri(scores), _uri(out), version=version, night=night, settings=chosen)


def load(
    model: Uri | Sequence[Uri],
    *,
    weights: Uri | None = None,
    threads: int | None = None,
    settings: Settings | None = None,
) -> Detector:
    """Return a fitted model, or an ensemble, that scores images in memory, without Ray.

    Args:
        model: Folder of the model; or several.
        weights: safetensors file of the network, if it has moved since the fit.
        threads: Of the network and the search; without, all cores.
        settings: Of which `image` limits, `verdict`, `storage` and memory count.

    Raises:
        ConfigError, ModelError: if there is no model, it is damaged, or the weights are others.

    >>> detector = patchlake.load("model")
    >>> good, hole = detector.score(
    ...     ["pictures/woven_cloth/test/good/000.png", "pictures/woven_cloth/test/hole/000.png"],
    ...     group="woven_cloth",
    ... )
    >>> good.image_score < hole.image_score, hole.anomaly_map.shape, hole.heatmap().width
    (True, (8, 8), 256)
    """
    chosen = settings or Settings()
    if weights is not None:
        backbone = chosen.backbone.model_copy(update={"weights": _uri(weights)})
        chosen = chosen.model_copy(update={"backbone": backbone})
    named = [_uri(one) for one in ([model] if isinstance(model, str | os.PathLike) else model)]
    return _detector.load(named, effective(chosen), threads)


def _uri(named: Uri) -> str:
    return os.fspath(named)


def _effective(settings: Settings | None) -> Settings:
    return effective(settings or Settings())


def _execution(runner: RunnerName, address: str | None, observer: Observer | None) -> Execution:
    return Execution(runner, address, observer or Silent())
