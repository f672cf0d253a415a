"""The zip of a fragment's heatmaps: its bytes hang on the pictures alone, and a false one ends."""

import io
import itertools
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.score_table import packed
from patchlake.pipeline.score_table.packed import NotThere, pack, read_packed

PICTURES = {row: bytes([row]) * (100 + row) for row in (3, 10, 7, 200)}
MADE = pack(PICTURES)


def read(content: bytes, row: int) -> bytes:
    return read_packed(io.BytesIO(content), row)


@given(st.dictionaries(st.integers(0, 2**63 - 1), st.binary(max_size=200), min_size=1))
def test_what_is_packed_is_read_and_any_tool_opens_it(pictures: Mapping[int, bytes]):
    made = pack(pictures)
    assert all(read(made, row) == picture for row, picture in pictures.items())
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{row}.jpg" for row in sorted(pictures)]
        assert {int(n[:-4]): archive.read(n) for n in archive.namelist()} == pictures


def test_the_order_in_which_pictures_come_does_not_show():
    made = {pack(dict(order)) for order in itertools.permutations(PICTURES.items())}
    assert made == {MADE}


def test_a_member_says_nothing_of_when_and_where_it_was_made():
    with zipfile.ZipFile(io.BytesIO(MADE)) as archive:
        for member in archive.infolist():
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            assert (member.create_system, member.external_attr >> 16) == (3, 0o100600)
            assert (member.compress_type, member.extra, member.comment) == (0, b"", b"")


@dataclass
class Watched(io.BytesIO):
    """A file that notes what is read of it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.spans: list[tuple[int, int]] = []

    def read(self, size: int | None = -1, /) -> bytes:
        begin = self.tell()
        content = super().read(size)
        self.spans.append((begin, begin + len(content)))
        return content


def test_only_the_index_and_the_picture_are_read():
    made = pack({row: bytes(30_000) for row in range(256)})
    file = Watched(made)
    assert read_packed(file, 100) == bytes(30_000)
    of_picture = 30 + len("100.jpg") + 30_000
    assert sum(end - begin for begin, end in file.spans) < of_picture + 256 * 60
    assert len(file.spans) == 3


def test_a_picture_that_is_not_in_it_is_told_from_a_zip_that_is_none():
    with pytest.raises(NotThere, match="4 pictures, none of them of row 4"):
        read(MADE, 4)
    with pytest.raises(NotThere, match="0 pictures"):
        read(pack({}), 4)


def zip_of(names: Mapping[str, bytes], *, comment: bytes = b"", **given: object) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", **given) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
        archive.comment = comment
    return sink.getvalue()


def changed(at: int, form: str, value: int, content: bytes = MADE) -> bytes:
    """A whole zip but for one number, counted from the end where it is negative."""
    made = bytearray(content)
    struct.pack_into(form, made, at % len(made), value)
    return bytes(made)


# Offsets in the end record (22 bytes) and in the last entry of the index (46 + "200.jpg").
END, ENTRY = -22, -22 - 46 - 7
BOMB = zip_of({"7.jpg": bytes(2**24)}, compression=zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize(
    ("content", "row", "told"),
    [
        (b"", 7, "0 bytes are no zip"),
        (b"PK\x05\x06", 7, "4 bytes are no zip"),
        (b"\xff\xd8\xff" + bytes(500), 7, "does not end as"),
        (MADE[:-1], 7, "does not end as"),
        (MADE + b"\0", 7, "does not end as"),
        (zip_of({"7.jpg": b"x"}, comment=b"hello"), 7, "does not end as"),
        # Something else before it, and an index that is not where the end says.
        (b"#!/bin/sh\n" + MADE, 7, "does not say where"),
        (changed(END + 8, "<H", 3), 7, "does not say where"),
        (changed(END + 12, "<L", 2**32 - 1), 7, "does not say where"),
        (changed(END + 16, "<L", 2**32 - 1), 7, "does not say where"),
        (BOMB, 7, "compressed members, which are not unpacked"),
        # Said to be stored, and said to be as long as what it would unpack to.
        (changed(-22 - 46 - 5 + 10, "<H", 0, BOMB), 7, "compressed members"),
        (changed(ENTRY + 20, "<L", 2**30), 200, "compressed members"),
        (changed(ENTRY + 8, "<H", 1), 200, "patchlake does not write"),  # encrypted
        (changed(ENTRY + 30, "<H", 2), 200, "patchlake does not write"),
        (changed(ENTRY + 28, "<H", 60_000), 200, "patchlake does not write"),
        (changed(ENTRY + 42, "<L", 2**32 - 1), 200, "lies beyond"),
        (changed(ENTRY + 42, "<L", 0), 200, "not what the index says"),
        (changed(ENTRY + 16, "<L", 1), 200, "not what the index says"),
        (changed(30 + 5, "<B", 77), 3, "its checksum"),
        (changed(30, "<B", 77), 3, "not what the index says"),
        (changed(8, "<H", 8), 3, "not what the index says"),
    ],
)
def test_a_zip_of_somebody_else_is_refused_with_the_reason(content: bytes, row: int, told: str):
    with pytest.raises(ValueError, match=told):
        read(content, row)


def test_a_picture_and_an_index_have_a_bound(monkeypatch: pytest.MonkeyPatch):
    size = 2**27
    made = changed(ENTRY + 24, "<L", size, changed(ENTRY + 20, "<L", size))
    with pytest.raises(ValueError, match=f"the picture has {size} bytes, and at most {2**26} are"):
        read(made, 200)
    many = pack(dict.fromkeys(range(10_000), b""))
    with pytest.raises(ValueError, match="its index has 538890 bytes, and at most 282624 are read"):
        read(many, 0)
    # The most that a fragment may have, of the longest names.
    longest = pack({2**63 - 1 - n: b"" for n in range(packed.MOST_PACKED)})
    assert read(longest, 2**63 - 1) == b""


@given(st.integers(0, len(MADE) - 1), st.integers(0, 255), st.sampled_from([*PICTURES, 5]))
def test_a_byte_that_is_another_is_noticed_or_changes_nothing(at: int, value: int, row: int):
    made = bytearray(MADE)
    made[at] = value
    try:
        found = read(bytes(made), row)
    except NotThere:
        return
    except ValueError:
        return
    assert found == PICTURES[row]


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_end_in_an_answer(content: bytes):
    for whole in (content, content + MADE[-22:], MADE[:-100] + content):
        try:
            read(whole, 7)
        except (ValueError, NotThere):
            continue
