"""choose: images/ of good parts -> which settings of the inputs find synthetic defects best.

Nothing of it needs a defect, and nothing promises that real ones are found as synthetic ones are:
docs/benchmarks.md, "Choosing by synthetic defects", has both beside each other.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import yaml

from patchlake.pipeline.config import ImageSettings, Settings
from patchlake.pipeline.driver import evaluate, fit, score
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.fitting import plan_fit
from patchlake.pipeline.driver.flawed import write_flawed
from patchlake.pipeline.driver.observer import Silent
from patchlake.pipeline.driver.training import choose_rows
from patchlake.pipeline.errors import ConfigError, StorageRefused
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.lake.plan import plan_fragments
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.listing import open_lake
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.disk import scratch
from patchlake.pipeline.storage.folder import Folder, split_uri
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use
from patchlake.pipeline.where.condition import read_where

log = logging.getLogger(__name__)

# Settings under `image`, from the cheapest to the dearest. A photo is never enlarged to have its
# own shape, so of small ones some of these make the same inputs.
_SQUARE = 224 * 224
CANDIDATES: Mapping[str, Mapping[str, object]] = {
    "square": {"resize": (224, 224)},
    "own shape": {"resize": "auto", "pixels": _SQUARE},
    "square, 2 x": {"resize": (320, 320)},
    "own shape, 4 x": {"resize": "auto", "pixels": 4 * _SQUARE},
    "square, 4 x": {"resize": (448, 448)},
    "tiles, 16 x": {
        "resize": "auto",
        "pixels": 16 * _SQUARE,
        "tile": {"size": 448, "overlap": 128},
    },
}
# What a dearer candidate has to be better by, in the mean of the metrics. It is what other start
# points of the greedy selection change (docs/benchmarks.md).
MARGIN = 0.01
# What says which inputs are made, and is the candidate's.
_OF_CANDIDATES = ("resize", "crop", "pixels", "tile")


@dataclass(frozen=True)
class Trial:
    """How well one candidate found synthetic defects: means over groups and repetitions."""

    name: str
    # The settings under `image`.
    image: Mapping[str, object]
    # (height, width) of the first group's inputs, in pixels.
    inputs: tuple[int, int]
    image_auroc: float
    # NaN of methods without a map.
    pixel_auroc: float
    aupro: float
    # In the stages of a score, one after the other, without pictures. Other work beside it counts.
    seconds_per_image: float

    @property
    def merit(self) -> float:
        """The mean of the metrics that there are."""
        return float(np.nanmean([self.image_auroc, self.pixel_auroc, self.aupro]))


@dataclass(frozen=True)
class Comparison:
    """The candidates, from the cheapest to the dearest, and the one that is recommended."""

    trials: Sequence[Trial]
    recommended: Trial

    def words(self) -> str:
        """Return what is recommended, and why, as a sentence."""
        first, best = self.trials[0], self.recommended
        if best is first:
            return (
                f"Recommended: {first.name}. Nothing dearer finds synthetic defects better by "
                f"{MARGIN:g} in the mean of the metrics."
            )
        slower = best.seconds_per_image / first.seconds_per_image
        return (
            f"Recommended: {best.name}. It finds synthetic defects better than {first.name} by "
            f"{best.merit - first.merit:.3f} in the mean of the metrics, and takes {slower:.1f} "
            "times as long."
        )

    def settings(self) -> str:
        """Return the recommended settings as a YAML file, for `--config`."""
        image = {name: _plain(value) for name, value in self.recommended.image.items()}
        return yaml.safe_dump({"image": image}, sort_keys=False)


def run(
    images: str,
    settings: Settings,
    execution: Execution,
    *,
    where: str | None = None,
    seeds: Sequence[int] | None = None,
) -> Comparison:
    """Fit and score each candidate on good photos and flawed ones; return what they found.

    Args:
        images: Images table; only good rows to train on are read.
        settings: Of all but what the candidates differ in.
        execution: How.
        where: Which rows count.
        seeds: One of each repetition, of parts held out and defects; None: `settings.seed`.

    Raises:
        ConfigError: if photos are too few, or the settings name regions of interest.
    """
    if settings.image.roi or settings.columns.roi:
        raise ConfigError(
            "synthetic defects are drawn anywhere in a photo, and a region of interest would hide "
            "some: choose without image.roi and columns.roi, and set them for the fit"
        )
    lake = open_lake(images, settings.storage)
    Preflight([lake], [], [], [Use(lake, "images")]).here()
    plan = plan_fragments(lake, settings, where).sound()
    source = Source(
        lake, settings.columns, settings.image, Geometry((1, 1), None), read_where(where)
    )
    selections = choose_rows(source, plan.kept)
    found: dict[str, list[Trial]] = {name: [] for name in CANDIDATES}
    seeds, at_hand = seeds or [settings.seed], ""
    total = len(seeds) * len(CANDIDATES)
    observed = execution.observer.task("choose", total, "candidates", lambda: at_hand)
    with observed as advance:
        for seed in seeds:
            with scratch("patchlake-choose-") as folder:
                target = Folder.at(f"{folder}/images", settings.storage)
                count = write_flawed(source, selections, plan.kept, target, seed)
                log.info("%d good photos of %s, some of them held out", count, lake.root)
                trials = _Trials(folder, settings, replace(execution, observer=Silent()))
                for name, image in CANDIDATES.items():
                    at_hand = name
                    found[name].append(trials.of(name, image))
                    advance(1)
    means = [_mean(some) for some in found.values()]
    return Comparison(means, recommended(means))


def write(found: Comparison, out: str, settings: Settings) -> str:
    """Write the recommended settings, in one atomic put; return the file's full path.

    Args:
        found: What `run` returned.
        out: Path or URI of the file; what is there is replaced.
        settings: Of which `storage` counts.

    Raises:
        ConfigError: as `require_out`, or if storage refuses.
    """
    folder, name = _file(out, settings)
    try:
        folder.write(name, found.settings().encode())
    except StorageRefused as error:
        raise ConfigError(str(error)) from None
    return folder.path(name)


def require_out(out: str, settings: Settings) -> None:
    """Raise `ConfigError` if `out` is no name of a YAML file."""
    _file(out, settings)


def _file(out: str, settings: Settings) -> tuple[Folder, str]:
    folder, name = split_uri(out, settings.storage)
    if not name.lower().endswith((".yaml", ".yml")):
        raise ConfigError(f"{shown(out)} is not the name of a YAML file; end it with .yaml")
    return folder, name


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def recommended(trials: Sequence[Trial]) -> Trial:
    """Return the first one that no later one beats by more than the margin."""
    best = trials[0]
    for trial in trials[1:]:
        if trial.merit > best.merit + MARGIN:
            best = trial
    return best


@dataclass
class _Trials:
    """The trials of one lake of good and flawed photos, in a folder that is going to vanish."""

    folder: str
    settings: Settings
    execution: Execution
    # What is made of the photos -> the first candidate that makes it.
    known: dict[object, Trial] = field(default_factory=dict)

    def of(self, name: str, image: Mapping[str, object]) -> Trial:
        """Fit and score a candidate, if no earlier one makes the same inputs."""
        settings = self._settings(image)
        lake, model, scores = (
            f"{self.folder}/{part}" for part in ("images", f"model {name}", f"scores {name}")
        )
        with _quiet():
            inputs = _inputs(lake, settings)
            if inputs in self.known:
                return replace(self.known[inputs], name=name, image=image)
            manifest = fit.run(lake, model, settings, self.execution)
            summary = score.run(
                lake, [model], scores, settings, self.execution, where="split = 'test'"
            )
            metrics = list(evaluate.run(lake, scores, settings=settings).values())
        shape = next(iter(manifest.shapes.values()), settings.image.resize)
        assert isinstance(shape, tuple)
        spent = sum(summary.stage_seconds.values()) / max(1, summary.images)
        trial = Trial(name, image, shape, *_means(metrics), spent)
        self.known[inputs] = trial
        return trial

    def _settings(self, image: Mapping[str, object]) -> Settings:
        given = self.settings.image.model_dump(exclude_unset=True, exclude=set(_OF_CANDIDATES))
        off = {"heatmaps": "none", "iceberg_table": None}
        changed = {
            "image": ImageSettings.model_validate(given | dict(image)),
            # The small lake has our own columns.
            "columns": Settings().columns,
            "score": self.settings.score.model_copy(update=off),
            "preset": None,
        }
        return self.settings.model_copy(update=changed)


def _inputs(lake: str, settings: Settings) -> object:
    """Return what tells the inputs that a fit makes of photos from others."""
    work = plan_fit(open_lake(lake, settings.storage), settings, None)
    geometries = tuple((group, work.source.geometry.of(group)) for group in work.plan.groups)
    tile = settings.image.tile
    # An input that is no larger than a tile is not cut.
    is_cut = tile is not None and any(max(g.input_size) > tile.size for _, g in geometries)
    return geometries, tile if is_cut else None


def _means(metrics: Sequence[evaluate.Metrics]) -> tuple[float, float, float]:
    """Return image AUROC, pixel AUROC and AUPRO, means over the groups; NaN where no group has."""

    def mean(values: Iterable[float | None]) -> float:
        known = [float(value) for value in values if value is not None]
        return float(np.mean(known)) if known else float("nan")

    return (
        mean(one["image_auroc"] for one in metrics),
        mean(one["pixel_auroc"] for one in metrics),
        mean(one["aupro"] for one in metrics),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what fits and scores say of files that are going to vanish.

    The level is the process's, so that other jobs in it say nothing below an error meanwhile.
    """
    ours = logging.getLogger("patchlake")
    before = ours.level
    ours.setLevel(logging.ERROR)
    try:
        yield
    finally:
        ours.setLevel(before)


def _mean(trials: Sequence[Trial]) -> Trial:
    """Return the mean of repetitions."""
    first = trials[0]

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    return Trial(
        first.name,
        first.image,
        first.inputs,
        mean([one.image_auroc for one in trials]),
        mean([one.pixel_auroc for one in trials]),
        mean([one.aupro for one in trials]),
        mean([one.seconds_per_image for one in trials]),
    )
