"""Who may ask the page anything: a browser on this machine that was given the link.

The server listens on 127.0.0.1, but that alone keeps nobody out who can make that browser, or
another user of the machine, ask it something. So

- each request has the token: of the link at the first visit, of a cookie afterwards, which scripts
  cannot read and other sites cannot make the browser send (HttpOnly, SameSite=Strict);
- the Host is ours, so that a name that somebody points to 127.0.0.1 (DNS rebinding) is no way in;
- what changes something has a second token, which is in the page only and goes in a header that
  other origins cannot set, and comes from our origin;
- answers tell the browser to run, load and frame nothing but our own files.
"""

import secrets
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WRITE_HEADER = "x-patchlake-write"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def _token() -> str:
    return secrets.token_urlsafe(32)


@dataclass(frozen=True)
class Keys:
    """The tokens of one server, and where it listens."""

    port: int
    read: str = field(default_factory=_token, repr=False)
    write: str = field(default_factory=_token, repr=False)

    @property
    def link(self) -> str:
        """The address of the page, with the token."""
        return f"http://127.0.0.1:{self.port}/?token={self.read}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """How a browser may call this server."""
        return f"127.0.0.1:{self.port}", f"localhost:{self.port}"

    @property
    def cookie(self) -> str:
        """The cookie's name: browsers send one port's cookies to all others."""
        return f"patchlake_review_{self.port}"


@dataclass(frozen=True)
class Guard:
    """Lets through what may be asked, and puts the headers on each answer."""

    app: ASGIApp
    keys: Keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no web sockets: without an answer the server refuses them
        request = Request(scope)
        is_visit = request.url.path == "/" and "token" in request.query_params
        refused = self._refused(request, is_visit=is_visit)

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
                if is_visit and refused is None:
                    cookie = f"{self.keys.cookie}={self.keys.read}"
                    headers["set-cookie"] = f"{cookie}; Path=/; HttpOnly; SameSite=Strict"
            await send(message)

        if refused is None:
            await self.app(scope, receive, sending)
        else:
            status, reason = refused
            await PlainTextResponse(f"{reason}\n", status)(scope, receive, sending)

    def _refused(self, request: Request, *, is_visit: bool) -> tuple[HTTPStatus, str] | None:
        """Return why a request is not answered; None if it is."""
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self.keys.hosts:
            return HTTPStatus.MISDIRECTED_REQUEST, "this server is not called that"
        tokens = request.query_params.getlist("token") if is_visit else []
        given = tokens or [request.cookies.get(self.keys.cookie, "")]
        if len(given) != 1 or not _same(given[0], self.keys.read):
            return HTTPStatus.FORBIDDEN, "open the link that `patchlake review` has printed"
        if request.method in ("GET", "HEAD"):
            return None
        origin = request.headers.get("origin")
        ours = [f"http://{host}" for host in self.keys.hosts]
        site = request.headers.get("sec-fetch-site", "same-origin")
        is_ours = origin in ours and site == "same-origin"
        if not is_ours or not _same(request.headers.get(WRITE_HEADER, ""), self.keys.write):
            return HTTPStatus.FORBIDDEN, "only the page itself may ask for that"
        return None


def _same(one: str, other: str) -> bool:
    """Compare in a time that does not tell how much of it is right."""
    return secrets.compare_digest(one.encode(errors="surrogateescape"), other.encode())
