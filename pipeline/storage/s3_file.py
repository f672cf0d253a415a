"""Objects of S3 as files: read by ranges, of which the needed ones can be fetched at once."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

from typing_extensions import Buffer

from patchlake.pipeline.storage.s3 import Bucket, Parts, Piece

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
    """Write an object as a stream; it appears, whole, when the block ends without an error."""
    upload = _Upload(bucket, key)
    try:
        yield cast("BinaryIO", upload)
    except BaseException:
        upload.give_up()
        raise
    upload.complete()


class _Upload(io.RawIOBase):
    """Sends what is written in parts; a small file in one request, when it is whole."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket = bucket
        self._key = key
        self._waiting = bytearray()
        self._size = 0
        self._parts: Parts | None = None
        self._etags: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, content: Buffer, /) -> int:
        added = memoryview(content).cast("B")
        self._waiting += added
        self._size += len(added)
        while len(self._waiting) >= PART_BYTES:
            self._send(bytes(self._waiting[:PART_BYTES]))
            del self._waiting[:PART_BYTES]
        return len(added)

    def complete(self) -> None:
        if self._parts is None:
            self._bucket.put(self._key, bytes(self._waiting))
            return
        try:
            if self._waiting:
                self._send(bytes(self._waiting))
            self._parts.complete(self._etags, self._size)
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        if self._parts is not None:
            # What stays behind is not an object; a lifecycle rule of the bucket removes it.
            with contextlib.suppress(OSError):
                self._parts.abort()

    def _send(self, content: bytes) -> None:
        if self._parts is None:
            self._parts = self._bucket.upload_parts(self._key)
        self._etags.append(self._parts.put(len(self._etags) + 1, content))
