"""What there is to ingest: three layouts, what is left out and why, and the cut into files."""

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError, TableError
from pipeline.lake import sources
from pipeline.lake.folder import Folder
from pipeline.lake.sources import Listing, SourceImage


@pytest.fixture
def root(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path / "source"))


def _write(root: Folder, *names: str) -> None:
    for name in names:
        root.write(name, name.encode())


def _found(listing: Listing, *fields: str) -> list[tuple[object, ...]]:
    return [tuple(getattr(image, field) for field in fields) for image in listing.images]


# --- MVTec layout and plain folders


CATEGORY = ["train/good/0.png", "test/good/0.png", "test/crack/0.png", "test/crack/1.png"]
MASK = "ground_truth/crack/0_mask.png"


def test_one_mvtec_category_is_a_group_named_after_its_folder(root):
    _write(root, *CATEGORY, MASK)
    assert sources.guess_layout(root.root) == "mvtec"
    listing = sources.list_images(root.root, "mvtec", None)
    assert _found(listing, "name", "group", "split", "label", "mask") == [
        ("test/crack/0.png", "source", "test", "crack", MASK),
        ("test/crack/1.png", "source", "test", "crack", None),
        ("test/good/0.png", "source", "test", "good", None),
        ("train/good/0.png", "source", "train", "good", None),
    ]
    assert listing.skipped == []
    first = listing.images[0]
    assert first.image_id == "test/crack/0.png"
    assert first.uri == f"{root.root}/test/crack/0.png"
    assert (first.bytes, first.version) == (16, root.entry(first.name).version)
    assert Folder(first.folder).read(first.mask) == MASK.encode()


def test_many_mvtec_categories_are_groups_named_after_their_folders(root):
    below = ["tile", "wood/oak"]
    _write(root, *(f"{above}/{name}" for above in below for name in [*CATEGORY, MASK]))
    assert sources.guess_layout(root.root) == "mvtec"
    listing = sources.list_images(root.root, "mvtec", None)
    assert len(listing.images) == 8
    for above in below:
        images = [image for image in listing.images if image.group == above]
        assert [image.name for image in images] == sorted(f"{above}/{name}" for name in CATEGORY)
        assert [image.mask for image in images] == [f"{above}/{MASK}", None, None, None]
    named = sources.list_images(root.root, "mvtec", "one")
    assert {image.group for image in named.images} == {"one"}


def test_files_outside_the_mvtec_layout_are_listed_with_the_reason(root):
    _write(root, *CATEGORY, MASK, "license.txt", "train/readme.txt", "val/good/0.png")
    listing = sources.list_images(root.root, "mvtec", None)
    assert [image.name for image in listing.images] == sorted(CATEGORY)
    assert listing.skipped == [
        f"{root.root}/{name}: not in train/good or test/TYPE"
        for name in ("license.txt", "train/readme.txt", "val/good/0.png")
    ]


@pytest.mark.parametrize(("group", "named"), [(None, "source"), ("line 4", "line 4")])
def test_a_plain_folder_is_one_group_without_labels(root, group, named):
    _write(root, "b.jpg", "a/c.png", "train/bad/x.png")
    assert sources.guess_layout(root.root) == "folder"
    listing = sources.list_images(root.root, "folder", group)
    assert _found(listing, "image_id", "group", "split", "label", "mask") == [
        (name, named, None, None, None) for name in ("a/c.png", "b.jpg", "train/bad/x.png")
    ]


@pytest.mark.parametrize("layout", ["mvtec", "folder"])
def test_an_empty_folder_is_refused_by_name(root, layout):
    for call in (sources.guess_layout, lambda uri: sources.list_images(uri, layout, None)):
        with pytest.raises(ConfigError, match=f"{root.root} holds no file"):
            call(root.root)


# --- manifests


@pytest.fixture(params=["csv", "parquet"])
def manifest(request: pytest.FixtureRequest, root: Folder):
    """Write rows as a manifest beside the images; return its path."""

    def write(rows: list[Mapping[str, str | None]]) -> str:
        name = f"line4.{request.param}"
        columns = [*dict.fromkeys(column for row in rows for column in row)]
        if request.param == "csv":
            lines = [",".join(row.get(column) or "" for column in columns) for row in rows]
            root.write(name, "\n".join([",".join(columns), *lines]).encode())
        else:
            sink = io.BytesIO()
            pq.write_table(
                pa.Table.from_pylist([{c: r.get(c) for c in columns} for r in rows]), sink
            )
            root.write(name, sink.getvalue())
        assert sources.guess_layout(root.path(name)) == "csv"
        return root.path(name)

    return write


def test_a_manifest_names_images_relative_to_itself(root, manifest):
    _write(root, "a.png", "sub/b.png", "masks/b.png")
    full = {"image_id": "007", "group": "tile", "split": "test", "label": "crack"}
    path = manifest([{"uri": "a.png"}, {"uri": "sub/b.png", "mask_uri": "masks/b.png", **full}])
    listing = sources.list_images(path, "csv", None)
    # image_id stays text: 007 is not 7. The manifest's name stands for a group that is not given.
    assert _found(listing, "image_id", "group", "split", "label", "mask") == [
        ("a.png", "line4", None, None, None),
        ("007", "tile", "test", "crack", "masks/b.png"),
    ]
    assert [image.uri for image in listing.images] == [root.path("a.png"), root.path("sub/b.png")]
    assert [Folder(image.folder).read(image.name) for image in listing.images] == [
        b"a.png",
        b"sub/b.png",
    ]
    assert _found(sources.list_images(path, "csv", "g"), "group") == [("g",), ("tile",)]


def test_an_absolute_uri_is_read_below_a_prefix(root, manifest, tmp_path):
    elsewhere = Folder.at(str(tmp_path / "elsewhere"))
    _write(elsewhere, "day/a.png", "masks/a.png")
    _write(root, "b.png")
    absolute = {"uri": elsewhere.path("day/a.png"), "mask_uri": elsewhere.path("masks/a.png")}
    path = manifest([absolute, {"uri": root.path("b.png")}])
    listing = sources.list_images(path, "csv", None, [elsewhere.root])
    first, second = listing.images
    assert (first.uri, second.uri) == (absolute["uri"], root.path("b.png"))
    assert Folder(first.folder).read(first.name) == b"day/a.png"
    assert Folder(first.folder).read(first.mask) == b"masks/a.png"


@pytest.mark.parametrize("column", ["uri", "mask_uri"])
@pytest.mark.parametrize(
    "outside",
    [
        "{tmp}/secret/a.png",
        "{tmp}/allowed/../secret/a.png",
        "{tmp}/allowedtoo/a.png",
        "{tmp}/allowed",
        "../secret/a.png",
        "sub/../../secret/a.png",
        "file://{tmp}/secret/a.png",
        "memory://secret/a.png",
    ],
)
def test_a_uri_outside_the_prefixes_is_refused(root, manifest, tmp_path, column, outside):
    for folder in ("secret", "allowed", "allowedtoo"):
        _write(Folder.at(f"{tmp_path}/{folder}"), "a.png")
    _write(root, "in.png")
    uri = outside.format(tmp=tmp_path)
    path = manifest([{"uri": "in.png", column: uri}])
    with pytest.raises(ConfigError, match=r"is outside .*--set image.uri_prefixes") as raised:
        sources.list_images(path, "csv", None, [str(tmp_path / "allowed")])
    assert f"'{uri}'" in str(raised.value)


def test_what_a_manifest_names_but_is_not_there_is_listed(root, manifest):
    _write(root, "a.png", "folder/b.png")
    names = ["a.png", "gone.png", "gone/too.png", "folder"]
    path = manifest([*({"uri": name, "label": "x"} for name in names), {"uri": None, "label": "y"}])
    listing = sources.list_images(path, "csv", None)
    assert [image.name for image in listing.images] == ["a.png"]
    missing = [f"{name}: does not exist" for name in names[1:]]
    assert listing.skipped == [*missing, f"{path}: row 4 has no uri"]


def test_captured_at_of_a_parquet_manifest_comes_along(root):
    at = datetime(2026, 11, 23, 1, 2, 3, 456789, tzinfo=UTC)
    _write(root, "a.png")
    sink = io.BytesIO()
    pq.write_table(pa.table({"uri": ["a.png"], "captured_at": [at]}), sink)
    root.write("m.parquet", sink.getvalue())
    [image] = sources.list_images(root.path("m.parquet"), "csv", None).images
    assert image.captured_at == at


def test_captured_at_of_a_csv_manifest_comes_along(root):
    _write(root, "a.png")
    root.write("m.csv", b"uri,captured_at\na.png,2026-11-23T01:02:03Z\n")
    [image] = sources.list_images(root.path("m.csv"), "csv", None).images
    assert image.captured_at == datetime(2026, 11, 23, 1, 2, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("content", "fault", "said"),
    [
        (b"path,label\na.png,x\n", TableError, r"needs column 'uri', it has \['path', 'label'\]"),
        (b"uri,label\na.png\n", TableError, "cannot be read"),
        (b"", TableError, "cannot be read"),
        (None, ConfigError, "does not exist"),
    ],
    ids=["no uri", "ragged", "empty", "absent"],
)
def test_a_manifest_that_cannot_be_read_is_named(root, content, fault, said):
    if content is not None:
        root.write("m.csv", content)
    with pytest.raises(fault, match=rf"m.csv.* {said}"):
        sources.list_images(root.path("m.csv"), "csv", None)


# --- shards


def _image(number: int, group: str, size: int) -> SourceImage:
    return SourceImage(str(number), "/", f"{number}.png", "1", size, group)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", "ä/.."]), st.integers(0, 120))),
    st.integers(1, 200),
)
def test_shards_hold_every_image_once_by_group_and_within_the_size(described, shard_bytes):
    images = [_image(i, group, size) for i, (group, size) in enumerate(described)]
    shards = list(sources.shards(images, shard_bytes))
    assert sorted((i for shard in shards for i in shard), key=images.index) == images
    for group in {image.group for image in images}:
        of_group = [shard for shard in shards if shard[0].group == group]
        assert [i for shard in of_group for i in shard] == [i for i in images if i.group == group]
        sizes = [sum(image.bytes for image in shard) for shard in of_group]
        for shard, size in zip(of_group, sizes, strict=True):
            assert size <= shard_bytes or len(shard) == 1
        # No shard ends before it must: the next image did not fit.
        for size, following in zip(sizes, of_group[1:], strict=False):
            assert size + following[0].bytes > shard_bytes
