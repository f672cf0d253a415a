"""The commit: a part is found under its name, and replaces what its file's older contents gave."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.config import HeatmapStore
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.reading.fragments import Fragment, Fragments
from patchlake.pipeline.score_table import heatmaps, parts
from patchlake.pipeline.storage.folder import Folder

NONE = pa.array([], pa.string())
TABLE = pa.table(
    {"image_id": ["a", "b"], "source_path": ["x"] * 2, "source_row": [0, 1], "group": ["x"] * 2}
)


@pytest.fixture(params=["disk", "memory"])
def scores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "disk":
        yield Folder.at(str(tmp_path))
        return
    memory = Folder.at(f"memory://{tmp_path.name}")
    yield memory
    memory.remove("", recursive=True)


@pytest.mark.parametrize(
    ("digest", "version"),
    [
        ("3f0c9d5e7a1b2c", "3f0c9d5e7a1b"),
        ("e23456789012ff", "e23456789012"),
        ("12e4e678901299", "12e4e6789012"),
        ("12345678901e99", "12345678901e"),
        # What DuckDB, polars, pyarrow or Spark take for a number.
        ("000123456789ff", "a00012345678"),
        ("123e45678901ff", "a123e4567890"),
        ("12345678901fff", "a12345678901"),
        ("1234567e8901dd", "a1234567e890"),
        ("123e4567890ddd", "a123e4567890"),
    ],
)
def test_a_version_is_the_beginning_of_a_digest_and_no_number(digest: str, version: str):
    assert parts.version_name(digest) == version


@given(st.text("0123456789abcdef", min_size=64, max_size=64))
def test_no_version_is_a_number_to_python(digest: str):
    with pytest.raises(ValueError, match="could not convert"):
        float(parts.version_name(digest).rstrip("df"))


def _fragment(path: str, *, start: int = 0, version: str = "1") -> Fragment:
    return Fragment(path, (0,), start, "x", 10, version).keyed("settings")


def _put(scores: Folder, *fragments: Fragment, store: HeatmapStore = "files") -> None:
    for fragment in fragments:
        if store == "files":
            heatmaps.put_file(scores, fragment.key, 0, b"jpg")
        else:
            heatmaps.put_packed(scores, fragment.key, {0: b"jpg"})
        parts.put_part(scores, "v1", fragment, TABLE)


def test_a_part_is_committed_under_its_hive_partitions(scores):
    fragment = _fragment("dt=2026-11-23/plain/g=a%2Fb/x.parquet")
    assert parts.committed(scores, "v1") == {}
    _put(scores, fragment)
    name = parts.part_name("v1", fragment)
    assert name.startswith("version=v1/dt=2026-11-23/g=a%2Fb/part-")
    assert parts.committed(scores, "v1") == {fragment.key: name}
    assert parts.committed(scores, "v") == {}
    assert pq.read_table(pa.BufferReader(scores.read(name))).equals(TABLE)


def test_a_fragment_that_is_done_twice_is_there_once(scores):
    fragment = _fragment("x.parquet")
    _put(scores, fragment)
    once = {entry.name: scores.read(entry.name) for entry in scores.find()}
    _put(scores, fragment)
    assert {entry.name: scores.read(entry.name) for entry in scores.find()} == once


def test_parts_differ_by_path_and_by_key():
    places = ["a.parquet", "b.parquet", "dt=1/a.parquet"]
    fragments = [_fragment(path, start=start) for path in places for start in (0, 10)]
    assert len({parts.part_name("v1", fragment) for fragment in fragments}) == len(fragments)


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ("dt=1/version=2", "dt=1/source_version=2"),
        ("Status=a/group=007/line=L1", "source_Status=a/source_group=007/line=L1"),
        ("image%5Fscore=1/model_id=b", "source_image%5Fscore=1/source_model_id=b"),
        # The names that they get may be taken, too, and a key may come twice.
        ("path=1/row=2/source_path=a", "path=1/row=2/source_source_path=a"),
        ("status=1/source_status=2", "source_status=1/source_source_status=2"),
        ("dt=1/DT=2", "dt=1/source_DT=2"),
        ("label=good/split=test", "label=good/split=test"),
    ],
)
def test_a_key_that_would_hide_a_column_of_the_part_is_renamed(keys: str, kept: str):
    name = parts.part_name("v1", _fragment(f"{keys}/a.parquet"))
    assert name.startswith(f"version=v1/{kept}/part-")


def test_a_key_that_is_passed_through_is_a_column(scores):
    fragment = _fragment("line=1/dt=2/a.parquet")
    parts.put_part(scores, "v1", fragment, TABLE.append_column("line", [["1"] * len(TABLE)]))
    [name] = parts.committed(scores, "v1").values()
    assert name.startswith("version=v1/source_line=1/dt=2/part-")


@pytest.mark.parametrize("store", ["files", "packed"])
def test_older_parts_of_a_changed_file_go_when_all_new_ones_are_there(scores, store):
    old = [_fragment("a.parquet", start=start) for start in (0, 10)]
    new = [_fragment("a.parquet", start=start, version="2") for start in (0, 10, 20)]
    unchanged, vanished = _fragment("b.parquet"), _fragment("gone.parquet")
    plan = Fragments.of([*new, unchanged])
    _put(scores, *old, unchanged, vanished, store=store)

    for fragment in new[:2]:
        _put(scores, fragment, store=store)
        assert parts.superseded(plan, parts.committed(scores, "v1"), NONE) == []
    # What has expired needs no part.
    expired = parts.superseded(plan, parts.committed(scores, "v1"), pa.array([new[2].key]))
    _put(scores, new[2], store=store)
    removed = parts.superseded(plan, parts.committed(scores, "v1"), NONE)
    assert expired == removed
    parts.remove(scores, removed)

    assert sorted(removed) == sorted(parts.part_name("v1", fragment) for fragment in old)
    kept = [*new, unchanged, vanished]
    assert parts.committed(scores, "v1") == {f.key: parts.part_name("v1", f) for f in kept}
    left = {entry.name for entry in scores.find("_heatmaps")}
    assert left == {heatmaps.heatmap_name(f.key, 0, store).split("#")[0] for f in kept}
    assert parts.superseded(plan, parts.committed(scores, "v1"), NONE) == []


def test_a_score_table_belongs_to_one_images_folder(scores, tmp_path):
    ours, other = Folder.at(str(tmp_path / "images")), Folder.at("memory://images")
    parts.bind_source(scores, ours)
    parts.bind_source(scores, Folder.at(f"{tmp_path}/other/../images/"))
    with pytest.raises(ConfigError, match=f"of {ours.root}, not of {other.root}; choose another"):
        parts.bind_source(scores, other)
    assert parts.committed(scores, "v1") == {}
