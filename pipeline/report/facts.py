"""What the records say: of the runs that made the rows, of the models, and of their suspects."""

import logging
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError, ModelError, StorageError
from patchlake.pipeline.groups.suspects import as_listed
from patchlake.pipeline.model_store.models import Manifest, read_manifest
from patchlake.pipeline.record.runs import RunRecord
from patchlake.pipeline.shown import without_secrets
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.owned import parquet_table, reading

log = logging.getLogger(__name__)

_SUSPECTS_FILE = "suspects.parquet"
# Of suspects that are listed.
_LISTED = 60
# Bytes of a picture; one has some 5 KB.
_LARGEST = 100_000


@dataclass(frozen=True)
class Suspect:
    """A training image that looks anomalous to its model."""

    group: str
    image_id: str
    score: float
    deviation: float
    left_out: bool
    # A small JPEG as a `data:` URI.
    picture: str | None


@dataclass(frozen=True)
class Model:
    """A model that the rows are by, as its folder says now."""

    root: str
    folder: Folder | None
    # None, with a reason: the folder cannot be opened.
    manifest: Manifest | None
    reason: str | None = None
    suspects: Sequence[Suspect] = ()
    # Of all groups; more than are listed.
    suspect_images: int = 0
    no_suspects: str | None = None


@dataclass(frozen=True)
class Facts:
    """What the records say of the rows of one version."""

    scores: str
    version: str
    # The runs that wrote rows of the version, the newest last.
    runs: Sequence[RunRecord]
    models: Sequence[Model]

    @property
    def newest(self) -> RunRecord | None:
        """The newest run; None where none is recorded, as in a compacted table."""
        return self.runs[-1] if self.runs else None

    @property
    def rate(self) -> float | None:
        """Share of good images that may be anomalous, as the newest run was asked for."""
        newest = self.newest
        return None if newest is None else newest.settings.verdict.false_alarm_rate


def read_facts(
    scores: Folder, version: str, runs: Sequence[RunRecord], storage: StorageSettings
) -> Facts:
    """Return what the records say; a model that cannot be opened says why."""
    of_version = [run for run in runs if (run.verb, run.version) == ("score", version)]
    named = of_version[-1].models if of_version else ()
    models = [_model(root, storage) for root in named]
    return Facts(scores.root, version, of_version, models)


def _model(root: str, storage: StorageSettings) -> Model:
    try:
        folder = Folder.at(root, storage)
        manifest = read_manifest(folder)
    except (ConfigError, ModelError, StorageError, OSError) as error:
        return Model(root, None, None, without_secrets(str(error)))
    try:
        with reading(folder.path(_SUSPECTS_FILE), "fit again", ModelError):
            table = parquet_table(folder.read(_SUSPECTS_FILE))
            table = as_listed(table)
    except FileNotFoundError:
        return Model(root, folder, manifest, no_suspects="the model has no list of suspects")
    except (ConfigError, ModelError, StorageError, OSError) as error:
        return Model(root, folder, manifest, no_suspects=without_secrets(str(error)))
    return Model(root, folder, manifest, None, _listed(table), _suspicious(table).num_rows)


def _suspicious(table: pa.Table) -> pa.Table:
    return table.filter(pc.or_(table.column("is_suspect"), table.column("left_out")))


def _listed(table: pa.Table) -> list[Suspect]:
    order = [("deviation", "descending"), ("group", "ascending"), ("image_id", "ascending")]
    order += [("source_path", "ascending"), ("source_row", "ascending")]
    first = _suspicious(table).sort_by(order).slice(0, _LISTED).to_pylist()
    names = [name for name in Suspect.__dataclass_fields__ if name != "picture"]
    return [
        Suspect(**{name: row[name] for name in names}, picture=_as_uri(row["picture"]))
        for row in first
    ]


def _as_uri(jpeg: bytes | None) -> str | None:
    if jpeg is None or len(jpeg) > _LARGEST:
        return None
    return f"data:image/jpeg;base64,{b64encode(jpeg).decode()}"
