"""trained: the images that a score table's models were trained on, kept beside the scores.

`SCORES/_models/<model_id>.arrow` lists the images of one group's model, or of all members of an
ensemble. It is written before the first part of that model, so that whoever evaluates needs no
model. What is listed is taken by its place, and by its content where it has another one.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from patchlake.pipeline.errors import ConfigError, ImageError
from patchlake.pipeline.groups.files import load_images
from patchlake.pipeline.groups.membership import Known, Membership, with_roots
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.reading.named import read_named
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import TRAINED

if TYPE_CHECKING:
    # It imports torch, which who evaluates never needs.
    from patchlake.pipeline.groups.member import Member

_FOLDER, _LIST = "_models", ".arrow"
# Of a list whose images were scored as new ones by a model that has them.
_APART = {b"scored_apart": b"true"}
_LOOKS = ("brightness", "sharpness", "embedding", "thumbnail")
# Not in lists of before they were kept.
_COMPARED = ("part", "part_score", *_LOOKS)
# Lists of images are small, behind the latency of an object store.
_AT_ONCE = 16


def write_trained(
    scores: Folder, members: "Sequence[Member]", digests: Mapping[str, str], groups: Sequence[str]
) -> None:
    """Write the lists that are not there yet, of these groups' models; read and check all images'.

    Of a model that was fitted before its images were kept there is none.

    Args:
        scores: Where they go.
        members: One model, or those of an ensemble.
        digests: Group -> model_id of its rows.
        groups: Those that are scored; the others of the models are left out.

    Raises:
        ModelError: if a list of images is damaged, also where its copy is there.
    """
    there = set(scores.names(_FOLDER))
    are_mutual = all(member.is_mutual for member in members)
    wanted = {digests[group] for group in groups if group in digests}

    def write(digest: str) -> None:
        # Groups of the same pictures have the same model, and then one list.
        sharing = sorted(group for group, other in digests.items() if other == digest)
        tables = [
            _images(member, group, _compared(number, len(members)))
            for group in sharing
            for number, member in enumerate(members)
        ]
        if _name(digest) not in there and all(table is not None for table in tables):
            sink = pa.BufferOutputStream()
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            listed = pa.concat_tables(tables).combine_chunks()
            listed = listed.replace_schema_metadata(_APART if are_mutual else None)
            with pa.ipc.new_file(sink, listed.schema, options=options) as writer:
                writer.write_table(listed)
            scores.write(_name(digest), sink.getvalue().to_pybytes())

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(write, sorted(wanted)))


def _compared(number: int, members: int) -> tuple[str, ...]:
    """Return the columns of a member's images that scores are compared with by night.

    An ensemble's scores are in another unit than a member's, and its images are embedded by the
    first member.
    """
    if number:
        return ()
    return ("part", *_LOOKS) if members > 1 else ("part", "part_score", *_LOOKS)


def _images(member: "Member", group: str, compared: Sequence[str]) -> pa.Table | None:
    images = load_images(member.model, member.manifest.groups[group])
    if images is None:
        return None
    roots = [step.images for step in member.manifest.lineage]
    present = with_roots(Membership.stored(images).present, roots)
    return _as_trained(present.drop_columns([n for n in _COMPARED if n not in compared]))


def _as_trained(images: pa.Table) -> pa.Table:
    """Return images as `TRAINED`; columns of which they say nothing are null.

    Raises:
        KeyError: if a column is missing that never may be.
    """
    columns = []
    for field in TRAINED:
        if field.name in _COMPARED and field.name not in images.column_names:
            columns.append(pa.nulls(len(images), field.type))
        else:
            columns.append(images.column(field.name).cast(field.type))
    return pa.Table.from_arrays(columns, schema=TRAINED)


def read_trained(scores: Folder, model_id: str, lake: str) -> Known | None:
    """Return what tells the images that a model was trained on; None where that was not kept.

    They are none where each was scored as if it were new to the model (`methods.shared.contract`,
    `Mutual`).

    Args:
        scores: The score table.
        model_id: As in its rows.
        lake: Root of the lake whose images are to be told.

    Raises:
        ConfigError: if the list is damaged.
    """
    found = trained_images(scores, model_id)
    if found is None:
        return None
    return Known.of(found[:0] if found.schema.metadata == _APART else found, lake)


def trained_images(scores: Folder, model_id: str) -> pa.Table | None:
    """Return the images that a model was trained on, as `TRAINED`; None where that was not kept.

    Args:
        scores: The score table, or a compacted one.
        model_id: As in its rows.

    Raises:
        ConfigError: if the list is damaged.
    """
    name = _name(model_id)
    try:
        table = pa.ipc.open_file(scores.read(name)).read_all()
        table.validate(full=True)
        metadata = _APART if (table.schema.metadata or {}).items() >= _APART.items() else None
        return _as_trained(table).replace_schema_metadata(metadata)
    except FileNotFoundError:
        return None
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise ConfigError(
            f"{scores.path(name)} is damaged ({error}); remove it, and run `patchlake score` "
            "again, which writes it without scoring any image again"
        ) from None


def copy_lists(scores: Folder, target: Folder) -> None:
    """Copy the lists that a table of the same rows does not have yet."""
    there = set(target.names(_FOLDER))
    for name in scores.names(_FOLDER):
        if name not in there and name.endswith(_LIST):
            target.write(name, scores.read(name))


def _name(model_id: str) -> str:
    return f"{_FOLDER}/{model_id}{_LIST}"


def is_known(
    known: Known, source: Source, fragment: Fragment, rows: pa.Table
) -> Bool[np.ndarray, " rows"]:
    """Return which rows of a fragment, with their encoded images, are images of a model.

    Args:
        known: What tells them.
        source: Where the rows are from.
        fragment: Their fragment.
        rows: As `Source.read` returns them.
    """
    here = known.at(fragment.path, fragment.version)
    trained = []
    for row in _cells(rows):
        at, image_id = row["source_row"], row["image_id"]
        trained.append(at in here or image_id in known.unnoted or _is_content(known, source, row))
    return np.array(trained, bool)


def checksums(source: Source, fragment: Fragment, numbers: Sequence[int]) -> list[str | None]:
    """Return the SHA-256 that a lake keeps of the images in these rows, as `ingest` does.

    None where it keeps none. Another table's `sha256` may be of something else: that two are equal
    says much, that they are not says nothing.
    """
    try:
        kept = read_named(
            source.images, source.columns, fragment.path, fragment.version, ("sha256",)
        ).column("sha256")
    except pa.ArrowInvalid:  # such as bytes that are no text
        return [None] * len(numbers)
    texts: list[str | None] = pc.utf8_lower(kept.take(pa.array(numbers, pa.int64()))).to_pylist()
    return texts


def _cells(rows: pa.Table) -> Iterator[dict[str, object]]:
    names = [n for n in rows.column_names if n in ("source_row", "image_id", "image", "uri")]
    for batch in rows.select(names).to_batches(max_chunksize=1):
        yield from batch.to_pylist()


def _is_content(known: Known, source: Source, row: Mapping[str, object]) -> bool:
    if not known.contents:
        return False
    try:
        content = source.read_image(dict(row))
    except ImageError:
        return False
    return hashlib.sha256(content).hexdigest() in known.contents
