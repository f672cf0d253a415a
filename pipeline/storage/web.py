"""Files of a web server: only below the addresses that are allowed, also after redirects.

On urllib3, not on fsspec, which takes each answer that is an error, a 503 too, for "no such file",
and follows redirects to anywhere. Only 404 and 410 say that there is none.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import unquote, urljoin

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import StorageError, StorageRefused
from patchlake.pipeline.shown import listed, shown
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.storage.waiting import wait_after

T = TypeVar("T")

_CONNECT_S = 10.0
# Images are fetched by one thread for each core.
_CONNECTIONS = 64
_REDIRECTS = 5
_CHUNK = 256 * 2**10
# A server that sends a byte now and then keeps us no longer than so many times `timeout_s`.
_SLOWEST = 20
_WHOLE = (HTTPStatus.OK, HTTPStatus.NON_AUTHORITATIVE_INFORMATION, HTTPStatus.NO_CONTENT)
# Nothing there; or an address so long that there can be nothing.
_ABSENT = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE, HTTPStatus.REQUEST_URI_TOO_LONG)
_MOVED = (301, 302, 303, 307, 308)
_PASSING = (202, 408, 425, 429, 500, 502, 503, 504)
_NO_HEAD = (HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED)
# Percent-encoding in percent-encoding: no server undoes more.
_DEPTH = 3


class _PassingError(Exception):
    """The same request may get another answer."""


@dataclass(frozen=True)
class Address:
    """A URL as it is compared, and as it is asked for."""

    scheme: str
    host: str
    port: int
    # Decoded; a slash that was encoded is part of a name.
    path: tuple[str, ...]
    url: str

    @classmethod
    def of(cls, url: str) -> "Address | None":
        """Return the address that a URL names; None if it names none, or has a user in it."""
        try:
            parsed = urllib3.util.parse_url(url)
        except LocationParseError:
            return None
        scheme, host, port = parsed.scheme, parsed.host, parsed.port
        if scheme not in ("http", "https") or not host or parsed.auth is not None:
            return None
        names = tuple(unquote(name) for name in (parsed.path or "/").split("/")[1:])
        port = port or (443 if scheme == "https" else 80)
        return cls(scheme, host, port, names, parsed.url.partition("#")[0])

    def is_below(self, prefix: "Address") -> bool:
        """Return whether it names a file below another one."""
        above = prefix.path[:-1] if prefix.path[-1] == "" else prefix.path
        origin = (self.scheme, self.host, self.port)
        return (
            origin == (prefix.scheme, prefix.host, prefix.port)
            and self.path[: len(above)] == above
            and len(self.path) > len(above)
            and self.path[-1] != ""
            and not any(map(_climbs, self.path))
        )


@dataclass(frozen=True)
class Web:
    """The files below some addresses."""

    prefixes: Sequence[str]
    storage: StorageSettings

    def read(self, url: str, at_most: int | None = None) -> bytes:
        """Return a file's bytes, or its first `at_most`.

        Raises:
            FileNotFoundError: if there is none, or none that may be read.
            StorageError: if the server gave another answer, or none, however often it was asked.
        """

        def ask() -> bytes:
            with self._answer("GET", url) as answer:
                return self._content(answer, url, at_most)

        return self._tried(url, ask)

    def entry(self, url: str, name: str) -> Entry:
        """Return a file's entry, under a name. Raises as `read`."""

        def ask() -> Entry:
            with self._answer("HEAD", url) as answer:
                return _entry(name, answer)

        return self._tried(url, ask)

    def allows(self, url: str) -> bool:
        """Return whether a URL names a file below the addresses."""
        address = Address.of(url)
        allowed = [found for prefix in self.prefixes if (found := Address.of(prefix))]
        return address is not None and any(address.is_below(prefix) for prefix in allowed)

    def _tried(self, url: str, ask: Callable[[], T]) -> T:
        for attempt in range(self.storage.retries + 1):
            try:
                return ask()
            except _PassingError as error:
                said = str(error)
            except HTTPError as error:
                # Its text may have the whole URL in it.
                said = f"the answer is incomplete: {type(error).__name__}"
            if attempt < self.storage.retries:
                wait_after(attempt)
        raise StorageError(f"{shown(url)}: {said} (tries: {self.storage.retries + 1})")

    @contextmanager
    def _answer(self, method: str, url: str) -> Iterator[urllib3.BaseHTTPResponse]:
        """Give the answer that has the file, redirects followed, before its body is read."""
        place = url
        for _ in range(_REDIRECTS + 1):
            if not self.allows(place):
                said = "is" if place == url else "redirects to what is"
                raise FileNotFoundError(
                    f"{shown(url)} {said} below none of image.uri_prefixes {listed(self.prefixes)}"
                )
            answer = self._asked(method, place)
            try:
                if answer.status in _NO_HEAD and method == "HEAD":
                    method = "GET"
                    continue
                if answer.status not in _MOVED:
                    _require_whole(answer.status, url)
                    yield answer
                    return
                place = _joined(place, answer.headers.get("Location", ""), url)
            finally:
                # What is left of its body is not worth reading for the connection.
                answer.close()
        raise StorageRefused(f"{shown(url)} redirects more than {_REDIRECTS} times")

    def _asked(self, method: str, place: str) -> urllib3.BaseHTTPResponse:
        address = Address.of(place)
        assert address is not None
        timeout = self.storage.timeout_s
        return _pool().request(
            method,
            address.url,
            redirect=False,
            retries=False,
            preload_content=False,
            timeout=urllib3.Timeout(connect=min(_CONNECT_S, timeout), read=timeout),
            headers={"Accept-Encoding": "identity"},
        )

    def _content(self, answer: urllib3.BaseHTTPResponse, url: str, at_most: int | None) -> bytes:
        deadline = time.monotonic() + _SLOWEST * self.storage.timeout_s
        pieces, size = list[bytes](), 0
        while at_most is None or size < at_most:
            left = _CHUNK if at_most is None else min(_CHUNK, at_most - size)
            piece = answer.read1(left)
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{shown(url)}: {size} bytes in {_SLOWEST * self.storage.timeout_s:.0f} s, and "
                    "no end; storage.timeout_s allows for more"
                )
        return b"".join(pieces)


def _joined(place: str, location: str, url: str) -> str:
    try:
        return urljoin(place, location)
    except ValueError:
        raise FileNotFoundError(
            f"{shown(url)} redirects to {shown(location)}, which is no address"
        ) from None


def _require_whole(status: int, url: str) -> None:
    if status in _WHOLE:
        return
    if status in _ABSENT:
        raise FileNotFoundError(f"{shown(url)} does not exist (HTTP {status})")
    if status in _PASSING:
        raise _PassingError(f"HTTP {status}")
    raise StorageRefused(
        f"{shown(url)}: HTTP {status}; the server must give it, or say 404, for it to be a row"
    )


def _entry(name: str, answer: urllib3.BaseHTTPResponse) -> Entry:
    size = int(answer.headers.get("Content-Length", 0))
    changed = answer.headers.get("Last-Modified", "")
    etag = answer.headers.get("ETag", "").strip('"')
    try:
        modified = parsedate_to_datetime(changed) if changed else None
    except ValueError:
        modified = None
    return Entry(name, size, etag or f"{size}-{changed}", modified)


def _climbs(name: str) -> bool:
    """Return whether a decoded name of a path leads elsewhere, however often it was encoded."""
    for _ in range(_DEPTH):
        # What follows a semicolon is a parameter of the folder to some servers.
        folders = (part.partition(";")[0] for part in name.replace("\\", "/").split("/"))
        if {".", ".."} & set(folders):
            return True
        name = unquote(name)
    return False


@lru_cache(1)
def _pool() -> urllib3.PoolManager:
    return urllib3.PoolManager(maxsize=_CONNECTIONS)
