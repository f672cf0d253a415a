"""A score table as an Arrow dataset, whatever it is stored in, and its discoveries."""

import logging
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import reduce
from operator import and_
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.maths.discoveries import fewest_discoveries, largest_discovered
from patchlake.pipeline.record import runs
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.storage.folder import NULL_PARTITION, Folder, hive_keys
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.tables import SCORES

# Parts of a score table, and files of a compacted one.
_FILE = re.compile(r"(.*/)?(part-[0-9a-f]{12}-[0-9a-f]{20}|scores-\d{5,})\.parquet")


log = logging.getLogger(__name__)

_MAP = "anomaly_map"
_DISCOVERY_ORDER = (
    ("p_value", "ascending"),
    ("image_score", "descending"),
    ("source_path", "ascending"),
    ("source_row", "ascending"),
)


class ScoreDataset(ds.FileSystemDataset):  # type: ignore[misc]  # pyarrow has no types
    """The rows of a score table as an Arrow dataset, with one more method.

    What `filter` returns has it as well; what `replace_schema` and pickle return is Arrow's own.
    """

    def discoveries(self, q: float = 0.1, *, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows that are discoveries: of these, a share `q` is good, in expectation.

        Each row with a p_value is one test; rows without one are none. Which rows count together
        is what the dataset is filtered to: `open_scores(...).filter(pc.field("dt") ==
        "2026-11-22")` is one night. Benjamini and Hochberg (1995): of `m` tests those are
        discovered of which the p_value is at most `q k / m`, for the largest `k` for which there
        are as many.

        The p-values are conformal, and those of a group share one calibration set, so that they
        depend on one another. Bates, Candès, Lei, Romano and Sesia ("Testing for outliers with
        conformal p-values", Annals of Statistics 51, 2023) prove that they do so in a way (PRDS)
        that leaves the rate at `q`, where the images are independent but for that. Images of one
        part are not, and for those it is not proven.

        **When nothing can be discovered.** With `K` parts to calibrate on no p_value is below
        `1 / (K + 1)`. So there are at least `m / (q (K + 1))` discoveries or none, and where
        `K + 1 < 1 / q` none ever. With K = 99 and q = 0.1, of 1,000 images 100 have to score above
        all that the model was calibrated on before one is discovered: filter to fewer rows, take a
        larger `q`, or fit on more parts.

        Reads the p-values, which are in memory (some 30 bytes a row), and then of the other columns
        the row groups that have a discovery.

        Args:
            q: Share of good images among what is returned, in expectation; above 0, below 1.
            columns: Of the table; all but `anomaly_map` if absent.

        Returns:
            The rows, by p_value; those of one p_value by image_score, the worst first.

        Raises:
            ConfigError: if `q` is no such share, or there is no such column.
            TableError: if a p_value is not within 0 and 1.
        """
        if not 0 < q < 1:
            raise ConfigError(f"q is {q}; give a share above 0 and below 1, as 0.1")
        names = columns if columns is not None else [n for n in self.schema.names if n != _MAP]
        unknown = [name for name in names if name not in self.schema.names]
        if unknown:
            raise ConfigError(
                f"there is no column '{unknown[0]}' among the scores, but {self.schema.names}"
            )
        largest = _largest(self, q)
        if largest is None:
            found = ds.scalar(False)  # noqa: FBT003 - Arrow's own
        else:
            found = ds.field("p_value") <= pa.scalar(largest, SCORES.field("p_value").type)
        needed = dict.fromkeys([*names, *(name for name, _ in _DISCOVERY_ORDER)])
        rows = self.to_table(columns=list(needed), filter=found)
        return rows.sort_by(list(_DISCOVERY_ORDER)).select(list(names))


def _largest(dataset: ds.Dataset, q: float) -> float | None:
    """Return the largest p_value that is a discovery, and say how it came out."""
    batches = dataset.to_batches(columns=["p_value"], filter=ds.field("p_value").is_valid())
    pieces = [batch.column(0).to_numpy(zero_copy_only=False) for batch in batches]
    tests = np.concatenate([np.empty(0, np.float32), *pieces])
    try:
        largest = largest_discovered(tests, q)
    except ValueError as error:
        raise TableError(f"column p_value of the scores: {error}") from None
    if not len(tests):
        log.warning("no row has a p_value, so that nothing can be discovered")
    elif largest is None:
        smallest = tests.min()
        log.info(
            "no discovery among %d images at q = %g: %d have the smallest p_value, %g, which takes "
            "%d discoveries",
            *(len(tests), q, (tests == smallest).sum(), smallest),
            fewest_discoveries(float(smallest), len(tests), q),
        )
    return largest


def open_table(scores: Folder, version: str | None) -> ScoreDataset:
    """Return the rows of one version; the files are listed now, and read when they are asked for.

    Args:
        scores: A score table, or a compacted one.
        version: Which; None is that of the newest run, or where no run is recorded that of the
            newest file.

    Raises:
        ConfigError: if there is no file of that version.
    """
    version = version_of(scores, version)
    files = _files(scores, version)
    if not files:
        raise ConfigError(f"version '{version}' of {scores.root} has no part")
    keys = [hive_keys(entry.name) for entry in files]
    every_key = dict.fromkeys(key for some in keys for key in some)
    # The newest file's: columns that a version has gained are null in earlier files.
    newest = max(files, key=_written)
    with scores.open(newest.name) as handle:
        schema = pq.ParquetFile(handle).schema_arrow.remove_metadata()
    for key in every_key:
        schema = schema.append(pa.field(key, pa.string()))
    plain = ds.FileSystemDataset.from_paths(
        [entry.name for entry in files],
        schema=schema,
        format=ds.ParquetFileFormat(),
        filesystem=_filesystem(scores),
        partitions=[_says(some, list(every_key)) for some in keys],
    )
    return ScoreDataset(list(plain.get_fragments()), schema, plain.format, plain.filesystem)


def version_of(scores: Folder, version: str | None) -> str:
    """Return the version that is meant; see `open_table`, also for errors."""
    versions = parts.versions(scores)
    if not versions:
        raise ConfigError(f"{scores.root} holds no part of a score table")
    if version is None:
        version = _newest(scores, versions)
    if version not in versions:
        raise ConfigError(f"{scores.root} has no version '{version}', but {versions}")
    return version


def _filesystem(scores: Folder) -> pafs.FileSystem:
    if scores.is_local:
        return pafs.SubTreeFileSystem(
            scores.path("").removeprefix("file://"), pafs.LocalFileSystem()
        )
    return pafs.PyFileSystem(_Files(scores))


def _files(scores: Folder, version: str) -> list[Entry]:
    return [e for e in scores.find(f"version={version}") if _FILE.fullmatch(e.name)]


def _newest(scores: Folder, versions: list[str]) -> str:
    recorded = [state.record for state in runs.read_runs(scores)]
    for record in reversed(recorded):
        if record.version in versions:
            return record.version
    written = {v: max(map(_written, _files(scores, v)), default=_NEVER) for v in versions}
    return max(written, key=lambda version: written[version])


_NEVER = datetime.min.replace(tzinfo=UTC)


def _written(entry: Entry) -> datetime:
    return entry.modified or _NEVER


def _says(keys: dict[str, str], every_key: list[str]) -> ds.Expression:
    """Return what the path of a file says of all of its rows; a key that it lacks is null."""
    said = []
    for key in every_key:
        value = keys.get(key, NULL_PARTITION)
        field = ds.field(key)
        said.append(field.is_null() if value == NULL_PARTITION else field == value)
    return reduce(and_, said)


class _Files(pafs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no types
    """The files of a folder, as Arrow opens them: by our own stores, with their retries."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def get_type_name(self) -> str:
        return "patchlake"

    def normalize_path(self, path: str) -> str:
        return path

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.PythonFile(self._folder.open(path), mode="r")

    open_input_stream = open_input_file

    def get_file_info(self, paths: list[str]) -> list[pafs.FileInfo]:
        entries = [self._folder.entry(path) for path in paths]
        return [pafs.FileInfo(e.name, pafs.FileType.File, size=e.size) for e in entries]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Files) and other._folder == self._folder

    def __hash__(self) -> int:
        return hash(self._folder)

    def _not_asked(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError("a dataset of scores is only read")

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = _not_asked
    delete_root_dir_contents = delete_file = move = copy_file = _not_asked
    open_output_stream = open_append_stream = _not_asked
