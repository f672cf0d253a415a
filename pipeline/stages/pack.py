"""pack: image files into one Parquet file of the images table, the bytes untouched."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from patchlake.pipeline.headway import Passed
from patchlake.pipeline.images.decode import is_image
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.score_table.parquet import images_writer
from patchlake.pipeline.sources.sources import LeftOut, SourceImage
from patchlake.pipeline.storage.folder import Folder, escape
from patchlake.pipeline.tables import IMAGES, PACK, PACK_RESULT, SOURCE

# Of a Parquet file: between 128 and 512 MiB, so that listings stay short and reads parallel.
FILE_BYTES = 256 * 2**20
# Of a row group: what a reader holds in memory at once.
_ROW_GROUP_BYTES = 32 * 2**20

# Fields of a `SourceImage` from its id to its mask's version: the other ones say where it lies, and
# where its mask was. Its part_id counts where it has one, so that files of before keep their names.
_IDENTIFYING = 11
TOO_LARGE = "larger than image.max_bytes"

Row = dict[str, object]


def to_packs(shards: Sequence[Sequence[SourceImage]]) -> list[pa.Table]:
    """Return one row of schema `PACK` for each file to be written.

    A file's name is a function of its rows, so that whoever writes it again replaces it, and rows
    that change later are in a file of another name.
    """
    packs = []
    for shard in shards:
        identity = [_identity(image) for image in shard]
        name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]
        sources = pa.Table.from_pylist([asdict(image) for image in shard], schema=SOURCE)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SOURCE) as writer:
            writer.write_table(sources)
        folder = f"{shard[0].hive}/".removeprefix("/") + f"g={escape(shard[0].group)}"
        target = f"{folder}/images-{name}.parquet"
        row = {"target": target, "sources": sink.getvalue().to_pybytes()}
        packs.append(pa.Table.from_pylist([row], schema=PACK))
    return packs


def _identity(image: SourceImage) -> list[str]:
    known = [str(value) for value in astuple(image)[:_IDENTIFYING]]
    return known if image.part_id is None else [*known, image.part_id]


@dataclass(frozen=True)
class Pack:
    """Stage: writes one file; returns one row of schema `PACK_RESULT`."""

    images: Folder
    fragment_images: int
    limits: Limits

    def __call__(self, table: pa.Table) -> pa.Table:
        """Write the Parquet file; if none of its sources is an image, there is none."""
        target = table.column("target")[0].as_py()
        sources = pa.ipc.open_stream(table.column("sources")[0].as_buffer()).read_all().to_pylist()
        outcome, passed = _Outcome(target), Passed("pack", target)
        with ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for rows in self._row_groups(sources, outcome, passed):
                if writer is None:
                    file = stack.enter_context(self.images.writing(target))
                    writer = stack.enter_context(images_writer(file, IMAGES))
                writer.write_table(pa.Table.from_pylist(rows, schema=IMAGES))
        return pa.Table.from_pylist([asdict(outcome)], schema=PACK_RESULT)

    def _row_groups(
        self, sources: list[Row], outcome: "_Outcome", passed: Passed
    ) -> Iterator[list[Row]]:
        """Yield rows of at most 32 MiB and one fragment, so that a fragment reads what it needs."""
        rows: list[Row] = []
        size = 0
        known = _KnownMasks(self.images)
        for source in sources:
            image = SourceImage(**source)  # type: ignore[arg-type]
            row = _read(Folder(image.folder, self.images.storage), image, self.limits, outcome)
            if row is not None and image.masked_file is not None:
                row["mask"] = known.mask(image.masked_file, image.masked_row or 0)
            passed(1)
            if row is None:
                continue
            added = sum(
                len(cell) for cell in (row["image"], row["mask"]) if isinstance(cell, bytes)
            )
            if rows and (size + added > _ROW_GROUP_BYTES or len(rows) == self.fragment_images):
                yield rows
                rows, size = [], 0
            rows.append(row)
            size += added
        if rows:
            yield rows


@dataclass
class _Outcome:
    # The file's name.
    target: str
    images: int = 0
    bytes: int = 0
    skipped: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _read(folder: Folder, source: SourceImage, limits: Limits, outcome: _Outcome) -> Row | None:
    try:
        content = folder.read(source.name, at_most=limits.max_bytes + 1)
    except FileNotFoundError:
        line = f"{source.uri}: was removed after it was listed"
        outcome.skipped.append(LeftOut("missing", line, source.uri))
        return None
    if len(content) > limits.max_bytes:
        line = f"{source.uri}: more than image.max_bytes, {limits.max_bytes}"
        outcome.skipped.append(LeftOut(TOO_LARGE, line, source.uri))
        return None
    mask = _mask(folder, source, limits, outcome)
    if not is_image(content, limits):
        line = f"{source.uri}: not an image ({len(content)} bytes)"
        outcome.skipped.append(LeftOut("not an image", line, source.uri))
        return None
    outcome.images += 1
    outcome.bytes += len(content)
    return {
        "image_id": source.image_id,
        "image": content,
        "group": source.group,
        "split": source.split,
        "label": source.label,
        "mask": mask,
        "captured_at": source.captured_at,
        "source_uri": source.uri,
        "source_version": source.version,
        "sha256": hashlib.sha256(content).hexdigest(),
        # Also of a mask that is no image: until its file changes it is not looked at again.
        "mask_version": source.mask_version,
        "part_id": source.part_id,
    }


@dataclass
class _KnownMasks:
    """Masks that rows of IMAGES have; those of the last row group are kept."""

    images: Folder
    _file: str = ""
    # Number of the first row, and the masks.
    _first: int = 0
    _masks: pa.ChunkedArray | None = None

    def mask(self, name: str, number: int) -> bytes | None:
        """Return the mask of a row, by the file and the row's number in it."""
        held = self._masks
        if held is None or name != self._file or not 0 <= number - self._first < len(held):
            held = self._read(name, number)
        mask: bytes | None = held[number - self._first].as_py()
        return mask

    def _read(self, name: str, number: int) -> pa.ChunkedArray:
        with self.images.open(name) as handle:
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            first, group = 0, 0
            while first + file.metadata.row_group(group).num_rows <= number:
                first += file.metadata.row_group(group).num_rows
                group += 1
            masks = file.read_row_group(group, ["mask"]).column("mask")
        self._file, self._first, self._masks = name, first, masks
        return masks


def _mask(folder: Folder, source: SourceImage, limits: Limits, outcome: _Outcome) -> bytes | None:
    """Return a mask, untouched; None, and said, where it is no image."""
    if source.mask is None:
        return None
    try:
        content = folder.read(source.mask, at_most=limits.max_bytes + 1)
    except FileNotFoundError:
        outcome.notes.append(
            f"{folder.path(source.mask)}: a mask that was removed after it was listed"
        )
        return None
    if len(content) <= limits.max_bytes and is_image(content, limits):
        return content
    outcome.notes.append(f"{folder.path(source.mask)}: a mask that is no image, or too large")
    return None
