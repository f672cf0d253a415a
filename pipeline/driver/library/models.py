"""Images tables and models: what makes and changes them, and a model in memory."""

from collections.abc import Iterable, Sequence

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import choose as _choose
from patchlake.pipeline.driver import detector as _detector
from patchlake.pipeline.driver import fit as _fit
from patchlake.pipeline.driver import ingest as _ingest
from patchlake.pipeline.driver import learning as _learning
from patchlake.pipeline.driver import update as _update
from patchlake.pipeline.driver import withdraw as _withdraw
from patchlake.pipeline.driver.choose import Comparison
from patchlake.pipeline.driver.detector import Detector
from patchlake.pipeline.driver.execution import RunnerName
from patchlake.pipeline.driver.ingest import Ingested
from patchlake.pipeline.driver.library.asked import Uri, as_uri, as_uris, execution_of, settled
from patchlake.pipeline.driver.observer import Observer
from patchlake.pipeline.driver.settings import effective
from patchlake.pipeline.model_store.models import Manifest
from patchlake.pipeline.sources.sources import Arrangement, Layout


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
    execution = execution_of(runner, address, observer)
    arrangement = Arrangement(layout, group, tuple(partitions))
    return _ingest.run(as_uri(source), as_uri(images), arrangement, settled(settings), execution)


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
    execution = execution_of(runner, address, observer)
    return _fit.run(
        *(as_uri(images), as_uri(model), settled(settings), execution),
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
    defects drawn on them (`images.flaws`). It takes `repeat` fits and scores of that many photos
    for each candidate whose inputs are not those of another one, the dearest with 16 times the
    pixels of the first. Meanwhile nothing below an error is logged, of other jobs in the
    process neither. Whether real defects are found as synthetic ones are, nobody can say
    beforehand.

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
    asked = settled(settings)
    return _choose.run(
        *(as_uri(images), asked, execution_of(runner, address, observer)),
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
    execution, chosen = execution_of(runner, address, observer), settled(settings)
    if reviews is not None:
        named = (as_uri(images), as_uri(model), as_uri(reviews))
        return _learning.run(*named, chosen, execution, where=where)
    return _update.run(as_uri(images), as_uri(model), chosen, execution, where=where)


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
        tuple(image_ids), group, None if images is None else as_uri(images)
    )
    execution = execution_of(runner, address, observer)
    return _withdraw.run(as_uri(model), leaving, settled(settings), execution)


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
        backbone = chosen.backbone.model_copy(update={"weights": as_uri(weights)})
        chosen = chosen.model_copy(update={"backbone": backbone})
    named = as_uris(model)
    return _detector.load(named, effective(chosen), threads)
