"""The facts of model and run, as names and values."""

from collections.abc import Iterator

from patchlake.pipeline.report.facts import Facts, Model
from patchlake.pipeline.report.headline import percent
from patchlake.pipeline.shown import counted, without_secrets

# Runs of the version that are named.
_RUNS = 3


def listed(facts: Facts) -> list[tuple[str, str]]:
    """Return what is said of the runs and models; the same whenever it is read."""
    return [*_of_runs(facts), *(pair for model in facts.models for pair in _of_model(model))]


def _of_runs(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "Score table", without_secrets(facts.scores)
    yield "Version", facts.version
    newest = facts.newest
    if newest is None:
        yield "Runs", "none is recorded, so that the promised rate is not known"
        return
    yield "Images table", without_secrets(newest.images)
    yield "Promised rate of false alarms", percent(newest.settings.verdict.false_alarm_rate)
    yield "Heatmaps of", newest.settings.score.heatmaps
    resize = newest.settings.image.resize
    size = f"{resize}" if isinstance(resize, int) else " by ".join(map(str, resize))
    crop = newest.settings.image.crop
    yield "Model input", f"{size} pixels" + (f", {crop} in the middle" if crop else "")
    for run in list(reversed(facts.runs))[:_RUNS]:
        where = f", where {run.where}" if run.where else ""
        yield f"Run {run.run}", f"{run.started_at:%Y-%m-%d %H:%M:%S} UTC{where}"
    if len(facts.runs) > _RUNS:
        yield "Earlier runs", f"{len(facts.runs) - _RUNS}"


def _of_model(model: Model) -> Iterator[tuple[str, str]]:
    yield "Model", without_secrets(model.root)
    manifest = model.manifest
    if manifest is None:
        return
    chosen = {n: value for n, value in manifest.method_options.items() if value is not None}
    options = (f"{name} {value}" for name, value in chosen.items())
    yield "Method", f"{manifest.method}: {', '.join(options)}"
    network = manifest.backbone
    layers = ", ".join(map(str, network.layers))
    yield "Backbone", f"{network.name}, layers {layers}, {network.precision}"
    yield "Weights (SHA-256)", network.weights_sha256
    yield "Model made", f"{manifest.created_at:%Y-%m-%d %H:%M:%S} UTC by run {manifest.run}"
    images = sum(group.images for group in manifest.groups.values())
    yield "Trained on", f"{counted(images, 'images')} of {counted(len(manifest.groups), 'groups')}"
    yield "Steps since the fit", f"{max(0, len(manifest.lineage) - 1)}"
    yield "Libraries", ", ".join(f"{name} {number}" for name, number in manifest.libraries.items())
