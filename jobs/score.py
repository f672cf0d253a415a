"""score: images/ + model/ -> scores/ (Parquet) and heatmaps."""

import sys
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Literal

import typer

from patchlake.jobs import options
from patchlake.jobs.console import say_reading
from patchlake.jobs.results import and_show, show_preview, show_scored
from patchlake.pipeline.errors import ConfigError


def score(
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="Images table (folder or URI).")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A fitted model.")],
    scores: Annotated[str, typer.Argument(metavar="SCORES", help="Where the score table goes.")],
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="Another model: the scores are those of the ensemble. May repeat."
        ),
    ] = None,
    group: options.OneGroup = None,
    where: options.Where = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="DAYS|TIME",
            help="Look only at files that were written in the last days (2d, from midnight UTC) or "
            "since a time (2026-11-22, 2026-11-22T18:00). None is no error.",
        ),
    ] = None,
    heatmaps: Annotated[
        Literal["all", "anomalous", "none"] | None, typer.Option(help="Sets score.heatmaps.")
    ] = None,
    weights: options.Weights = None,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    iceberg: Annotated[
        str | None,
        typer.Option(
            metavar="CATALOG.NAMESPACE.TABLE",
            help="Publish the score files in this Iceberg table. Sets score.iceberg_table.",
        ),
    ] = None,
    expire: Annotated[
        str | None,
        typer.Option(
            metavar="AGE|EXPR",
            help="Then remove score files, of all versions, and their heatmaps, that are older "
            "(90d, since they were scored) or match (\"dt < '2026-08-27'\", of hive keys, group "
            "and scored_at). They are not scored again. With --dry-run: list them.",
        ),
    ] = None,
    restore: Annotated[
        str | None,
        typer.Option(
            metavar="all|EXPR",
            help="First take score files that have expired (all, or those whose hive keys match) "
            "out of the ledger: they are scored again.",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before --expire removes all score files.")
    ] = False,
    runner: options.RunnerChoice = "auto",
    address: options.Address = None,
) -> None:
    """Score every image once. What is committed already is skipped."""
    flags = {
        "score.heatmaps": heatmaps,
        "columns.one_group": group,
        "backbone.weights": weights,
        "score.iceberg_table": iceberg,
    }
    settings = options.read_settings(config, assignments, options.nested(flags))
    named = [model, *(others or [])]
    options.require_dry_run(as_json=as_json, dry_run=dry_run)
    written = None if since is None else options.parse_since(since, datetime.now(UTC))
    if dry_run and restore is not None:
        raise ConfigError("--restore changes the ledger: it cannot be combined with --dry-run")
    say_reading(images)
    from patchlake.pipeline.driver import score as scoring

    execution = options.execution(runner, address)
    if dry_run:
        asked = (images, named, scores, settings, execution, where, written)
        found = scoring.preview(*asked, expire=expire)
        show_preview(found, as_json=as_json)
        return
    may_ask = not yes and sys.stdin.isatty()
    run = partial(
        scoring.run,
        *(images, named, scores, settings, execution),
        where=where,
        since=written,
        expire=expire,
        restore=restore,
        confirm=_confirm if may_ask else None,
    )
    and_show(run, partial(show_scored, scores, settings))


def _confirm(what: str) -> bool:
    try:
        return typer.confirm(f"{what}; go on?")
    except typer.Abort:
        # The end of what is typed.
        return False
