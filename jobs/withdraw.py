"""withdraw: images leave a model, by id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from jaxtyping import Int64

from patchlake.jobs import options
from patchlake.jobs.console import log
from patchlake.jobs.driving import Tally
from patchlake.jobs.heartbeat import beating
from patchlake.jobs.standing import (
    Base,
    Chosen,
    Outcome,
    broken_in,
    embed,
    open_base,
    publish_step,
    say_failed,
)
from patchlake.pipeline.cluster.runner import Runner
from patchlake.pipeline.config import Settings, digest
from patchlake.pipeline.errors import ConfigError, WorkersLost
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.membership import Place
from patchlake.pipeline.groups.update import Standing, withdraw_group
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.model_store import models
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.reading.planning import plan
from patchlake.pipeline.record import runs
from patchlake.pipeline.record.runs import Run
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.stores import Entry


def withdraw(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model.")],
    image: Annotated[
        list[str], typer.Option("--image", metavar="ID", help="image_id; may be repeated.")
    ],
    group: Annotated[
        str | None, typer.Option(help="Where more than one group has such an image.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGES",
            help="The images table, if it has moved. Only PaDiM and Mahalanobis AD read it.",
        ),
    ] = None,
    weights: options.Weights = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    runner: options.RunnerChoice = "ray",
    address: options.Address = None,
) -> None:
    """Take images out of a model, without fitting it again."""
    flags = options.nested({"backbone.weights": weights})
    settings = options.read_settings(config, assignments, flags)
    wanted = Wanted(tuple(image), group, images)
    run(model, wanted, settings, options.Execution(runner, address))


@dataclass(frozen=True)
class Wanted:
    """What is to leave: image_ids, of one group if it is named; and where the images are."""

    image_ids: tuple[str, ...]
    group: str | None = None
    images: str | None = None


def run(
    model: str, wanted: Wanted, settings: Settings, execution: options.Execution
) -> models.Manifest:
    """Withdraw images, and return the manifest; images withdrawn before are passed over.

    Raises:
        ConfigError: if an image is not in the model, or in more than one group, or its embedding is
            needed and the file that it was in has changed.
        FragmentsFailed: if a fragment failed; nothing is withdrawn then.
    """
    target = Folder.at(model, settings.storage)
    Preflight([], [target]).here()
    base = open_base(target, settings)
    leaving = _leaving(base, wanted)
    _say_leaving(leaving, wanted)
    if not leaving:
        log.info("these images were withdrawn from %s before", base.target.root)
        return base.manifest
    chosen = _choose(base, leaving, wanted) if base.method.leaves_by_embedding else None
    record = _record(base, leaving, chosen)
    fragments = chosen.fragments if chosen else Fragments.of([])
    job = runs.begin(base.target, record, fragments)
    with beating(job) as heart:
        if chosen is None:
            tally = Tally()
            outcome = _withdraw_groups(base, leaving, None, (job, tally, None))
            return publish_step(base, job, tally, fragments, outcome)
        base.require_weights()
        preflight = Preflight([chosen.source.images], [base.target])
        with execution.start(base.settings.workers, preflight) as runner:
            tally = embed(base, heart, chosen, execution.threads, runner)
            outcome = _withdraw_groups(base, leaving, chosen, (job, tally, runner))
        return publish_step(base, job, tally, fragments, outcome)


@dataclass(frozen=True)
class _Leaving:
    """The images of one group that leave, by their numbers in the model."""

    standing: Standing
    numbers: Int64[np.ndarray, " withdrawn"]


def _leaving(base: Base, wanted: Wanted) -> dict[str, _Leaving]:
    """Return the images of each group that are to leave."""
    groups = list(base.manifest.groups) if wanted.group is None else [wanted.group]
    if not set(groups) <= set(base.manifest.groups):
        raise ConfigError(
            f"{base.target.root} has no group '{wanted.group}', but {list(base.manifest.groups)}"
        )
    standing = {group: base.standing(group) for group in groups}
    for image_id in wanted.image_ids:
        holding = [group for group, one in standing.items() if image_id in one.members.image_ids]
        if not holding:
            raise ConfigError(
                f"no image '{image_id}' was ever in {base.target.root} (groups {groups}); the "
                "images.parquet of each group lists them"
            )
        if len(holding) > 1:
            raise ConfigError(f"groups {holding} have an image '{image_id}' each; name one --group")
    found = {
        group: _Leaving(one, one.members.numbers_of(wanted.image_ids))
        for group, one in standing.items()
    }
    return {group: leaving for group, leaving in found.items() if len(leaving.numbers)}


def _say_leaving(leaving: Mapping[str, _Leaving], wanted: Wanted) -> None:
    """Say it where an image_id is that of several images."""
    for group, one in leaving.items():
        if len(one.numbers) > len(set(wanted.image_ids)):
            log.warning(
                "%d images of group '%s' have these %d image_ids; all of them leave",
                len(one.numbers),
                group,
                len(set(wanted.image_ids)),
            )


def _choose(base: Base, leaving: Mapping[str, _Leaving], wanted: Wanted) -> Chosen:
    """Return the rows of the images, whose embeddings are needed, in the lake that they are from.

    Raises:
        ConfigError: if they are not where they were, as they were.
    """
    places = {group: one.standing.members.places(one.numbers) for group, one in leaving.items()}
    every = [place for some in places.values() for place in some]
    roots = sorted({base.manifest.lineage[place.joined].images for place in every})
    if wanted.images is None and len(roots) > 1:
        raise ConfigError(f"the images joined from {roots}; withdraw those of one with --images")
    lake = Folder.at(wanted.images or roots[0], base.settings.storage)
    columns = base.settings.columns
    source = Source(lake, columns, base.settings.image, base.geometry)
    state = digest({"run": base.manifest.run, "withdraw": _numbers(leaving)})
    entries = [_unchanged(lake, path, every) for path in sorted({p.path for p in every})]
    fragments, rows = [], {}
    for fragment in plan(lake, base.settings, entries=entries).every:
        wanted_rows = {p.row for p in places.get(fragment.group, []) if p.path == fragment.path}
        numbers = source.read_names(fragment).column("source_row").to_pylist()
        taken = [row for row in numbers if row in wanted_rows]
        if taken:
            fragments.append(fragment.keyed(state))
            rows[fragments[-1].key] = taken
    return Chosen(source, {}, Fragments.of(fragments), rows)


def _unchanged(lake: Folder, path: str, places: Sequence[Place]) -> Entry:
    """Return the entry of a file. Raises `ConfigError` where it is not that of the fit."""
    versions = sorted({place.version for place in places if place.path == path})
    try:
        entry = lake.entry(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{lake.path(path)} is gone: what its images added to the model cannot be computed; "
            "name where it is now with --images, or fit again"
        ) from None
    if versions != [entry.version]:
        raise ConfigError(
            f"{lake.path(path)} is version {entry.version}, its images joined from "
            f"{' and '.join(versions)}: they "
            "may be others; restore it, or fit again"
        )
    return entry


def _numbers(leaving: Mapping[str, _Leaving]) -> dict[str, list[int]]:
    return {group: one.numbers.tolist() for group, one in leaving.items()}


def _record(base: Base, leaving: Mapping[str, _Leaving], chosen: Chosen | None) -> runs.RunRecord:
    lake = chosen.source.images.root if chosen else base.manifest.lineage[0].images
    version = digest({"withdraw": base.manifest.run, "numbers": _numbers(leaving), "images": lake})
    return runs.RunRecord(
        run=version[:12],
        verb="withdraw",
        images=lake,
        where=None,
        version=version[:12],
        started_at=runs.now(),
        settings=base.settings,
    )


def _withdraw_groups(
    base: Base,
    leaving: Mapping[str, _Leaving],
    chosen: Chosen | None,
    done: tuple[Run, Tally, Runner | None],
) -> Outcome:
    job, tally, runner = done
    records: dict[str, models.GroupRecord] = {}
    changes: dict[str, models.Change] = {}
    failed: dict[str, str] = {}
    for group, one in leaving.items():
        try:
            corpus = None
            if chosen is not None and runner is not None:
                fragments = chosen.fragments.of_group(group)
                corpus = _corpus(base, one, fragments, (job, tally, runner))
            record = withdraw_group(base.method, one.standing, one.numbers, corpus, base.step)
        except (ConfigError, WorkersLost, FileNotFoundError) as error:
            failed[group] = say_failed(group, str(error))
            continue
        records[group] = record
        changes[group] = models.Change(
            parent=one.standing.record.digest,
            digest=record.digest,
            added=0,
            withdrawn=len(one.numbers),
        )
    return Outcome(records, changes, failed)


def _corpus(
    base: Base,
    leaving: _Leaving,
    fragments: Fragments,
    done: tuple[Run, Tally, Runner],
) -> StoredCorpus:
    """Return the embeddings of the images that leave. Raises `ConfigError` if any is missing."""
    job, tally, runner = done
    broken = broken_in(fragments, tally)
    if broken:
        raise ConfigError(f"fragments {broken} failed")
    corpus = base.corpus(job, fragments, runner)
    found = corpus.images if fragments else 0
    if found != len(leaving.numbers):
        raise ConfigError(
            f"{found} of {len(leaving.numbers)} images to withdraw can be read where they were"
            f"{f' ({corpus.unusable})' if fragments else ''}; fit again"
        )
    return corpus
