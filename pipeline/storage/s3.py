"""Objects of S3, or of a store that speaks it: one request for each thing that is asked.

On botocore, which finds credentials as every AWS SDK does, and not on s3fs: s3fs asks for the size
before it reads, and it retries around botocore's retries, so that nobody could say how often or how
long a request is tried. Here one loop owns that, and it covers the body, which breaks as often as
the request does. No credential is ever a setting, and no message carries one.
"""

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import botocore.config
import botocore.session
from botocore import UNSIGNED
from botocore.exceptions import BotoCoreError, ClientError

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import StorageRefused
from patchlake.pipeline.storage.s3_errors import FAILURES, NotKnown, code_of, may_pass, translated
from patchlake.pipeline.storage.waiting import wait_after

T = TypeVar("T")
# botocore makes its clients at run time: it has no type for them.
Client = Any

_CONNECT_S = 10.0
# Footers are read by 16 threads, images by one for each core.
_CONNECTIONS = 64
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
        given = {"Range": f"bytes={span}"} if span else {}
        given |= {"IfMatch": f'"{etag}"'} if etag else {}

        def read(client: Client) -> Piece:
            try:
                found = client.get_object(Bucket=self.name, Key=key, **given)
            except ClientError as error:
                if code_of(error) in ("416", "InvalidRange"):  # of an empty object, every range
                    return Piece(b"", 0, etag)
                raise
            with closing(found["Body"]) as body:
                content = body.read(at_most)
            _, _, total = found.get("ContentRange", "").rpartition("/")
            return Piece(content, int(total or found["ContentLength"]), _plain(found["ETag"]))

        return self._ask(key, read)

    def tail(self, key: str, etag: str) -> Piece:
        """Return the last 64 KiB, once in a process for each version of a file."""
        return _tail(self, key, etag) if etag else self.get(key, span=f"-{TAIL_BYTES}")

    def put(self, key: str, content: bytes) -> None:
        """Put an object, whole or not at all."""
        self._ask(key, lambda client: client.put_object(**self._body(key, content)))

    def create(self, key: str, content: bytes) -> bool:
        """Put an object if there is none; return whether this call put it.

        Atomic where the store has If-None-Match. A store that does not know it is asked first, and
        of two calls in the same moment the later one wins. False can also be the answer to a call
        whose first try got through though its answer was lost: read what is there.
        """
        if self.head(key) is not None:
            return False
        body = self._body(key, content)
        try:
            self._ask(key, lambda client: client.put_object(**body, IfNoneMatch="*"))
        except FileExistsError:
            return False
        except NotKnown:
            self.put(key, content)
            return self.get(key).content == content
        return True

    def head(self, key: str) -> Item | None:
        """Return an object's item, or None if there is none."""
        try:
            found = self._ask(key, lambda client: client.head_object(Bucket=self.name, Key=key))
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

    def _pages(self, prefix: str, **given: object) -> Iterator[dict[str, Any]]:
        given |= {"Bucket": self.name, "Prefix": prefix}
        while True:
            page = self._ask(prefix, lambda client: client.list_objects_v2(**given))
            yield page
            if not page.get("IsTruncated"):
                return
            given["ContinuationToken"] = page["NextContinuationToken"]

    def copy(self, key: str, to: str) -> None:
        """Copy an object of up to 5 GB within the bucket. Raises `FileNotFoundError`."""
        source = {"Bucket": self.name, "Key": key}
        self._ask(
            key, lambda client: client.copy_object(Bucket=self.name, Key=to, CopySource=source)
        )

    def delete(self, key: str) -> None:
        """Remove an object; that there is none is fine."""
        self._ask(key, lambda client: client.delete_object(Bucket=self.name, Key=key))

    def upload_parts(self, key: str) -> "Parts":
        """Begin an upload in parts."""
        begun = self._ask(
            key, lambda client: client.create_multipart_upload(Bucket=self.name, Key=key)
        )
        return Parts(self, key, begun["UploadId"])

    def _body(self, key: str, content: bytes) -> dict[str, object]:
        return {"Bucket": self.name, "Key": key, "Body": content, "ContentMD5": md5(content)}

    def _ask(self, key: str, call: Callable[[Client], T]) -> T:
        """Return what the call returns; try again what may pass."""
        # A key can be of control characters.
        where = f"s3://{self.name}/{key if key.isprintable() else repr(key)[1:-1]}"
        for attempt in range(self.storage.retries + 1):
            try:
                return call(client_of(self.storage))
            except FAILURES as error:
                if attempt == self.storage.retries or not may_pass(error):
                    raise translated(error, where, attempt + 1) from None
            wait_after(attempt)
        raise AssertionError


@dataclass(frozen=True)
class Parts:
    """An upload in parts: the object appears when it is completed, never before."""

    bucket: Bucket
    key: str
    upload: str

    def put(self, number: int, content: bytes) -> str:
        """Send one part, counted from 1; return its ETag."""
        sent = self.bucket._ask(  # noqa: SLF001 - of this module
            self.key,
            lambda client: client.upload_part(
                **self._named(), PartNumber=number, Body=content, ContentMD5=md5(content)
            ),
        )
        return str(sent["ETag"])

    def complete(self, etags: Sequence[str], size: int) -> None:
        """Make the object of all parts."""
        parts = [{"PartNumber": i, "ETag": etag} for i, etag in enumerate(etags, start=1)]
        try:
            self.bucket._ask(  # noqa: SLF001 - of this module
                self.key,
                lambda client: client.complete_multipart_upload(
                    **self._named(), MultipartUpload={"Parts": parts}
                ),
            )
        except FileNotFoundError:
            # Completed by a try whose answer was lost: the upload is gone, the object is there.
            found = self.bucket.head(self.key)
            if found is None or found.size != size:
                raise

    def abort(self) -> None:
        """Give up; what was sent goes."""
        self.bucket._ask(  # noqa: SLF001 - of this module
            self.key, lambda client: client.abort_multipart_upload(**self._named())
        )

    def _named(self) -> dict[str, str]:
        return {"Bucket": self.bucket.name, "Key": self.key, "UploadId": self.upload}


@lru_cache(_TAILS)
def _tail(bucket: Bucket, key: str, etag: str) -> Piece:
    return bucket.get(key, span=f"-{TAIL_BYTES}", etag=etag)


_making = threading.Lock()


def client_of(storage: StorageSettings) -> Client:
    """Return this process's client; threads share it."""
    with _making:  # making one is not safe in threads, using one is
        return _client(storage)


@lru_cache
def _client(storage: StorageSettings) -> Client:
    given: dict[str, object] = {"signature_version": UNSIGNED} if storage.anonymous else {}
    # Other stores than AWS seldom have a name for each bucket.
    given |= {"s3": {"addressing_style": "path"}} if storage.endpoint else {}
    config = botocore.config.Config(
        connect_timeout=min(_CONNECT_S, storage.timeout_s),
        read_timeout=storage.timeout_s,
        retries={"total_max_attempts": 1, "mode": "standard"},
        max_pool_connections=_CONNECTIONS,
        # Trailing checksums are newer than most stores; Content-MD5 is as old as S3.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        **given,
    )
    try:
        return botocore.session.Session().create_client(
            "s3", region_name=storage.region, endpoint_url=storage.endpoint, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise StorageRefused(f"no S3 client can be made: {error}") from None


def md5(content: bytes) -> str:
    """Return what Content-MD5 says: the store refuses what arrives otherwise."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def _plain(etag: str) -> str:
    return etag.strip('"')
