"""s3fs as everything here uses it, for plain URIs and below chains (`zip://a.zip::s3://...`).

Retries are set here and nowhere else. Left to itself s3fs tries in loops around loops (an answer,
the body of an answer, botocore's own, aiohttp's), so that nobody could say how often or how long a
request is tried. Here each of them tries once, and one loop around them, in the one method through
which s3fs asks anything, does the rest. It covers the body, which breaks as often as the request
does: an answer that comes out of it is whole. No credential is a setting, and no message has one.
"""

import asyncio
import base64
import hashlib
import socket
from typing import Any

import aiohttp
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError, ClientError
from s3fs import S3FileSystem

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import StorageRefused
from patchlake.pipeline.storage.s3_errors import FAILURES, may_pass, translated
from patchlake.pipeline.storage.waiting import wait_s

# fsspec's registry has it under this name, besides s3fs's own, which stays what it is.
PROTOCOL = "patchlake-s3"
# What a request says and is answered: botocore makes its types at run time.
Asked = Any
Answer = dict[str, Any]

_CONNECT_S = 10.0
# Footers are read by 16 threads, images by one for each core.
_CONNECTIONS = 64
# The least that s3fs takes.
_AHEAD_BYTES = 5 * 2**20
# Of a file that a cache of fsspec's takes, in memory.
_PIECE_BYTES = 64 * 2**20


class S3(S3FileSystem):  # type: ignore[misc]  # it has no types
    """s3fs under `storage.*`. fsspec keeps one for each settings in a process, and none in a fork.

    Requests run on fsspec's thread for them; those who ask wait, in as many threads as they like.
    """

    protocol = ("s3", "s3a", PROTOCOL)
    # Of s3fs's own loops. After a failure it waits for 0.1 s, which ours come on top of.
    retries = 1

    def __init__(self, storage: StorageSettings) -> None:
        """Make one, without a request; credentials are looked for at the first."""
        super().__init__(
            anon=storage.anonymous,
            endpoint_url=storage.endpoint,
            client_kwargs={"region_name": storage.region},
            config_kwargs=_config(storage),
            session=_session(),
            # Files change under another's hands: nobody may be told of how they were.
            use_listings_cache=False,
            # What is read ahead in an archive, of which one small picture may be wanted.
            default_block_size=_AHEAD_BYTES,
            # It looks at the size of what it may fetch in several pieces at once.
            max_concurrency=1,
            # Parts of an upload alike, which some stores (R2) insist on.
            fixed_upload_size=True,
        )
        self.settings = storage

    async def _call_s3(self, method: str, *given: Answer, **asked: Asked) -> Answer:
        """Return the answer to one request, and its body; try again what may pass.

        Raises:
            OSError: one of ours, with the object's name.
        """
        await self._connected()
        for attempt in range(self.settings.retries + 1):
            try:
                return await _whole(await super()._call_s3(method, *given, **asked))
            except FAILURES as error:
                # s3fs makes an error of Python's out of S3's.
                cause = error.__cause__ if isinstance(error.__cause__, ClientError) else error
                if attempt == self.settings.retries or not may_pass(cause):
                    raise translated(cause, _where(asked), attempt + 1) from None
            await asyncio.sleep(wait_s(attempt))
        raise AssertionError

    def call_s3(self, method: str, *given: Answer, **asked: Asked) -> Answer:
        """Do the same from outside of the loop; whoever is interrupted asks no further."""
        if "Body" in asked:  # here, where only the one who puts it waits for the sum
            asked["ContentMD5"] = _md5(asked["Body"])
        future = asyncio.run_coroutine_threadsafe(self._call_s3(method, *given, **asked), self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _connected(self) -> None:
        try:
            await self.set_session()
        except (BotoCoreError, ValueError) as error:
            raise StorageRefused(f"no S3 client can be made: {error}") from None

    def split_path(self, path: str) -> tuple[str, str, None]:
        """Return bucket and key. What s3fs takes for a version (`?versionId=`) is a part of it."""
        bucket, _, key = self._strip_protocol(path).lstrip("/").partition("/")
        return bucket, key, None

    @staticmethod
    def _get_kwargs_from_urls(_: str) -> dict[str, object]:
        # As above: a URI has no options.
        return {}

    async def _get_file(self, rpath: str, lpath: str, **_: object) -> None:
        # s3fs asks for all in one answer. Here pieces, of one version.
        info = await self._info(rpath)
        if info["type"] != "file":
            raise FileNotFoundError(f"s3://{rpath} is a folder")
        bucket, key, _none = self.split_path(rpath)
        asked = {"Bucket": bucket, "Key": key, "IfMatch": info["ETag"]}
        with open(lpath, "wb") as file:
            for begin in range(0, info["size"], _PIECE_BYTES):
                span = f"bytes={begin}-{begin + _PIECE_BYTES - 1}"
                found = await self._call_s3("get_object", **asked, Range=span)
                file.write(found["Body"].content)


class _Body:
    """The body of an answer, which is there: what s3fs does with those that are not."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def read(self) -> bytes:
        return self.content

    def close(self) -> None:
        self.content = b""


async def _whole(answer: Answer) -> Answer:
    body = answer.get("Body")
    if body is None:
        return answer
    try:
        return answer | {"Body": _Body(await body.read())}
    finally:
        body.close()


def _where(asked: Answer) -> str:
    source = asked.get("CopySource", asked)
    key = source.get("Key", asked.get("Prefix", ""))
    # A key can be of control characters.
    return f"s3://{asked['Bucket']}/{key if key.isprintable() else repr(key)[1:-1]}"


def _config(storage: StorageSettings) -> dict[str, object]:
    # Other stores than AWS seldom have a name for each bucket.
    addressed = {"s3": {"addressing_style": "path"}} if storage.endpoint else {}
    return {
        "connect_timeout": min(_CONNECT_S, storage.timeout_s),
        "read_timeout": storage.timeout_s,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": _CONNECTIONS,
        # Trailing checksums are newer than most stores; Content-MD5 is as old as S3.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "connector_args": {"socket_factory": _Sockets(storage.timeout_s)},
        "http_session_cls": _Session,
        **addressed,
    }


def _session() -> AioSession:
    session = AioSession()
    session.register("before-call.s3", _ask_at_once)
    return session


def _ask_at_once(params: Answer, **_: object) -> None:
    # With a body botocore asks for leave to send it (100-continue), and aiohttp would wait for that
    # for ever. Not every store gives it.
    params["headers"].pop("Expect", None)


class _Session(AIOHTTPSession):  # type: ignore[misc]  # it has no types
    """aiohttp asks again by itself where a connection breaks: a loop of tries below ours."""

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        session: aiohttp.ClientSession = await super()._get_session(proxy_url)
        # It has no public name. A test counts the requests.
        session._retry_connection = False  # noqa: SLF001
        return session


class _Sockets:
    """Makes sockets on which sending, too, fails after so long: aiohttp times the answers only."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_ms = max(1, round(timeout_s * 1000))

    def __call__(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        # Of Linux. Elsewhere the system's own limit holds, of some ten minutes.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, self.timeout_ms)
        return made


def _md5(content: bytes) -> str:
    """Return what Content-MD5 says: the store refuses what arrives otherwise."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
