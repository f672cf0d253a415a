"""What a `uri` cell can name, and what its row becomes: real files, links, pipes, and a server."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError, ImageError, StorageError
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.fetch import fetch
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.web import Address

CONTENT = b"an image" * 1000
QUICK = StorageSettings(retries=1, timeout_s=0.5)
SECRET = "pLaNtEd/9f8e"


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """A folder with all that a file system can hold, and a secret beside it."""
    folder, secret = tmp_path / "allowed", tmp_path / "secret"
    for path in (folder / "folder", secret, tmp_path / "allowed-too"):
        path.mkdir(parents=True)
    for path in (folder / "a.png", folder / "a b%20c?x=1#é.png", secret / "s.png"):
        path.write_bytes(CONTENT)
    (tmp_path / "allowed-too" / "s.png").write_bytes(CONTENT)
    os.mkfifo(folder / "pipe")
    links = {
        "inside": "a.png",
        "out": secret / "s.png",
        "passwd": "/etc/passwd",
        "zero": "/dev/zero",
        "loop": "loop",
        "dangling": "none",
        "folder_out": secret,
        "to_folder": "folder",
        "to_pipe": "pipe",
    }
    for name, target in links.items():
        (folder / name).symlink_to(target)
    return folder


def outcome(uri: object, *prefixes: object, storage: StorageSettings = QUICK) -> str:
    """Return `ok` or the row's status."""
    try:
        content = fetch(uri, [str(one) for one in prefixes], storage, max_bytes=10**6)
    except ImageError as error:
        status, said = error.status, str(error)
    else:
        assert content == CONTENT
        return "ok"
    assert said.isprintable()
    assert len(said) < 600
    return status


@pytest.mark.parametrize(
    ("name", "status"),
    [
        *[(name, "ok") for name in ("a.png", "./a.png", "folder/../a.png", "inside")],
        *[("/a.png", "ok"), ("a b%20c?x=1#é.png", "ok")],
        *[(name, "unreadable") for name in ("folder", "folder/", "to_folder", "pipe", "to_pipe")],
        *[(name, "missing") for name in ("none.png", "loop", "loop/a.png", "dangling", "", ".")],
        *[(name, "missing") for name in ("out", "passwd", "zero", "folder_out/s.png")],
        *[(name, "missing") for name in ("../secret/s.png", "../allowed-too/s.png", "..")],
        *[(name, "missing") for name in ("%2e%2e/secret/s.png", "*.png", "~", "a.png/x", "a.png/")],
        *[(name, "missing") for name in ("x" * 300, "d/" * 3000, "x" * 5000, "a\0.png", "\0")],
        *[(name, "missing") for name in ("a\n.png", "\x1b[31m", "\u202e", "é😀", "\ud7ff")],
        *[(name, "missing") for name in ("x::file:///etc/passwd", "x://u:p@h/y", "http://h/a")],
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_path_below_the_prefix(allowed: Path, name: str, status: str):
    assert outcome(f"{allowed}/{name}", allowed) == status
    assert outcome(f"file://{allowed}/{name}", f"{allowed}/") == status
    assert outcome(f"file:{allowed}/{name}", f"file://{allowed}") == status


def test_paths_elsewhere(allowed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for uri in (
        *("", "a.png", "/", "/etc/passwd", "file:///etc/passwd", f"file://host{allowed}/a.png"),
        *(f"zip://a.png::{allowed}/z.zip", "simplecache::file:///etc/passwd", "~/a.png", "C:\\a"),
        *("data:image/png;base64,AAAA", "memory://a", f"reference://{allowed}/a", "://", "::"),
        *(
            "github://o:r@main/x",
            "s3://other/x",
            "s3a://other/x",
            "http://127.0.0.1:1/x",
            "ftp://h/",
        ),
        *(f"local://{allowed}/a.png", f"FILE://x{allowed}/a.png", f"{tmp_path}/allowed", None, 7),
    ):
        assert outcome(uri, allowed) == "missing", uri
        assert outcome(uri) == "missing", uri
    # Where the job happens to run makes no difference, but where the prefix says so.
    monkeypatch.chdir(tmp_path)
    assert outcome("allowed/a.png", allowed) == "missing"
    assert outcome("allowed/a.png", "allowed") == outcome("./allowed/a.png", "allowed/") == "ok"
    assert outcome("secret/s.png", "allowed") == outcome("allowed/out", "allowed") == "missing"


def test_cells_that_are_bytes_or_no_text(allowed: Path):
    (allowed / os.fsdecode(b"\xff.png")).write_bytes(CONTENT)
    root = os.fsencode(allowed)
    assert outcome(root + b"/a.png", allowed) == outcome(root + b"/\xff.png", allowed) == "ok"
    assert outcome(root + b"/\xfe.png", allowed) == "missing"
    assert outcome(f"{allowed}/\ud800", allowed) == "missing"
    for uri in (b"s3://b/\xff", b"http://127.0.0.1:1/\xff", b"memory://b/\xff"):
        assert outcome(uri, "s3://b", "http://127.0.0.1:1", "memory://b") == "missing"


def test_the_prefix_and_the_folders_above_may_be_links(allowed: Path, tmp_path: Path):
    (tmp_path / "link").symlink_to(allowed)
    assert outcome(f"{tmp_path}/link/a.png", tmp_path / "link") == "ok"
    assert outcome(f"{allowed}/a.png", tmp_path / "link") == "ok"
    assert outcome(f"{tmp_path}/link/a.png", allowed) == "ok"
    assert outcome(f"{tmp_path}/link/out", tmp_path / "link") == "missing"
    assert outcome(f"{tmp_path}/link/out", tmp_path / "link", tmp_path / "secret") == "ok"


def test_sockets_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        assert outcome(f"{tmp_path}/socket", tmp_path) == "unreadable"


def test_a_file_is_read_no_further_than_allowed(allowed: Path):
    assert fetch(f"{allowed}/a.png", [str(allowed)], QUICK, max_bytes=9) == CONTENT[:10]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission_is_not_missing(allowed: Path):
    (allowed / "a.png").chmod(0)
    with pytest.raises(StorageError, match="Permission denied"):
        fetch(f"{allowed}/a.png", [str(allowed)], QUICK, max_bytes=9)


def test_a_disk_that_fails_is_not_missing(allowed: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "stat", broken)
    with pytest.raises(StorageError, match="Input/output error"):
        fetch(f"{allowed}/a.png", [str(allowed)], QUICK, max_bytes=9)


def test_other_stores_are_read_below_their_prefix_only():
    fsspec.filesystem("memory").pipe_file("/fetched/a.png", CONTENT)
    assert outcome("memory://fetched/a.png", "memory://fetched") == "ok"
    for name in (
        "b.png",
        "",
        "..",
        "../fetched/a.png",
        "./a.png",
        "a.png::x",
        "x://a",
        "a//b",
        "\0",
    ):
        assert outcome(f"memory://fetched/{name}", "memory://fetched/") == "missing", name
    assert outcome("memory://other/a.png", "memory://fetched/") == "missing"


@settings(max_examples=40)
@given(st.text(min_size=1, max_size=60).filter(lambda text: "/" not in text))
def test_whatever_a_cell_says_it_is_a_status(text: str):
    for uri in (
        text,
        f"/tmp/{text}",
        f"file:{text}",
        f"http://{text}",
        f"s3://{text}",
        f"a://{text}",
    ):
        assert (
            outcome(uri, "/nonexistent", "http://127.0.0.1:1/x/", "s3://b/p", "a://b") == "missing"
        )


# -- web servers


@dataclass
class Site:
    """A server that answers as it is told, by path."""

    base: str = ""
    asked: list[str] = field(default_factory=list)
    # Path -> status codes, of which the last stays; or a place to redirect to.
    answers: dict[str, list[int] | str] = field(default_factory=dict)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        told = self.answers.get(request.path, [200])
        code = 302 if isinstance(told, str) else told.pop(0) if len(told) > 1 else told[0]
        request.send_response(200 if code < 100 else code)
        if isinstance(told, str):
            request.send_header("Location", told)
        body = CONTENT if code in (200, 1, 2) else b""
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if code == 1:  # cut off
            body = body[:100]
        if code == 2:  # drips
            for _ in range(50):
                request.wfile.write(b"x")
                request.wfile.flush()
                time.sleep(0.1)
        request.wfile.write(body)


@pytest.fixture
def site() -> Iterator[Site]:
    told = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/cam/hangs":
                time.sleep(2)
            told.answer(self)

        def log_message(self, *_: object):
            return

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object):
            return  # readers that have seen enough

    with Server(("127.0.0.1", 0), Handler) as server:
        told.base = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield told
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("code", [400, 401, 403, 429, 500, 502, 503, 504, 1])
def test_only_404_is_missing_whatever_else_is_storage_that_failed(site: Site, code: int):
    url, prefix = f"{site.base}/cam/a.png", f"{site.base}/cam/"
    site.answers["/cam/a.png"] = [code]
    with pytest.raises(StorageError, match=r"/cam/a.png': "):
        outcome(url, prefix)
    # It has come back: the same call reads it.
    site.answers["/cam/a.png"] = [200]
    assert outcome(url, prefix) == "ok"
    for gone in (404, 410):
        site.answers["/cam/a.png"] = [gone]
        assert outcome(url, prefix) == "missing"


def test_what_may_pass_is_tried_again(site: Site):
    site.answers["/cam/a.png"] = [503, 200]
    assert outcome(f"{site.base}/cam/a.png", site.base) == "ok"
    assert len(site.asked) == 2


def test_a_server_that_hangs_drips_or_is_not_there(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("patchlake.pipeline.storage.web._SLOWEST", 2)
    site.answers["/cam/drips"] = [2]
    once = StorageSettings(retries=0, timeout_s=0.3)
    for uri in (f"{site.base}/cam/hangs", f"{site.base}/cam/drips", "http://127.0.0.1:1/cam/a.png"):
        with pytest.raises(StorageError):
            outcome(uri, site.base, "http://127.0.0.1:1", storage=once)


def test_redirects_are_followed_below_the_prefixes_only(site: Site, allowed: Path):
    site.answers |= {
        "/cam/inside": "/cam/a.png",
        "/cam/next": "inside",
        "/cam/out": "/internal/metadata",
        "/cam/climbs": "/cam/../internal/metadata",
        "/cam/encoded": "/cam/%252e%252e/internal/metadata",
        "/cam/host": "http://127.0.0.1:1/cam/a.png",
        "/cam/file": f"file://{allowed}/a.png",
        "/cam/bracket": "http://[bad/x",
        "/cam/parameter": "/cam/..;/internal/metadata",
        "/cam/user": f"http://u:p@{site.base[7:]}/cam/a.png",
    }
    prefix = f"{site.base}/cam"
    assert outcome(f"{prefix}/inside", prefix) == outcome(f"{prefix}/next", prefix) == "ok"
    for name in ("out", "climbs", "encoded", "host", "file", "user", "bracket", "parameter"):
        assert outcome(f"{prefix}/{name}", prefix, allowed) == "missing", name
    assert not [path for path in site.asked if "internal" in path]
    site.answers["/cam/round"] = "/cam/round"
    with pytest.raises(StorageError, match="redirects more than 5 times"):
        outcome(f"{prefix}/round", prefix)


def test_urls_that_name_nothing_below_the_prefix_are_not_asked_for(site: Site):
    host = site.base[7:]
    for uri in (
        *(f"{site.base}/other/a.png", f"{site.base}/camera/a.png", f"{site.base}/cam", site.base),
        *(f"{site.base}/cam/", f"{site.base}/cam/../x", f"{site.base}/cam/%2e%2e/x"),
        *(f"{site.base}/cam/%252E%252e/x", f"{site.base}/cam/..%2fx", f"{site.base}/cam/..\\x"),
        *(
            f"http://u:p@{host}/cam/a.png",
            f"{site.base}@127.0.0.1/cam/a.png",
            f"https://{host}/cam/a",
        ),
        *(
            f"http:/{host}/cam/a.png",
            "http://",
            "http:///cam/a.png",
            "http://[/cam/a",
            "http://h:x/",
        ),
    ):
        assert outcome(uri, f"{site.base}/cam/") == "missing", uri
    assert site.asked == []
    assert outcome(f"HTTP://{host}/cam/./a b.png?size=1#x", f"{site.base}/cam") == "ok"
    assert site.asked == ["/cam/a%20b.png?size=1"]


def test_a_prefix_and_an_url_are_compared_as_servers_do():
    def below(url: str, prefix: str) -> bool:
        one, other = Address.of(url), Address.of(prefix)
        assert one is not None
        assert other is not None
        return one.is_below(other)

    assert below("http://H:80/a%62/x", "http://h/ab")
    assert below("https://h:443/x", "https://h")
    assert not below("http://h/a%2Fb/x", "http://h/a/b")
    assert not below("http://h.evil/x", "http://h")


def test_a_web_folder_reads_names_and_lists_nothing(site: Site):
    folder = Folder(f"{site.base}/cam/", QUICK)
    assert folder.read("a.png", at_most=5) == CONTENT[:5]
    with folder.open("a.png") as file:
        assert file.read() == CONTENT
    # The server does not know HEAD.
    assert folder.entry("a.png").size == len(CONTENT)
    site.answers["/cam/b.png"] = [404]
    assert folder.exists("a.png")
    assert not folder.exists("b.png")
    for call in (folder.find, lambda: list(folder.names()), lambda: folder.write("x", b"")):
        with pytest.raises(ConfigError, match="is on a web server"):
            call()


# -- messages


@pytest.mark.parametrize(
    "uri",
    [
        f"https://h/x.jpg?X-Amz-Signature={SECRET}",
        f"s3://AKIA:{SECRET}@b/x.jpg",
        f"/allowed/x://u:{SECRET}@h/y.jpg",
        f"http://u:{SECRET}@127.0.0.1:1/x",
        f"http://127.0.0.1:1/x#token={SECRET}",
    ],
)
def test_secrets_are_never_echoed(uri: str):
    quick = StorageSettings(retries=0, timeout_s=0.3)
    for prefixes in ([], ["/allowed"], ["http://127.0.0.1:1/"], ["s3://b"]):
        with pytest.raises((ImageError, StorageError)) as raised:
            fetch(uri, prefixes, quick, max_bytes=9)
        assert SECRET not in str(raised.value)
        assert "9f8e" not in str(raised.value)


def test_messages_are_short_and_escaped():
    assert shown("a\n\x1b[31m\u202e") == "'a\\n\\x1b[31m\\u202e'"
    assert len(shown("x" * 100_000)) < 200
    assert shown("/folder/a?b@c") == "'/folder/a?b@c'"
