"""Objects of S3, or of a store that speaks it: one request for each thing that is asked.

Through s3fs's `call_s3`, with bucket and key, and not through its paths: it would look for the size
and the version before it reads, list all to memory, and read a key as a path. Which object is
meant (If-Match), and that there be none yet (If-None-Match), goes with the request.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.storage.stores import BeyondEnd, NotKnown

if TYPE_CHECKING:
    from patchlake.pipeline.storage.s3_filesystem import S3, Answer

# pyarrow looks for a footer in as many bytes first; what is smaller comes whole.
TAIL_BYTES = 64 * 2**10
# Of a listing: what a store gives at most.
_PAGE = 1000
# 256 footers of 64 KiB: 16 MiB.
_TAILS = 256


class Piece(NamedTuple):
    """A part of an object, or all of it: its bytes, the object's size, and its ETag."""

    content: bytes
    size: int
    etag: str


class Item(NamedTuple):
    """An object of a listing."""

    key: str
    size: int
    etag: str
    modified: datetime


@dataclass(frozen=True)
class Bucket:
    """A bucket and how it is reached. Every method is one request, and its retries."""

    name: str
    storage: StorageSettings

    def get(self, key: str, *, span: str = "", etag: str = "", at_most: int | None = None) -> Piece:
        """Return an object or a part of it.

        Args:
            key: The object's.
            span: `first-last`, or `-count` for the last bytes; empty: all.
            etag: Of the object that is meant; another one is an error.
            at_most: Read no more bytes than that.

        Raises:
            FileNotFoundError: if there is no such object.
            StorageError: if it is another one by now, or storage gave no answer.
        """
        if at_most is not None:
            span = f"0-{at_most - 1}"
        given = {"Range": f"bytes={span}"} if span else {}
        given |= {"IfMatch": f'"{etag}"'} if etag else {}
        try:
            found = self._ask("get_object", Key=key, **given)
        except BeyondEnd:  # of an empty object, every range
            return Piece(b"", 0, etag)
        content = found["Body"].content
        _, _, total = found.get("ContentRange", "").rpartition("/")
        return Piece(content, int(total or len(content)), _plain(found["ETag"]))

    def tail(self, key: str, etag: str) -> Piece:
        """Return the last 64 KiB, once in a process for each version of a file."""
        return _tail(self, key, etag) if etag else self.get(key, span=f"-{TAIL_BYTES}")

    def put(self, key: str, content: bytes) -> None:
        """Put an object, whole or not at all."""
        self._ask("put_object", Key=key, Body=content)

    def create(self, key: str, content: bytes) -> bool:
        """Put an object if there is none; return whether this call put it.

        Atomic where the store has If-None-Match. A store that does not know it is asked first, and
        of two calls in the same moment the later one wins. False can also be the answer to a call
        whose first try got through though its answer was lost: read what is there.
        """
        if self.head(key) is not None:
            return False
        try:
            self._ask("put_object", Key=key, Body=content, IfNoneMatch="*")
        except FileExistsError:
            return False
        except NotKnown:
            self.put(key, content)
            return self.get(key).content == content
        return True

    def head(self, key: str) -> Item | None:
        """Return an object's item, or None if there is none."""
        try:
            found = self._ask("head_object", Key=key)
        except FileNotFoundError:
            return None
        return Item(key, found["ContentLength"], _plain(found["ETag"]), found["LastModified"])

    def items(self, prefix: str, *, at_most: int | None = None) -> Iterator[Item]:
        """Yield the objects below a prefix, by key; markers of folders are left out.

        One request for each 1000. Raises `StorageRefused` if there is no such bucket.
        """
        for page in self._pages(prefix, MaxKeys=at_most or _PAGE):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):
                    etag = _plain(found["ETag"])
                    yield Item(found["Key"], found["Size"], etag, found["LastModified"])
            if at_most:
                return

    def folders(self, prefix: str) -> Iterator[str]:
        """Yield the prefixes, to the next slash, of what is below one. Requests as of `items`."""
        for page in self._pages(prefix, Delimiter="/"):
            yield from (found["Prefix"] for found in page.get("CommonPrefixes", ()))

    def _pages(self, prefix: str, **given: object) -> Iterator["Answer"]:
        while True:
            page = self._ask("list_objects_v2", Prefix=prefix, **given)
            yield page
            if not page.get("IsTruncated"):
                return
            given["ContinuationToken"] = page["NextContinuationToken"]

    def copy(self, key: str, to: str) -> None:
        """Copy an object of up to 5 GB within the bucket. Raises `FileNotFoundError`."""
        self._ask("copy_object", Key=to, CopySource={"Bucket": self.name, "Key": key})

    def delete(self, key: str) -> None:
        """Remove an object; that there is none is fine."""
        self._ask("delete_object", Key=key)

    @property
    def filesystem(self) -> "S3":
        """This process's s3fs, which threads share."""
        # Half a second, which nobody pays who has nothing in S3.
        from patchlake.pipeline.storage.s3_filesystem import S3

        return S3(self.storage)

    def _ask(self, method: str, **given: object) -> "Answer":
        return self.filesystem.call_s3(method, Bucket=self.name, **given)


@lru_cache(_TAILS)
def _tail(bucket: Bucket, key: str, etag: str) -> Piece:
    return bucket.get(key, span=f"-{TAIL_BYTES}", etag=etag)


def _plain(etag: str) -> str:
    return etag.strip('"')
