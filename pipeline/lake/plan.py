"""plan: which fragments there are, under which keys, and which of their rows a job uses."""

from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.config import (
    VOCABULARY,
    ColumnSettings,
    ImageSettings,
    ScoreSettings,
    Settings,
    digest,
)
from patchlake.pipeline.errors import ConfigError, FileDamaged
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.reading.listing import list_tables
from patchlake.pipeline.reading.planning import Plan, plan
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import arrow_table, or_none, reading
from patchlake.pipeline.storage.seals import sealed, unsealed
from patchlake.pipeline.tables import OUTPUT_VERSION, PLAN
from patchlake.pipeline.where.condition import read_where


def plan_fragments(
    images: Folder,
    settings: Settings,
    where: str | None,
    known: Fragments | None = None,
    since: datetime | None = None,
) -> Plan:
    """Return the plan of a job over a lake, without keys.

    Args:
        images: The lake.
        settings: Its columns and the size of fragments.
        where: Which fragments are kept: those in which it may hold.
        known: What an earlier plan found, from `read_cuts`.
        since: Files that were written earlier are left out; none may be left.

    Raises:
        ConfigError: if there are no images, or `where` keeps none.
        TableError: if a file is not an images table.
    """
    rule = read_where(where)
    entries = None
    if since is not None:
        listed = list_tables(images)
        entries = [e for e in listed if e.modified is None or e.modified >= since]
    found = plan(images, settings, entries=entries, where=rule, known=known)
    if not found.kept and (since is None or entries):
        raise _nothing(images, where, found)
    return found


def _nothing(images: Folder, where: str | None, found: Plan) -> ConfigError:
    """Return the error that says why there is nothing to do."""
    if found.damaged:
        return FileDamaged(next(iter(found.damaged.values())))
    if where is None:
        return ConfigError(
            f"none of the {found.listed} Parquet files of {images.root} has a row: there is "
            "nothing to do"
        )
    return ConfigError(f"--where {where!r} keeps none of {found.listed} files of {images.root}")


def read_cuts(scores: Folder, settings: Settings) -> Fragments:
    """Return how the files of earlier plans were cut; nothing, if it is not what was written.

    Whoever removes anything by it looks into the files themselves first.
    """
    name = _cuts_name(settings)

    def read() -> Fragments:
        with reading(scores.path(name), "remove it"):
            return Fragments(unsealed(arrow_table(scores.read(name), PLAN), _sealed_as(name)))

    return or_none(read) or Fragments.of([])


def write_cuts(scores: Folder, settings: Settings, plan: Plan, known: Fragments) -> None:
    """Remember how files were cut, so that a file which does not change is opened once.

    Nothing hangs on it: two writers at once write what either may read.

    Args:
        scores: Where it is kept.
        settings: Those of the plan.
        plan: What was found now.
        known: What was known before, which stays so of files that the plan has not looked at.
    """
    tables = [plan.every.table]
    if not plan.is_whole:
        looked_at = pc.is_in(
            known.table.column("path"), value_set=pa.array(plan.every.paths, pa.string())
        )
        tables.append(known.only(pc.invert(looked_at)).table)
    table = pa.concat_tables(tables)
    # Keys depend on the model; batches and their order on what was known.
    at = PLAN.get_field_index("key")
    table = table.set_column(at, PLAN.field(at), pa.repeat("", len(table)))
    table = table.take(pc.sort_indices(table.column("path"))).combine_chunks()
    if not table.equals(known.table):
        name = _cuts_name(settings)
        Fragments(sealed(table, _sealed_as(name))).write(scores, name)


def forget_cuts(scores: Folder, settings: Settings) -> None:
    """Remove what is remembered: it is not what the files say."""
    scores.remove(_cuts_name(settings))


def _sealed_as(name: str) -> str:
    # How files are cut may change with the code.
    return f"{name} of {OUTPUT_VERSION}"


def _cuts_name(settings: Settings) -> str:
    columns = settings.columns.model_dump(mode="json", exclude={*VOCABULARY, "roi"})
    return f"_cuts/{digest({'columns': columns, 'images': settings.fragment_images})[:12]}.arrow"


def _no_output(score: ScoreSettings) -> set[str]:
    """Return the names of settings under `score` that no byte of these parts depends on."""
    names = {"iceberg_table"}
    if score.heatmap_store == "files" or score.heatmaps == "none":
        # So were all parts before there was a choice, and they keep their keys.
        names.add("heatmap_store")
    return names


def _no_columns(columns: ColumnSettings) -> set[str]:
    """Return the names of settings under `columns` that no byte of these parts depends on."""
    # As above: before there were regions of interest, there was no such name.
    return set(VOCABULARY) if columns.roi else {*VOCABULARY, "roi"}


def _no_pixels(image: ImageSettings) -> set[str]:
    """Return the names of settings under `image` that no byte of these parts depends on."""
    # As above: before photos could keep their shape, no setting bounded their pixels, or cut them.
    names = {"roi"} if image.resize == "auto" else {"roi", "pixels"}
    return names if image.tile else {*names, "tile"}


def output_digest(settings: Settings) -> str:
    """Return the digest of all settings that a part's bytes depend on, besides the model.

    Regions of groups (`image.roi`) are a model's.
    Runner, workers, `max_failed`, where parts are published and what labels and splits mean are not
    among them.
    """
    return digest(
        {
            "image": settings.image.model_dump(mode="json", exclude=_no_pixels(settings.image)),
            "score": settings.score.model_dump(mode="json", exclude=_no_output(settings.score)),
            "verdict": settings.verdict.model_dump(mode="json"),
            "columns": settings.columns.model_dump(
                mode="json", exclude=_no_columns(settings.columns)
            ),
            "fragment_images": settings.fragment_images,
        }
    )
