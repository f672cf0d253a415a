"""Small photos of images that were scored, for a person to look at.

A score table says where its images are, and its runs say how they were read: under which columns,
below which `image.uri_prefixes`, within which limits. They are read likewise here, and of a Parquet
file only the row groups that have one of the rows.
"""

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from patchlake.pipeline.config import ColumnSettings, Settings, StorageSettings
from patchlake.pipeline.errors import ConfigError, ImageError, InputChanged
from patchlake.pipeline.images.decode import decode_photo, limits_of
from patchlake.pipeline.images.decoders import DecoderLost
from patchlake.pipeline.reading.apart import Call, apart
from patchlake.pipeline.reading.columns import fetch_columns
from patchlake.pipeline.reading.layout import Layout
from patchlake.pipeline.reading.named import RowReader
from patchlake.pipeline.reading.rows import numbered_rows, opened_for, row_groups_of
from patchlake.pipeline.record import runs
from patchlake.pipeline.score_table.parts import score_table_of, source_of
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.fetch import fetch
from patchlake.pipeline.storage.folder import Folder

log = logging.getLogger(__name__)

# Rows of one file that are held at a time, encoded.
_ROWS = 16
_THREADS = 4
_ASKED = ("image", "uri")


@dataclass(frozen=True, order=True)
class Place:
    """Where an image is, as its row of scores says."""

    source_path: str
    source_row: int


@dataclass(frozen=True)
class Photo:
    """An image as a small JPEG, upright; or why there is none.

    `sha256` is of the encoded file, and known wherever that could be read. `width` and `height` are
    of the upright image in its own pixels, and known where it could be decoded.
    """

    place: Place
    jpeg: bytes | None
    sha256: str | None = None
    error: str | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True)
class Photos:
    """The images of a score table, or of an images table that nothing was scored of."""

    images: Folder
    settings: Settings
    # The score table, and its runs of the version in question, the newest first.
    scores: Folder
    records: Sequence[runs.RunRecord]
    # Of these, as far as one had to look: file -> version, of each run.
    _planned: dict[int, dict[str, str]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(
        cls, scores: Folder, storage: StorageSettings, version: str | None = None
    ) -> "Photos | None":
        """Return the images that a score table is of; None where they cannot be opened.

        Args:
            scores: A score table, or a compacted one.
            storage: How S3 is reached.
            version: Of which rows; any if absent.

        Raises:
            ConfigError: if the record of a run is damaged.
        """
        table = score_table_of(scores)
        root = source_of(table)
        if root is None:
            log.warning("%s does not say which images it is of", table.root)
            return None
        found = Folder.at(root, storage)
        records = [
            record
            for record in reversed(runs.read_records(table))
            if record.verb == "score" and version in (None, record.version)
        ]
        settings = records[0].settings if records else Settings()
        settings = settings.model_copy(update={"storage": storage})
        return cls(found, settings, table, records) if _is_there(found) else None

    @classmethod
    def of_table(cls, images: Folder, settings: Settings) -> "Photos":
        """Return the images of an images table, as its files are now."""
        return cls(images, settings, images, ())

    def read(self, places: Sequence[Place], side: int) -> list[Photo]:
        """Return a photo of each place, in their order.

        A row that is not there, whose file has changed since it was scored, or whose image cannot
        be decoded is a photo with an error. Time is that of reading and decoding these rows; 16
        encoded files are held at a time.

        Args:
            places: Rows of the images table. One may be named twice.
            side: Of the longest side of the photo, in pixels; smaller images stay as they are.
        """
        found: dict[Place, Photo] = {}
        by_file = defaultdict(list)
        for place in sorted(set(places)):
            by_file[place.source_path].append(place)
        with ThreadPoolExecutor(_THREADS) as pool:
            for some in by_file.values():
                for begin in range(0, len(some), _ROWS):
                    chunk = some[begin : begin + _ROWS]
                    rows = self._rows_or_error(chunk)
                    made = pool.map(partial(self._photo, rows=rows, side=side), chunk)
                    found.update(zip(chunk, made, strict=True))
        return [found[place] for place in places]

    def _rows_or_error(self, places: Sequence[Place]) -> dict[int, dict[str, object]] | str:
        path = places[0].source_path
        try:
            return self._rows(path, [place.source_row for place in places])
        except FileNotFoundError:
            return f"{self.images.path(path)} is not there any more"
        except (ConfigError, InputChanged, OSError) as error:
            return str(error)

    def _rows(self, path: str, numbers: Sequence[int]) -> dict[int, dict[str, object]]:
        """Return the image and URI of some rows of a file, as they were when it was scored."""
        if path.startswith("/") or ".." in path.split("/"):
            raise ConfigError(f"{shown(path)} is no file below {self.images.root}")
        where = self.images.path(path)
        version = self.images.entry(path).version
        planned = self._versions_of(path)
        if planned and version not in planned:
            raise InputChanged(
                f"{where} changed since it was scored: its version was {planned[0]}, and is "
                f"{version}"
            )
        file = _File(self.images, self.settings.columns, path, version)
        read = partial(_read, file, self.settings.image.max_bytes)
        rows = apart(self.images, Call(read, tuple(numbers), where))
        if not self.images.pins_versions and self.images.entry(path).version != version:
            raise InputChanged(f"{where} changed while it was read")
        return {row["source_row"]: row for row in rows.to_pylist()}

    def _versions_of(self, path: str) -> list[str]:
        """Return the versions of a file as it was scored last; none where no run has planned it.

        There are several where runs have the same time, as those with one `score.scored_at` do:
        then nothing says which was the last.
        """
        found: list[str] = []
        last = None
        for number, record in enumerate(self.records):
            if found and record.started_at != last:
                break
            if number not in self._planned:
                self._planned[number] = runs.read_planned(self.scores, record)
            if path in self._planned[number]:
                found.append(self._planned[number][path])
                last = record.started_at
        return found

    def _photo(self, place: Place, rows: dict[int, dict[str, object]] | str, side: int) -> Photo:
        if isinstance(rows, str):
            return Photo(place, None, error=rows)
        row = rows.get(place.source_row)
        if row is None:
            where = self.images.path(place.source_path)
            return Photo(place, None, error=f"{where} has no row {place.source_row}")
        sha256 = None
        try:
            content = self._content(row)
            sha256 = hashlib.sha256(content).hexdigest()
            limits = limits_of(self.settings.image)
            (width, height), jpeg = decode_photo(content, limits, side)
        except (ImageError, ConfigError, OSError, DecoderLost) as error:
            return Photo(place, None, sha256, error=str(error))
        return Photo(place, jpeg, sha256, None, width, height)

    def _content(self, row: dict[str, object]) -> bytes:
        content = row["image"]
        if isinstance(content, bytes):
            return content
        limits = self.settings.image
        return fetch(
            row["uri"], limits.uri_prefixes, self.settings.storage, max_bytes=limits.max_bytes
        )


@dataclass(frozen=True)
class _File:
    images: Folder
    columns: ColumnSettings
    path: str
    version: str


def _read(of: _File, max_bytes: int, numbers: tuple[int, ...]) -> pa.Table:
    """Return the image and URI of some rows; of too large an image one byte too many."""
    found: dict[str, list[object]] = {"source_row": [], "image": [], "uri": []}
    with of.images.open(of.path, of.version) as handle:
        file = pq.ParquetFile(handle, page_checksum_verification=True)
        layout = Layout(file.schema_arrow, of.columns, of.path, of.images.path(of.path))
        reader = RowReader(layout, _ASKED)
        reader.require_readable()
        row_groups = row_groups_of(file, numbers)
        fetch_columns(handle, file, row_groups, reader.names)
        file = opened_for(handle, file, row_groups, reader.names)
        for number, row in numbered_rows(file, numbers, reader):
            image = row.column("image")[0].as_py()
            found["source_row"].append(number)
            found["image"].append(None if image is None else image[: max_bytes + 1])
            found["uri"].append(row.column("uri")[0].as_py())
    return pa.table(found, schema=_READ)


_READ = pa.schema([("source_row", pa.int64()), ("image", pa.large_binary()), ("uri", pa.string())])


def _is_there(images: Folder) -> bool:
    """Return whether a folder can be listed and has a file."""
    try:
        if next(images.names(), None) is not None:
            return True
        reason = "it is empty, or not there"
    except (OSError, ConfigError) as error:
        reason = str(error)
    log.warning("no image can be shown: %s: %s", shown(images.root), reason)
    return False
