"""Objects of S3 as files: read by ranges, of which the needed ones can be fetched at once.

s3fs's own file asks for size and version (HEAD) before it reads. This one learns both from the
first answer, and keeps the end of each file, where Parquet has its footer.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, cast

from typing_extensions import Buffer

from patchlake.pipeline.storage.s3 import Bucket, Piece

if TYPE_CHECKING:
    from s3fs.core import S3File

# Bytes that a reader holds at once; of larger ranges it reads what it wants, when it does.
HELD_BYTES = 256 * 2**20
# (begin, end) of bytes in a file.
Range = tuple[int, int]
# A request costs some 30 ms, in which a connection carries 2 MB.
_GAP_BYTES = 2**20
# Of a read that was not foreseen: fewer requests for who reads on in small steps.
_AHEAD_BYTES = 2**20
# A part of an upload: 10,000 of them may make an object, and one is held in memory.
PART_BYTES = 64 * 2**20


class RangedFile(io.RawIOBase):
    """An object, open for reading. Its parts are all of one version, or a read fails."""

    def __init__(self, bucket: Bucket, key: str, version: str = "") -> None:
        """Open a file; `version` is the ETag that it must have. No request is made yet."""
        self._bucket = bucket
        self._key = key
        self._etag = version
        self._size: int | None = None
        self._position = 0
        self._fetched: list[tuple[int, bytes]] = []
        self._last: tuple[int, bytes] = (0, b"")

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position}
        self._position = offset + (base[whence] if whence in base else self._end())
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return as many bytes, fewer only at the end. One request, or none for what is held."""
        if size is None or size < 0:
            size = self._end() - self._position
        if self._size is not None:
            size = max(0, min(size, self._size - self._position))
        content = self._held(size) if size else b""
        if content is None:
            begin = self._position
            piece = self._get(begin, begin + max(size, _AHEAD_BYTES))
            self._last = (begin, piece.content)
            content = piece.content[:size]
        self._position += len(content)
        return content

    def readinto(self, buffer: Buffer, /) -> int:
        """Fill a buffer; return the number of bytes, fewer only at the end."""
        view = memoryview(buffer).cast("B")
        content = self.read(len(view))
        view[: len(content)] = content
        return len(content)

    def fetch(self, ranges: Sequence[Range]) -> None:
        """Get these (begin, end) now, near ones together, so that reads in them ask nothing."""
        joined = join_ranges(ranges)
        if sum(end - begin for begin, end in joined) > HELD_BYTES:
            return
        for begin, end in joined:
            if not self._holds(begin, end - begin):
                self._fetched.append((begin, self._get(begin, end).content))

    def close(self) -> None:
        """Let go of what is held."""
        self._fetched.clear()
        super().close()

    def _end(self) -> int:
        if self._size is None:
            piece = self._seen(self._bucket.tail(self._key, self._etag))
            self._fetched.append((piece.size - len(piece.content), piece.content))
        assert self._size is not None
        return self._size

    def _get(self, begin: int, end: int) -> Piece:
        span = f"{begin}-{end - 1}"
        return self._seen(self._bucket.get(self._key, span=span, etag=self._etag))

    def _seen(self, piece: Piece) -> Piece:
        self._size, self._etag = piece.size, piece.etag
        return piece

    def _holds(self, begin: int, size: int) -> bool:
        return any(at <= begin and begin + size <= at + len(c) for at, c in self._fetched)

    def _held(self, size: int) -> bytes | None:
        begin = self._position
        for at, content in (*self._fetched, self._last):
            if at <= begin and begin + size <= at + len(content):
                return content[begin - at : begin - at + size]
        return None


def join_ranges(ranges: Sequence[Range]) -> list[Range]:
    """Return the ranges in order, joined where what lies between is not worth a request."""
    joined: list[Range] = []
    for begin, end in sorted(ranges):
        if joined and begin - joined[-1][1] <= _GAP_BYTES:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


@contextlib.contextmanager
def uploading(bucket: Bucket, key: str) -> Iterator[BinaryIO]:
    """Write an object as a stream; it appears, whole, when the block ends without an error.

    By s3fs: in one request, or in parts where it is larger than one.
    """
    file = bucket.filesystem.open(f"{bucket.name}/{key}", "wb", block_size=PART_BYTES)
    try:
        yield cast("BinaryIO", file)
        _complete(file, bucket, key)
    except BaseException:
        # It must not be sent when the file is forgotten, which s3fs would do.
        file.closed = True
        # What stays behind is not an object; a lifecycle rule of the bucket removes it.
        with contextlib.suppress(OSError):
            file.discard()
        raise


def _complete(file: "S3File", bucket: Bucket, key: str) -> None:
    try:
        file.close()
    except FileNotFoundError:
        # Completed by a try whose answer was lost: the upload is gone, the object is there.
        found = bucket.head(key)
        if found is None or found.size != file.tell():
            raise
