"""Which rows of a lake are images that a model was trained on: by place, by content, by old ids."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from patchlake.pipeline.config import ColumnSettings, ImageSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.groups.membership import Known, Membership, with_roots
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.lake.trained import is_known, read_trained
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import PROVENANCE, TRAINED, TRAINING_IMAGES

FRAGMENT = Fragment("b.parquet", (0,), 0, "p", 4, "v2")


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def image(**other: object) -> dict[str, object]:
    return {
        "image_id": "0001.png",
        "source_path": "a.parquet",
        "source_row": 0,
        "source_version": "v1",
        "joined": 0,
        "sha256": sha(b"one"),
    } | other


def members(*images: dict[str, object]) -> Membership:
    return Membership(pa.Table.from_pylist(list(images), TRAINING_IMAGES))


def source(root: Path) -> Source:
    settings = ImageSettings(uri_prefixes=(str(root),))
    return Source(Folder(str(root)), ColumnSettings(), settings, Geometry((8, 8), None))


def rows(*given: tuple[str, bytes | None, str | None]) -> pa.Table:
    names, contents, uris = zip(*given, strict=True)
    return pa.table(
        {
            "image_id": pa.array(names, pa.string()),
            "image": pa.array(contents, pa.binary()),
            "uri": pa.array(uris, pa.string()),
            "source_row": pa.array(range(len(given)), pa.int64()),
        }
    )


def test_an_id_that_comes_again_is_known_by_its_content_alone(tmp_path: Path):
    known = members(image()).known(["lake"], "lake")
    asked = rows(
        ("0001.png", b"another", None), ("0001.png", b"one", None), ("moved.png", b"one", None)
    )
    assert is_known(known, source(tmp_path), FRAGMENT, asked).tolist() == [False, True, True]


def test_a_place_counts_in_its_own_lake_and_version():
    one = members(image(source_path="b.parquet", source_version="v2", source_row=3))
    assert one.known(["lake"], "lake").at("b.parquet", "v2") == {3}
    assert one.known(["lake"], "lake").at("b.parquet", "v3") == frozenset()
    assert one.known(["elsewhere"], "lake").at("b.parquet", "v2") == frozenset()
    later = members(image(source_path="b.parquet", source_version="v2", joined=1))
    assert later.known(["elsewhere", "lake"], "lake").at("b.parquet", "v2") == {0}


def test_a_model_of_before_checksums_knows_by_id(tmp_path: Path):
    table = members(image()).table.drop_columns("sha256")
    known = Membership.stored(table).known(["lake"], "lake")
    asked = rows(("0001.png", b"another", None), ("0002.png", b"one", None))
    assert is_known(known, source(tmp_path), FRAGMENT, asked).tolist() == [True, False]


def test_a_file_behind_a_uri_is_read(tmp_path: Path):
    (tmp_path / "one").write_bytes(b"one")
    known = members(image()).known(["lake"], "lake")
    asked = rows(
        ("0001.png", None, str(tmp_path / "one")),
        ("0001.png", None, str(tmp_path / "gone")),
        ("other", None, str(tmp_path / "one")),
    )
    assert is_known(known, source(tmp_path), FRAGMENT, asked).tolist() == [True, False, True]


def test_images_of_one_place_and_two_versions_keep_their_bank_rows():
    both = members(image(), image(source_version="v2", sha256=sha(b"two"), joined=1))
    origin = np.array([[0, 1, 2], [1, 3, 4], [0, 5, 6]])
    provenance = both.provenance(origin)
    assert provenance.schema == PROVENANCE
    assert both.origin(provenance).tolist() == origin.tolist()
    old = members(image()).provenance(origin[[0, 2]]).drop_columns("source_version")
    assert members(image()).origin(old).tolist() == origin[[0, 2]].tolist()


def test_a_damaged_list_is_named_with_the_way_out(tmp_path: Path):
    scores = Folder(str(tmp_path))
    assert read_trained(scores, "abc", "lake") is None
    table = with_roots(members(image()).table, ["lake"]).select(TRAINED.names).cast(TRAINED)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, TRAINED) as writer:
        writer.write_table(table)
    scores.write("_models/abc.arrow", sink.getvalue().to_pybytes())
    assert read_trained(scores, "abc", "lake") == Known.of(table, "lake")
    scores.write("_models/abc.arrow", b"ARROW1 and nothing else")
    with pytest.raises(ConfigError, match=r"_models/abc\.arrow is damaged .* remove it"):
        read_trained(scores, "abc", "lake")
