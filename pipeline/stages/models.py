"""A group's model between memory and the model folder."""

import io
import json
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from pipeline.index.exact import ExactSearch
from pipeline.index.shards import from_shards, to_shards
from pipeline.lake.folder import Folder
from pipeline.lake.models import FileRecord, GroupRecord, read_file, write_files
from pipeline.methods.contract import Arrays, Fitted
from pipeline.scores.heatmap import ColourScale

_STATE = "state.safetensors"
_CALIBRATION = "calibration.json"
_PROVENANCE = "provenance.parquet"


@dataclass(frozen=True)
class GroupModel:
    """What scoring needs of one group."""

    state: Arrays
    search: ExactSearch


def store_group(
    model: Folder, group: str, fitted: Fitted, scale: ColourScale, provenance: pa.Table
) -> list[FileRecord]:
    """Write a group's files; it counts only once `model.json` names them."""
    sink = io.BytesIO()
    pq.write_table(provenance, sink, compression="zstd")
    contents = {
        _STATE: save_safetensors(fitted.state),
        **to_shards(fitted.memory_bank),
        _CALIBRATION: json.dumps({"low": scale.low, "high": scale.high}).encode(),
        _PROVENANCE: sink.getvalue(),
    }
    return write_files(model, group, contents)


def load_group(model: Folder, record: GroupRecord) -> GroupModel:
    """Return a group's arrays, each file checked. Raises `ModelError`."""
    by_role = {file.role: file for file in record.files}
    shards = {role: read_file(model, f) for role, f in by_role.items() if role.endswith(".faiss")}
    state = load_safetensors(read_file(model, by_role[_STATE]))
    return GroupModel(state=state, search=ExactSearch.over(from_shards(shards)))


def load_scale(model: Folder, record: GroupRecord) -> ColourScale:
    """Return the colour scale of a group's heatmaps. Raises `ModelError`."""
    file = next(file for file in record.files if file.role == _CALIBRATION)
    return ColourScale(**json.loads(read_file(model, file)))
