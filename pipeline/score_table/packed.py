"""A fragment's heatmaps in one file: a zip that compresses nothing, of which one picture is read.

Python's `zipfile` writes it, and any tool opens it. Members have names, times and rights that
depend on nothing but the row, and are in the order of rows: equal pictures, equal bytes.

What is read is this form alone, and not by `zipfile`: that would follow a stranger's zip into 64
bits, unpack what is compressed, and keep an object for each member of an index of any size. Here
each read has a bound, and what lies in the zip is never written under a name of its own.
"""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

from patchlake.pipeline.config import MOST_PACKED
from patchlake.pipeline.shown import counted
from patchlake.pipeline.storage.s3_file import RangedFile

# A heatmap of 512 x 512 pixels has 0.8 MB before it is JPEG.
LARGEST_PICTURE = 64 * 2**20

# The zip format's own beginning of time, and a plain file that its owner may read and write.
_TIME, _UNIX, _RIGHTS = (1980, 1, 1, 0, 0, 0), 3, 0o100600 << 16

# PKWARE's APPNOTE 6.3.10, 4.3.16, 4.3.12 and 4.3.7: signature first, little-endian.
_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_END_MARK, _ENTRY_MARK, _LOCAL_MARK = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"
# A row's number has 19 digits at most.
_LARGEST_INDEX = MOST_PACKED * (_ENTRY.size + len(f"{2**63 - 1}.jpg"))


class NotThere(LookupError):  # noqa: N818 - an answer, no fault
    """The zip is whole, and has no such picture; the message says what it has."""


class _Member(NamedTuple):
    """What the index says of a picture."""

    name: bytes
    begin: int
    size: int
    crc: int


def member_name(source_row: int) -> str:
    """Return the name of an image's heatmap in its fragment's zip."""
    return f"{source_row}.jpg"


def pack(pictures: Mapping[int, bytes]) -> bytes:
    """Return the zip of a fragment's pictures, by source row, in whatever order they come.

    Holds them twice.

    Raises:
        zipfile.LargeZipFile: beyond 2 GiB.
    """
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for row in sorted(pictures):
            member = zipfile.ZipInfo(member_name(row), _TIME)
            member.create_system, member.external_attr = _UNIX, _RIGHTS
            archive.writestr(member, pictures[row])
    return sink.getvalue()


def read_packed(file: BinaryIO, source_row: int) -> bytes:
    """Return one picture of a zip that `pack` has made.

    Reads the end of the file, the index before it, and the picture. In S3 those are two requests:
    the last 64 KiB, which hold the index of some 1,100 pictures, and the picture.

    Raises:
        NotThere: if the zip has no picture of that row.
        ValueError: if it is no such zip, with the reason.
    """
    size = file.seek(0, os.SEEK_END)
    begin, length, count = _index_place(file, size)
    members = list(_members(_read(file, begin, length)))
    if len(members) != count:
        raise ValueError(f"its index names {len(members)} members, and should name {count}")
    wanted = member_name(source_row).encode()
    found = next((member for member in members if member.name == wanted), None)
    if found is None:
        raise NotThere(f"{counted(count, 'pictures')}, none of them of row {source_row}")
    return _content(file, found, begin)


def _index_place(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return where the index begins, its bytes, and how many pictures it names."""
    if size < _END.size:
        raise ValueError(f"{size} bytes are no zip")
    end = _END.unpack(_read(file, size - _END.size, _END.size))
    mark, disk, disk_of_index, on_disk, count, length, begin, comment = end
    if mark != _END_MARK or comment:
        raise ValueError("it does not end as a zip of heatmaps does")
    if (disk, disk_of_index, on_disk) != (0, 0, count) or begin + length + _END.size != size:
        raise ValueError("its end does not say where its index is")
    if length > _LARGEST_INDEX:
        raise ValueError(f"its index has {length} bytes, and at most {_LARGEST_INDEX} are read")
    return begin, length, count


def _members(index: bytes) -> Iterator[_Member]:
    """Yield what an index says of each picture. Raises `ValueError`, also of compressed ones."""
    at = 0
    while at < len(index):
        if len(index) - at < _ENTRY.size:
            raise ValueError("its index ends within an entry")
        entry = _ENTRY.unpack_from(index, at)
        mark, _, _, flags, method, _, _, crc, packed, size, named, extra, comment = entry[:13]
        begin = entry[-1]
        at += _ENTRY.size
        name = index[at : at + named]
        at += named
        if mark != _ENTRY_MARK or flags or extra or comment or len(name) < named:
            raise ValueError("its index has an entry that patchlake does not write")
        if method != zipfile.ZIP_STORED or packed != size:
            raise ValueError("it has compressed members, which are not unpacked")
        yield _Member(name, begin, size, crc)


def _content(file: BinaryIO, member: _Member, end: int) -> bytes:
    """Return a picture, whose bytes must lie before `end`."""
    head = _LOCAL.size + len(member.name)
    if member.size > LARGEST_PICTURE:
        raise ValueError(
            f"the picture has {member.size} bytes, and at most {LARGEST_PICTURE} are read"
        )
    if member.begin + head + member.size > end:
        raise ValueError("its index says that the picture lies beyond the others")
    whole = _read(file, member.begin, head + member.size)
    mark, _, flags, method, _, _, crc, packed, size, named, extra = _LOCAL.unpack_from(whole)
    told = (mark, flags, method, crc, packed, size, named, extra)
    expected = (_LOCAL_MARK, 0, 0, member.crc, member.size, member.size, len(member.name), 0)
    if told != expected or whole[_LOCAL.size : head] != member.name:
        raise ValueError("what stands before the picture is not what the index says of it")
    if zlib.crc32(whole[head:]) != member.crc:
        raise ValueError("the picture's bytes are not those of its checksum")
    return whole[head:]


def _read(file: BinaryIO, begin: int, size: int) -> bytes:
    """Return bytes of a file: all of them, and in S3 with no others."""
    if isinstance(file, RangedFile):
        file.fetch([(begin, begin + size)])
    file.seek(begin)
    content = file.read(size)
    if len(content) < size:
        raise ValueError(f"it ends after {begin + len(content)} bytes")
    return content
