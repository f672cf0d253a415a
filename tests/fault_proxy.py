"""A proxy in front of an S3 server that counts requests and, when told to, spoils some of them."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

# slow_down, internal: an error answer, the request is not passed on. reset: the connection ends
# without an answer. lost: the server does what it was asked, and its answer is not passed on.
# truncated: half of the answer's body, then the end. stall: no byte for 30 s.
Fault = Literal["slow_down", "internal", "reset", "lost", "truncated", "stall", "denied"]
FAULTS: tuple[Fault, ...] = ("slow_down", "internal", "reset", "lost", "truncated", "stall")

_ANSWERS = {
    "slow_down": (503, "SlowDown"),
    "internal": (500, "InternalError"),
    "denied": (403, "AccessDenied"),
}
_STALL_S = 30.0
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "expect")


class Request(NamedTuple):
    """One request as it came in, with the fault it met, if any."""

    method: str
    path: str
    query: str
    span: str
    fault: Fault | None

    @property
    def kind(self) -> str:
        """The method, or LIST."""
        return "LIST" if "list-type=" in self.query else self.method


@dataclass
class FaultProxy:
    """What is to go wrong, how often, and what was asked. May be changed at any time."""

    upstream: str
    endpoint: str = ""
    faults: Sequence[Fault] = ()
    rate: float = 0.0
    # After so many requests every one fails: the store is gone.
    outage_after: int | None = None
    # (method, beginning of the path) of requests that are not allowed.
    denied: Sequence[tuple[str, str]] = ()
    # Headers of which the server knows nothing: 501.
    unknown: Sequence[str] = ()
    requests: list[Request] = field(default_factory=list)
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Event = field(default_factory=threading.Event)

    def note(self, method: str, target: str, span: str) -> Fault | None:
        """Record a request; return its fault."""
        parts = urlsplit(target)
        with self._lock:
            is_denied = any(method == m and parts.path.startswith(p) for m, p in self.denied)
            fault = "denied" if is_denied else self._choose()
            self.requests.append(Request(method, parts.path, parts.query, span, fault))
        return fault

    def _choose(self) -> Fault | None:
        if self.outage_after is not None and len(self.requests) >= self.outage_after:
            return "slow_down"
        if self.faults and self._random.random() < self.rate:
            return self._random.choice(list(self.faults))
        return None

    def calm(self) -> None:
        """No more faults, and forget the requests so far."""
        self.faults, self.rate, self.outage_after = (), 0.0, None
        self.requests.clear()

    def counts(self, below: str = "/") -> Counter[str]:
        """Return the number of requests by kind, of paths that begin so."""
        return Counter(r.kind for r in self.requests if r.path.startswith(below))

    def met(self) -> Counter[str]:
        """Return how many requests met each fault."""
        return Counter(r.fault for r in self.requests if r.fault is not None)

    def told(self) -> str:
        """Return the requests, a line each."""
        return "\n".join(f"{r.kind} {r.path} {r.query[:60]} {r.span}" for r in self.requests)

    def wait(self, seconds: float) -> None:
        """Let time pass, but not beyond the end of the proxy."""
        self._closing.wait(seconds)


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy until the block ends."""
    proxy = FaultProxy(upstream)

    class Handler(_Handler):
        pass

    Handler.proxy = proxy
    server = _Server(("127.0.0.1", 0), Handler)
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy._closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """Say nothing: clients that hang up are what this is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultProxy
    _connection: http.client.HTTPConnection | None = None

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def finish(self):
        if self._connection is not None:
            self._connection.close()
        with suppress(OSError, ValueError):
            super().finish()

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.note(self.command, self.path, self.headers.get("Range", ""))
        if any(name in self.headers for name in self.proxy.unknown):
            self._answer_error(501, "NotImplemented")
            return
        if fault in _ANSWERS:
            self._answer_error(*_ANSWERS[fault])
            return
        if fault == "stall":
            self.proxy.wait(_STALL_S)
        if fault in ("reset", "stall"):
            self._reset()
            return
        status, headers, content = self._forward(body)
        if fault == "lost":
            self._reset()
            return
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if fault == "truncated":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self._reset()
            return
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - as http.server wants

    def _forward(self, body: bytes):
        # The Host is passed on as it is: it is signed.
        headers = {n: v for n, v in self.headers.items() if n.lower() not in _HOP_BY_HOP}
        for attempt in range(2):
            if self._connection is None:
                self._connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc)
            try:
                self._connection.request(self.command, self.path, body=body, headers=headers)
                answer = self._connection.getresponse()
                content = answer.read()
                break
            except (http.client.HTTPException, ConnectionError):
                self._connection.close()
                self._connection = None
                if attempt:
                    raise
        kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in _HOP_BY_HOP]
        if self.command != "HEAD" and not any(n.lower() == "content-length" for n, _ in kept):
            kept.append(("Content-Length", str(len(content))))
        return answer.status, kept, content

    def _answer_error(self, status: int, code: str):
        content = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _reset(self):
        self.wfile.flush()
        time.sleep(0.01)  # what was sent leaves before the connection is torn down
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *arguments):
        """Say nothing: the requests are recorded."""
