"""Score tables: what writes them, and what they come to."""

from collections.abc import Sequence
from datetime import datetime

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import compact as _compact
from patchlake.pipeline.driver import evaluate as _evaluate
from patchlake.pipeline.driver import mutual as _mutual
from patchlake.pipeline.driver import score as _score
from patchlake.pipeline.driver import status as _status
from patchlake.pipeline.driver.dataset import ScoreDataset, open_table
from patchlake.pipeline.driver.evaluate import Metrics
from patchlake.pipeline.driver.execution import RunnerName
from patchlake.pipeline.driver.library.asked import Uri, as_uri, as_uris, execution_of, settled
from patchlake.pipeline.driver.observer import Observer
from patchlake.pipeline.driver.status import RunStatus
from patchlake.pipeline.record.runs import Summary
from patchlake.pipeline.storage.folder import Folder


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
    named = as_uris(model)
    return _score.run(
        *(as_uri(images), named, as_uri(scores), settled(settings)),
        execution_of(runner, address, observer),
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
        ConfigError: if the model is of another method.
        FragmentsFailed: as of `score`: rows of a group with too few images are errors. Where no
            group has five images nothing is scored, and there is no `result`.

    >>> without = {name: quick[name] for name in ("image", "backbone")}
    >>> summary = patchlake.mutual(
    ...     "images", "night", "mutual", settings=patchlake.settings(**without)
    ... )
    >>> summary.images, summary.statuses
    (44, {'ok': 44})
    """
    return _mutual.run(
        *(as_uri(images), as_uri(model), as_uri(scores), settled(settings)),
        execution_of(runner, address, observer),
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
    given = None if reviews is None else as_uri(reviews)
    chosen = settled(settings)
    return _evaluate.run(as_uri(images), as_uri(scores), where, chosen, observer, reviews=given)


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
    storage = settled(settings).storage
    target = Folder.at(as_uri(folder), storage)
    states = _status.with_changed(target, _status.read(as_uri(folder), storage))
    return states if reviews is None else _status.with_reviews(target, states, as_uri(reviews))


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
    storage = settled(settings).storage
    return _compact.run(as_uri(scores), as_uri(dest), file_bytes, storage, observer)


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
    return open_table(Folder.at(as_uri(scores), settled(settings).storage), version)
