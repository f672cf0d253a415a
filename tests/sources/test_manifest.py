"""Manifests: what rows name, what is left out and why, and headers that nearly match."""

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.sources.manifest import is_manifest, list_manifest
from patchlake.pipeline.sources.sources import Arrangement, Listing
from patchlake.pipeline.storage.folder import Folder, split_uri


@pytest.fixture
def root(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path / "source"))


@pytest.fixture
def memory_folder(tmp_path: Path) -> Folder:
    return Folder.at(f"memory://{tmp_path.name}")


def _write(root: Folder, *names: str) -> None:
    for name in names:
        root.write(name, name.encode())


def _found(listing: Listing, *fields: str) -> list[tuple[object, ...]]:
    return [tuple(getattr(image, field) for field in fields) for image in listing.images]


def _listed(path: str, group: str | None = None, prefixes: tuple[str, ...] = ()) -> Listing:
    return list_manifest(split_uri(path), Arrangement(group=group), prefixes)


def _left_out(listing: Listing) -> list[tuple[str, str]]:
    return [(one.why, one.line) for one in listing.skipped]


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
        assert is_manifest(root.path(name))
        return root.path(name)

    return write


def test_a_manifest_names_images_relative_to_itself(root, manifest):
    _write(root, "a.png", "sub/b.png", "masks/b.png")
    full = {"image_id": "007", "group": "tile", "split": "test", "label": "crack"}
    path = manifest([{"uri": "a.png"}, {"uri": "sub/b.png", "mask_uri": "masks/b.png", **full}])
    listing = _listed(path)
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
    assert _found(_listed(path, "g"), "group") == [("g",), ("tile",)]


def test_an_absolute_uri_is_read_below_a_prefix(root, manifest, tmp_path):
    elsewhere = Folder.at(str(tmp_path / "elsewhere"))
    _write(elsewhere, "day/a.png", "masks/a.png")
    _write(root, "b.png")
    absolute = {"uri": elsewhere.path("day/a.png"), "mask_uri": elsewhere.path("masks/a.png")}
    path = manifest([absolute, {"uri": root.path("b.png")}])
    listing = _listed(path, None, (elsewhere.root,))
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
        _listed(path, None, (str(tmp_path / "allowed"),))
    assert f"'{uri}'" in str(raised.value)


def test_what_a_manifest_names_but_is_not_there_is_listed(root, manifest):
    _write(root, "a.png", "folder/b.png")
    names = ["a.png", "gone.png", "gone/too.png", "folder"]
    path = manifest([*({"uri": name, "label": "x"} for name in names), {"uri": None, "label": "y"}])
    listing = _listed(path)
    assert [image.name for image in listing.images] == ["a.png"]
    missing = [("missing", f"{name}: does not exist") for name in names[1:]]
    last = ("a row without uri", f"{path}: row 4 has no uri")
    assert _left_out(listing) == [*missing, last]


def test_captured_at_of_a_parquet_manifest_comes_along(root):
    at = datetime(2026, 11, 23, 1, 2, 3, 456789, tzinfo=UTC)
    _write(root, "a.png")
    sink = io.BytesIO()
    pq.write_table(pa.table({"uri": ["a.png"], "captured_at": [at]}), sink)
    root.write("m.parquet", sink.getvalue())
    [image] = _listed(root.path("m.parquet")).images
    assert image.captured_at == at


@pytest.mark.parametrize(
    ("part_ids", "found"),
    [
        (["P-0007", "", None], ["P-0007", None, None]),
        # As a lake's: numbers have one spelling as text.
        (pa.array([7, None, 70], pa.int32()), ["7", None, "70"]),
        (pa.array([b"x", b"y", None]).dictionary_encode(), ["x", "y", None]),
    ],
)
def test_part_id_of_a_parquet_manifest_comes_along(root, part_ids, found):
    _write(root, "a.png", "b.png", "c.png")
    table = pa.table({"uri": ["a.png", "b.png", "c.png"], "part_id": part_ids})
    assert _found(_listed(_parquet(root, table)), "part_id") == [(one,) for one in found]


def test_part_id_of_a_csv_manifest_comes_along(root):
    _write(root, "a.png", "b.png")
    root.write("m.csv", b"uri;part_id\na.png;007\nb.png;\n")
    assert _found(_listed(root.path("m.csv")), "part_id") == [("007",), (None,)]


def test_captured_at_of_a_csv_manifest_comes_along(root):
    _write(root, "a.png")
    root.write("m.csv", b"uri,captured_at\na.png,2026-11-23T01:02:03Z\n")
    [image] = _listed(root.path("m.csv")).images
    assert image.captured_at == datetime(2026, 11, 23, 1, 2, 3, tzinfo=UTC)


@pytest.mark.parametrize(
    ("content", "fault", "said"),
    [
        (b"where,label\na.png,x\n", TableError, r"needs column 'uri', it has \['where', 'label'\]"),
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
        _listed(root.path("m.csv"))


@pytest.mark.parametrize(
    ("header", "meant"),
    [
        ("Label", "label"),
        (" label", "label"),
        ("lable", "label"),
        ("GROUP", "group"),
        ("Image ID", "image_id"),
        ("image-id", "image_id"),
        ("mask", "mask_uri"),
        ("captured at", "captured_at"),
        ("Part ID", "part_id"),
        ("partid", "part_id"),
        ("splits", "split"),
    ],
)
def test_a_header_that_is_nearly_one_of_ours_is_not_passed_over(root, header, meant):
    _write(root, "a.png")
    root.write("m.csv", f"uri,{header}\na.png,x\n".encode())
    with pytest.raises(TableError, match=f"is not read; if it is '{meant}', rename it"):
        _listed(root.path("m.csv"))


def test_other_columns_are_said(root):
    _write(root, "a.png")
    root.write("m.csv", b"uri,shift,operator,plant_id\na.png,2,kim,south\n")
    listing = _listed(root.path("m.csv"))
    assert listing.notes == [
        f"{root.path('m.csv')}: columns that are not read: ['shift', 'operator', 'plant_id']"
    ]


@pytest.mark.parametrize(
    "content",
    [
        "uri,image_id,label\na.png,007,0\n",
        "uri;image_id;label\r\na.png;007;0\r\n",
        "uri\timage_id\tlabel\na.png\t007\t0\n",
        '\ufeffuri,image_id,label\n"a.png","007","0"\n',
    ],
    ids=["commas", "semicolons", "tabs", "byte order mark"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_cells_are_text_whatever_the_dialect(root, content, encoding):
    _write(root, "a.png")
    root.write("m.CSV", content.encode(encoding))
    listing = _listed(root.path("m.CSV"))
    assert _found(listing, "name", "image_id", "label") == [("a.png", "007", "0")]


def test_what_is_no_text_is_refused(root):
    root.write("m.csv", "uri,label\na.png,Stra\xdfe\n".encode("latin-1"))
    with pytest.raises(TableError, match=r"m.csv cannot be read: .*utf-8"):
        _listed(root.path("m.csv"))


def test_a_cell_that_is_no_time_is_said_and_one_without_a_zone_is_utc(root):
    _write(root, "a.png", "b.png")
    root.write("m.csv", b"uri,captured_at\na.png,yesterday\nb.png,2026-11-23 01:02:03\n")
    listing = _listed(root.path("m.csv"))
    assert _found(listing, "captured_at") == [
        (None,),
        (datetime(2026, 11, 23, 1, 2, 3, tzinfo=UTC),),
    ]
    assert "captured_at of 'a.png' is 'yesterday', which is no time" in listing.notes[0]


def test_a_mask_that_is_not_there_and_a_file_named_twice_are_said(root):
    _write(root, "a.png")
    root.write("m.csv", b"uri,mask_uri\na.png,gone.png\na.png,\n")
    listing = _listed(root.path("m.csv"))
    assert _found(listing, "name", "mask") == [("a.png", None)]
    assert "the mask 'gone.png' of 'a.png' does not exist" in listing.notes[0]
    assert _left_out(listing) == [
        ("named twice", f"{root.path('m.csv')}: row 1 names 'a.png' again")
    ]


@pytest.mark.parametrize(
    "other", ["./a.png", "x/../a.png", "x/./../a.png", ".//a.png", "{root}/./a.png"]
)
def test_two_spellings_of_a_path_are_one_file(root, manifest, other):
    _write(root, "a.png", "x/b.png")
    path = manifest([{"uri": other.format(root=root.root), "label": "good"}, {"uri": "a.png"}])
    listing = _listed(path)
    assert [image.uri for image in listing.images] == [root.path("a.png")]
    assert listing.images[0].image_id in ("a.png", root.path("a.png"))
    assert _left_out(listing) == [("named twice", f"{path}: row 1 names 'a.png' again")]


def test_spellings_of_a_path_that_is_not_on_a_disk(memory_folder):
    _write(memory_folder, "a.png")
    memory_folder.write("m.csv", b"uri\n./a.png\nx/../a.png\n")
    listing = _listed(memory_folder.path("m.csv"))
    assert _found(listing, "name", "image_id") == [("a.png", "a.png")]


def test_what_a_link_leads_to_is_asked_before_dots(root, tmp_path):
    """`x/..` is where the link leads, and that is outside."""
    _write(root, "a.png")
    _write(Folder.at(str(tmp_path / "other")), "a.png", "x/b.png")
    (tmp_path / "source/x").symlink_to(tmp_path / "other/x")
    (tmp_path / "alias").symlink_to(tmp_path / "source")
    root.write("m.csv", b"uri\nx/../a.png\n")
    with pytest.raises(ConfigError, match=r"'x/\.\./a\.png' is outside"):
        _listed(root.path("m.csv"))
    _write(root, "y/b.png")
    root.write("m.csv", b"uri\ny/../a.png\n")
    assert _found(_listed(str(tmp_path / "alias/m.csv")), "name") == [("a.png",)]


@pytest.mark.parametrize("name", ["uri", "label", "captured_at"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_that_is_there_twice_is_refused(root, name, ending):
    columns = [*(("uri",) if name != "uri" else ()), name, "shift", "shift", name]
    if ending == "csv":
        root.write("m.csv", f"{','.join(columns)}\n{','.join(['a.png'] * len(columns))}\n".encode())
    else:
        cells = [pa.array(["a.png"])] * len(columns)
        _parquet(root, pa.Table.from_arrays(cells, names=columns))
    with pytest.raises(TableError, match=rf"m\.{ending}: column '{name}' is there 2 times"):
        _listed(root.path(f"m.{ending}"))


def _parquet(root: Folder, table: pa.Table) -> str:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    root.write("m.parquet", sink.getvalue())
    return root.path("m.parquet")


CLASSES = {b"huggingface": b'{"info":{"features":{"label":{"names":["good","crack"]}}}}'}


def test_cells_of_a_parquet_manifest_are_the_text_that_a_lake_makes_of_them(root):
    _write(root, "a.png", "b.png")
    table = pa.table(
        {
            "uri": pa.array([b"a.png", b"b.png"]),
            "image_id": pa.array([7.0, float("nan")]),
            "group": pa.array(["tile", "tile"]).dictionary_encode(),
            "split": pa.array([b"test", None]),
            "label": pa.array([1, -1]),
            # Of no concern, and of types that Python cannot hold.
            "shot": pa.array([2**62, None], pa.timestamp("us", "Mars/Base")),
            "label.x": pa.array([2**62, None], pa.timestamp("ns", "Mars/Base")),
        }
    )
    listing = _listed(_parquet(root, table.replace_schema_metadata(CLASSES)))
    assert _found(listing, "image_id", "group", "split", "label") == [
        ("7", "tile", "test", "crack"),
        ("b.png", "tile", None, None),
    ]
    assert listing.notes == [
        f"{root.path('m.parquet')}: columns that are not read: ['shot', 'label.x']"
    ]


@pytest.mark.parametrize(
    "cell",
    [["good"], {"name": "good"}, 0.5, Decimal("1.50"), datetime(2026, 1, 1, tzinfo=UTC), b"\xff"],
    ids=str,
)
def test_cells_without_one_spelling_are_refused(root, cell):
    _write(root, "a.png")
    path = _parquet(root, pa.table({"uri": ["a.png"], "label": [cell]}))
    with pytest.raises(
        TableError, match=r"m\.parquet: column 'label' .*write it as text"
    ) as raised:
        _listed(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("unit", ["ms", "us"])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin", "Mars/Base"])
def test_times_beyond_those_of_python_are_said_and_zones_are_how_they_are_shown(root, unit, zone):
    _write(root, "a.png", "b.png", "c.png")
    ticks = [10**10 * {"ms": 10**3, "us": 10**6}[unit], 2**58, -(2**58)]
    kind = pa.timestamp(unit, zone)
    table = pa.table({"uri": ["a.png", "b.png", "c.png"], "captured_at": pa.array(ticks, kind)})
    listing = _listed(_parquet(root, table))
    at = datetime(2286, 11, 20, 17, 46, 40, tzinfo=UTC)
    assert _found(listing, "captured_at") == [(at,), (None,), (None,)]
    assert "captured_at of 'b.png' is '288230376151711744 " in listing.notes[0]
    assert "captured_at of 'c.png' is '-288230376151711744 " in listing.notes[1]


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64(), pa.string(), pa.timestamp("ns")])
def test_a_date_is_a_time(root, kind):
    _write(root, "a.png")
    day = pa.array(["2026-11-23"]).cast(kind)
    listing = _listed(_parquet(root, pa.table({"uri": ["a.png"], "captured_at": day})))
    assert _found(listing, "captured_at") == [(datetime(2026, 11, 23, tzinfo=UTC),)]


@pytest.mark.parametrize("text", ["9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00"])
def test_a_time_that_has_no_utc_is_said(root, text):
    _write(root, "a.png")
    root.write("m.csv", f"uri,captured_at\na.png,{text}\n".encode())
    listing = _listed(root.path("m.csv"))
    assert _found(listing, "captured_at") == [(None,)]
    assert text in listing.notes[0]


def test_types_of_a_parquet_manifest_are_text(root):
    _write(root, "a.png")
    sink = io.BytesIO()
    pq.write_table(pa.table({"uri": ["a.png"], "image_id": [7], "label": [True]}), sink)
    root.write("m.PARQUET", sink.getvalue())
    listing = _listed(root.path("m.PARQUET"))
    assert _found(listing, "image_id", "label") == [("7", "true")]
