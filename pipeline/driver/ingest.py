"""ingest: folders, archives' contents, tables of URIs -> images/ (Parquet)."""

import logging
import os.path
from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.underway import Underway
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.headway import heard_by
from patchlake.pipeline.images.decode import limits_of
from patchlake.pipeline.lake.resync import IngestedRows, Moves, SupersededRows, read_ingested
from patchlake.pipeline.reading.listing import list_tables
from patchlake.pipeline.shown import printable
from patchlake.pipeline.sources.hive import require_keys, require_values, with_folders
from patchlake.pipeline.sources.manifest import is_manifest, list_manifest
from patchlake.pipeline.sources.placing import Words
from patchlake.pipeline.sources.sources import (
    Arrangement,
    Layout,
    LeftOut,
    Listing,
    Places,
    SourceImage,
    counted,
    shards,
)
from patchlake.pipeline.sources.trees import OUTSIDE, guess_layout, list_folder, list_tree
from patchlake.pipeline.stages.pack import FILE_BYTES, TOO_LARGE, Pack, to_packs
from patchlake.pipeline.storage.folder import Folder, split_uri
from patchlake.pipeline.storage.preflight import Preflight
from patchlake.pipeline.storage.roles import Use

log = logging.getLogger(__name__)

# Of each reason.
_SHOWN = 5
# Group, split, label, images, images with a mask.
Kind = tuple[str, str, str, int, int]


@dataclass(frozen=True)
class Ingested:
    """What an ingest did."""

    # The images table.
    root: str
    # Images written now; those that were there and have not changed are not among them.
    images: int
    # Files and rows that did not become images, each with why; and how many there are of each
    # reason.
    skipped: tuple[str, ...]
    left_out: Mapping[str, int]
    # Of all of SOURCE.
    kinds: tuple[Kind, ...]


def run(
    source: str,
    images: str,
    arrangement: Arrangement,
    settings: Settings,
    execution: Execution,
) -> Ingested:
    """Ingest; return what was written, and what SOURCE holds.

    Raises:
        ConfigError: if a folder has another role, or SOURCE has no image, or cannot be understood.
    """
    require_keys(arrangement.partitions)
    storage = settings.storage
    target = Folder.at(images, storage)
    # A manifest is one file, in a folder that need not be ours to list.
    manifest = split_uri(source, storage) if _is_manifest(source, arrangement.layout) else None
    folder = None if manifest else Folder.at(source, storage)
    if folder is not None:
        _require_apart(folder, target)
    preflight = Preflight(
        [folder] if folder else [],
        [target],
        [manifest] if manifest else [],
        [Use(target, "images", is_written=True)],
    )
    preflight.here()
    target.sweep()
    listing = (
        list_manifest(manifest, arrangement, settings.image.uri_prefixes)
        if manifest
        else _list(Folder.at(source, storage), arrangement, settings)
    )
    before = read_ingested(target, _existing(target))
    listing = replace(listing, images=before.complete(listing.images))
    require_values(listing.images, arrangement.partitions, source)
    # A manifest may name some of the files: of what it does not name nothing is known.
    root = folder.root if folder else ""
    moves = Moves(target, root)
    where = (execution, preflight)
    packed = _pack(target, listing, before, settings, where, moves)
    over = _superseded(target, listing, packed, settings, where, moves)
    over.remove(target)
    moves.done()
    _say(listing, packed, over)
    skipped = [*listing.skipped, *packed.skipped]
    lost = {one.uri for one in skipped}
    return Ingested(
        target.root,
        packed.written,
        tuple(one.line for one in skipped),
        dict(Counter(one.why for one in skipped)),
        tuple(counted(image for image in listing.images if image.uri not in lost)),
    )


def _superseded(
    target: Folder,
    listing: Listing,
    packed: "_PackResult",
    settings: Settings,
    where: tuple[Execution, Preflight],
    moves: Moves,
) -> SupersededRows:
    """Return the rows that others have replaced, when these know all that is known.

    Which pictures were moved is known by their content, so only once they are written: those of
    which the rows of before know more are written again.
    """
    after = read_ingested(target, _existing(target))
    over = after.over(listing.images, moves.root, packed.came)
    if not over.learned:
        return over
    _pack(target, replace(listing, images=over.learned), after, settings, where, moves)
    learned = {image.uri: image for image in over.learned}
    whole = [learned.get(image.uri, image) for image in listing.images]
    return read_ingested(target, _existing(target)).over(whole, moves.root, packed.came)


def _is_manifest(source: str, layout: Layout | None) -> bool:
    return layout == "csv" or (layout is None and is_manifest(source))


def _require_apart(source: Folder, target: Folder) -> None:
    """Raise `ConfigError` if one folder lies in the other: it would ingest what it writes."""
    one, other = (Places().of(folder.root.rstrip("/") + "/") for folder in (source, target))
    if one.startswith(other) or other.startswith(one):
        raise ConfigError(
            f"SOURCE {source.root} and IMAGES {target.root} are one folder, or one lies in the "
            "other; name an IMAGES outside SOURCE"
        )


def _list(folder: Folder, arrangement: Arrangement, settings: Settings) -> Listing:
    group, keys = arrangement.group, arrangement.partitions
    entries = folder.find()
    left_out = folder.left_out()
    if not entries and folder.is_local and not os.path.isdir(folder.root):
        raise ConfigError(f"{folder.root} does not exist, or is no folder")
    if not entries:
        more = f" that can be read ({left_out[0]})" if left_out else ""
        raise ConfigError(f"{folder.root} holds no file{more}")
    words = Words.of(settings.columns, keys)
    default = group or PurePosixPath(folder.root).name
    chosen = arrangement.layout or guess_layout(folder.root, entries, words)
    if chosen == "mvtec":
        listing = list_tree(folder, entries, words, (group, default))
    else:
        listing = list_folder(folder, entries, (group, default))
    log.info("%s: layout '%s'", folder.root, chosen)
    listing.skipped.extend(LeftOut("not readable", line) for line in left_out)
    if not listing.images:
        lines = [*(one.line for one in listing.skipped), *listing.notes]
        outside = sum(one.why == OUTSIDE for one in listing.skipped)
        more = f"; --layout folder takes them without labels ({outside} files)" if outside else ""
        raise ConfigError(
            f"{folder.root}: none of its {len(entries)} files is an image to ingest: "
            f"{printable(next(iter(lines), 'they are masks'))}{more}"
        )
    placed = [with_folders(image, keys, {}) for image in listing.images]
    return replace(listing, images=placed)


@dataclass(frozen=True)
class _PackResult:
    """What was written, and what was said of it."""

    before: IngestedRows
    came: AbstractSet[str]
    fresh: Sequence[SourceImage]
    written: int
    skipped: Sequence[LeftOut]
    notes: Sequence[str]


def _pack(
    target: Folder,
    listing: Listing,
    before: IngestedRows,
    settings: Settings,
    where: tuple[Execution, Preflight],
    moves: Moves,
) -> _PackResult:
    """Write the rows that are new, or differ from those that are there."""
    execution, preflight = where
    limits = limits_of(settings.image)
    images = listing.images
    small = [one for one in images if one.bytes <= limits.max_bytes]
    skipped = [
        LeftOut(
            TOO_LARGE,
            f"{one.uri}: {one.bytes} bytes, image.max_bytes is {limits.max_bytes}",
            one.uri,
        )
        for one in images
        if one.bytes > limits.max_bytes
    ]
    fresh = before.fresh(small)
    log.info("%d files listed, %d of them known", len(small), len(small) - len(fresh))
    came = moves.begin(before, images, fresh)
    cut = list(shards(fresh, FILE_BYTES))
    written, notes = 0, list[str]()
    # One process packs one file after the other: of several, each is worth a process.
    shared = execution.chosen(len(cut), few=1) if len(cut) > 1 else Execution("local")
    pack = Pack(target, settings.fragment_images, limits)
    with (
        shared.start(settings.workers, preflight) as runner,
        execution.observer.task("ingest", len(fresh), "files") as advance,
        heard_by(underway := Underway()),
    ):
        underway.follow(advance)
        for result in runner.map(to_packs(cut), pack):
            (row,) = result.to_pylist()
            written += row["images"]
            skipped += (LeftOut(**one) for one in row["skipped"])
            notes += row["notes"]
            underway.finish(row["target"], row["images"] + len(row["skipped"]))
    return _PackResult(before, came, fresh, written, skipped, notes)


def _existing(target: Folder) -> list[str]:
    try:
        return [entry.name for entry in list_tables(target)]
    except ConfigError:
        return []


def _say(listing: Listing, packed: _PackResult, over: SupersededRows) -> None:
    skipped = [*listing.skipped, *packed.skipped]
    for why in sorted({one.why for one in skipped}):
        _warn("left out: ", [one.line for one in skipped if one.why == why])
    _warn("", [*listing.notes, *packed.notes])
    ids = [image.image_id for image in packed.fresh]
    repeated = len(ids) - len(set(ids))
    if repeated:
        log.warning("%d image_ids occur more than once; rows are told apart by file", repeated)
    lost = {one.uri for one in skipped}
    came = [image for image in packed.fresh if image.uri not in lost]
    for reason, count in sorted(packed.before.changes(came).items()):
        log.info("%d images are %s", count, reason)
    for rows, what in (
        (over.replaced, "rows were replaced by new ones"),
        (over.moved, "rows were removed: their picture lies elsewhere in SOURCE now"),
        (over.gone, "images are no longer in SOURCE; their rows stay"),
    ):
        if rows:
            log.info("%d %s, the first is %s", len(rows), what, printable(rows[0].uri))


def _warn(what: str, lines: Sequence[str]) -> None:
    for line in lines[:_SHOWN]:
        log.warning("%s%s", what, printable(line))
    if len(lines) > _SHOWN:
        log.warning("%s... and %d more like these", what, len(lines) - _SHOWN)
