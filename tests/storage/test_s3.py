"""Folders in S3: what a real server and a mock do, and what is refused before a server is asked."""

import asyncio
import io
import os
import pickle  # noqa: TID251 - what Ray does with a folder
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from itertools import pairwise

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from s3fs import S3FileSystem

from patchlake.pipeline.config import StorageSettings, load_settings
from patchlake.pipeline.errors import ConfigError, Stopped, StorageError, StorageRefused
from patchlake.pipeline.reading.columns import fetch_columns
from patchlake.pipeline.storage import s3, s3_file
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.s3 import Bucket
from patchlake.pipeline.storage.s3_file import RangedFile, join_ranges
from tests.conftest import Store
from tests.fault_proxy import FaultProxy, fault_proxy

# The least that S3 takes, but for the last part.
PART = 5 * 2**20
DEAD = StorageSettings(endpoint="http://127.0.0.1:9", region="us-east-1", retries=0)


@pytest.fixture(params=["swift", "moto"])
def bucket(request: pytest.FixtureRequest, monkeypatch) -> Iterator[tuple[Folder, FaultProxy]]:
    """A folder in a bucket of each server, and the proxy that it is behind."""
    server = request.getfixturevalue(request.param)
    name = f"b-{uuid.uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=name)
    for variable, value in server.environment.items():
        monkeypatch.setenv(variable, value)
    with fault_proxy(server.endpoint) as proxy:
        storage = StorageSettings(endpoint=proxy.endpoint, region="us-east-1")
        yield Folder.at(f"s3://{name}/a lake/", storage), proxy


def kinds(proxy: FaultProxy) -> dict[str, int]:
    counted = dict(proxy.counts())
    proxy.calm()
    return counted


def on_servers(test):
    return pytest.mark.s3(pytest.mark.slow(test))


@on_servers
class TestServers:
    def test_each_thing_that_is_asked_is_one_request(self, bucket):
        folder, proxy = bucket
        assert folder.find() == []
        assert kinds(proxy) == {"LIST": 1}
        names = ["a/1", "a/2", "g=ä b/%2F.x", "Z", "empty"]
        for name in names:
            folder.write(name, b"" if name == "empty" else name.encode())
        assert kinds(proxy) == {"PUT": 5}
        assert [e.name for e in folder.find()] == sorted(names)
        assert [e.name for e in folder.find("a")] == ["a/1", "a/2"]
        assert kinds(proxy) == {"LIST": 2}
        assert [folder.read(name) for name in names[:3]] == [n.encode() for n in names[:3]]
        assert folder.read("g=ä b/%2F.x", at_most=3) == b"g=\xc3"
        assert folder.read("empty", at_most=3) == folder.read("empty") == b""
        assert kinds(proxy) == {"GET": 6}
        assert folder.entry("a/1") in folder.find()
        assert kinds(proxy) == {"HEAD": 1, "LIST": 1}
        folder.remove("a/1")
        folder.remove("absent")
        assert kinds(proxy) == {"DELETE": 2}
        assert (folder.exists("a"), folder.exists("a/1"), folder.exists("Z")) == (True, False, True)
        for absent in (folder.read, folder.entry, lambda name: folder.open(name).read()):
            with pytest.raises(FileNotFoundError, match=r"s3://b-.*/a lake/a/1 does not exist"):
                absent("a/1")
        folder.move("Z", "g=ä b/moved")
        assert (folder.read("g=ä b/moved"), folder.exists("Z")) == (b"Z", False)
        with pytest.raises(FileNotFoundError):
            folder.move("Z", "again")
        folder.remove("", recursive=True)
        assert folder.find() == []

    def test_create_puts_only_what_is_absent(self, bucket):
        folder, _ = bucket
        assert folder.create("run.json", b"first")
        assert not folder.create("run.json", b"second")
        assert folder.read("run.json") == b"first"
        store, late = folder._store, b"of one who has not seen the first"
        with pytest.raises(FileExistsError):
            store.bucket._ask("put_object", Key=store.key("run.json"), Body=late, IfNoneMatch="*")
        assert folder.read("run.json") == b"first"

    def test_an_upload_in_parts_is_seen_when_it_is_whole(self, bucket, monkeypatch):
        folder, proxy = bucket
        monkeypatch.setattr(s3_file, "PART_BYTES", PART)
        content = np.random.default_rng(0).bytes(2 * PART + 17)
        with folder.writing("big") as file:
            file.write(content[: PART + 1])
            assert not folder.exists("big")
            proxy.calm()
            file.write(memoryview(content)[PART + 1 :])
        assert kinds(proxy) == {"PUT": 2, "POST": 1}
        assert folder.read("big") == content
        assert folder.find("")[0].version == folder.entry("big").version
        with pytest.raises(TypeError), folder.writing("half") as file:
            file.write([file.write(content)])
        assert [entry.name for entry in folder.find()] == ["big"]

    def test_an_upload_whose_last_answer_is_lost_is_complete(self, bucket, monkeypatch):
        folder, proxy = bucket
        monkeypatch.setattr(s3_file, "PART_BYTES", PART)
        note, lost = proxy.note, []

        def lose_the_end(method: str, target: str, span: str) -> str | None:
            if method == "POST" and "uploadId=" in target and not lost:
                lost.append(target)
                return "lost"
            return note(method, target, span)

        monkeypatch.setattr(proxy, "note", lose_the_end)
        content = np.random.default_rng(0).bytes(PART + 17)
        folder.write("big", content)
        assert lost
        assert folder.read("big") == content

    def test_a_listing_goes_on_behind_its_first_page(self, bucket, monkeypatch):
        folder, proxy = bucket
        monkeypatch.setattr(s3, "_PAGE", 3)
        names = [f"n/{number}" for number in range(7)]
        for name in names:
            folder.write(name, b"")
        proxy.calm()
        assert [entry.name for entry in folder.find("n")] == names
        assert kinds(proxy) == {"LIST": 3}

    def test_a_file_that_changed_is_not_read_as_two_halves(self, bucket):
        folder, _ = bucket
        folder.write("x", b"1" * 3_000_000)
        [entry] = folder.find()
        with folder.open("x", entry.version) as file:
            assert file.read(10) == b"1" * 10
            folder.write("x", b"2" * 3_000_000)
            assert file.read(10) == b"1" * 10, "held"
            file.seek(2_000_000)
            with pytest.raises(StorageError, match="has changed since it was listed: start again"):
                file.read(10)
        with pytest.raises(StorageError, match="has changed"):
            folder.open("x", entry.version).read(1)

    def test_columns_of_neighbouring_row_groups_are_one_request(self, bucket):
        folder, proxy = bucket
        rng = np.random.default_rng(0)
        columns = {
            "id": [f"{i}" for i in range(400)],
            "image": [rng.bytes(9000) for _ in range(400)],
        }
        columns["mask"] = [rng.bytes(9000) for _ in range(400)]
        table = pa.table(columns)
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=100, compression="none")
        folder.write("t.parquet", sink.getvalue())
        version = folder.entry("t.parquet").version
        proxy.calm()
        with folder.open("t.parquet", version) as handle:
            file = pq.ParquetFile(handle)
            assert kinds(proxy) == {"GET": 1}, "the tail, of 64 KiB, holds the footer"
            fetch_columns(handle, file, [1, 2], ["id", "image"])
            read = file.read_row_groups([1, 2], columns=["id", "image"])
        assert read.equals(table.slice(100, 200).select(["id", "image"]))
        assert kinds(proxy) == {"GET": 1}
        with folder.open("t.parquet", version) as handle:
            again = pq.ParquetFile(handle)
            assert not proxy.requests, "the footer of this version is known"
            fetch_columns(handle, again, range(4), ["id"])
            assert again.read(columns=["id"]).equals(table.select(["id"]))
        # 1.8 MB lie between the ids of two row groups: more than is worth reading for nothing.
        assert kinds(proxy) == {"GET": 4}

    def test_any_order_of_reads_gives_the_bytes(self, bucket):
        folder, _ = bucket
        content = np.random.default_rng(0).bytes(3_000_000)
        folder.write("x", content)
        folder.write("small", content[:1000])
        rng = np.random.default_rng(1)
        with folder.open("x") as file:
            for begin, size in rng.integers(0, 3_000_000, (40, 2)):
                file.seek(begin)
                assert file.read(size) == content[begin : begin + size]
                assert file.tell() == min(begin + size, len(content))
            array = np.empty(500_000, np.float32)
            file.seek(999_999)
            assert file.readinto(array) == 2_000_000
            assert array.tobytes() == content[999_999:2_999_999]
            assert file.seek(0, io.SEEK_END) == len(content)
            assert file.read(5) == b""
        for name, expected in (("x", content), ("small", content[:1000])):
            with folder.open(name) as file:
                blocks = []
                while block := file.read(700_000):
                    blocks.append(block)
            assert b"".join(blocks) == expected
            assert folder.open(name).read() == expected

    def test_a_denial_is_not_tried_again_and_a_failing_store_is(self, bucket):
        folder, proxy = bucket
        few = Folder(folder.uri, folder.storage.model_copy(update={"retries": 3}))
        proxy.denied = (("GET", "/"),)
        with pytest.raises(StorageRefused, match=r"access denied \(AccessDenied: injected\)"):
            few.read("x")
        assert kinds(proxy) == {"GET": 1}
        proxy.denied, proxy.faults, proxy.rate = (), ("slow_down",), 1
        with pytest.raises(StorageError, match=r"SlowDown: injected \(tries: 4\)") as raised:
            few.write("x", b"1")
        assert not isinstance(raised.value, StorageRefused)
        assert kinds(proxy) == {"PUT": 4}
        ways = {
            "GET": lambda: few.read("x"),
            "PUT": lambda: few.write("x", b"1"),
            "LIST": few.find,
            "HEAD": lambda: few.entry("x"),
            "DELETE": lambda: few.remove("x"),
        }
        for fault in ("reset", "lost"):
            for kind, ask in ways.items():
                proxy.faults, proxy.rate = (fault,), 1
                with pytest.raises(
                    StorageError, match=r"answer is incomplete \(tries: 4\)"
                ) as raised:
                    ask()
                assert not isinstance(raised.value, StorageRefused)
                assert kinds(proxy) == {kind: 4}


@on_servers
def test_a_store_that_knows_no_condition_is_asked_first(store: Store):
    proxy = store.proxy
    proxy.unknown = ("If-None-Match",)
    folder = Folder.at(store.uri("x"), store.settings().storage)
    assert folder.create("run.json", b"first")
    assert not folder.create("run.json", b"second")
    assert folder.read("run.json") == b"first"


@on_servers
def test_a_public_bucket_is_read_without_credentials(moto, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in moto.environment.items():
        if "KEY" not in name:
            monkeypatch.setenv(name, value)
    moto.client().create_bucket(Bucket="public")
    moto.client().put_object(Bucket="public", Key="a", Body=b"1", ACL="public-read")
    signed = StorageSettings(endpoint=moto.endpoint, retries=0)
    with pytest.raises(StorageRefused, match="Unable to locate credentials"):
        Folder("s3://public", signed).read("a")
    assert Folder("s3://public", signed.model_copy(update={"anonymous": True})).read("a") == b"1"


@pytest.fixture
def deaf() -> Iterator[str]:
    """The endpoint of a server that takes connections, and no byte from them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("size", [10, 64 * 2**20])
def test_what_cannot_be_sent_fails_in_time(size: int, deaf: str, monkeypatch):
    """Of a large one the sending stalls, of a small one the answer does."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    storage = StorageSettings(endpoint=deaf, region="us-east-1", retries=0, timeout_s=1.0)
    begun = time.monotonic()
    with pytest.raises(StorageError, match=r"s3://b/x: the answer is incomplete \(tries: 1\)"):
        Bucket("b", storage).put("x", bytes(size))
    assert time.monotonic() - begun < 10


def test_who_is_interrupted_asks_no_further(deaf: str, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    storage = StorageSettings(endpoint=deaf, region="us-east-1", timeout_s=1.0)
    s3fs = Bucket("b", storage).filesystem

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(Stopped):
            Bucket("b", storage).get("x")
    finally:
        signal.signal(signal.SIGALRM, before)
    # One that is not told to end makes nine attempts of a second each.
    deadline = time.monotonic() + 2
    while waiting := asyncio.run_coroutine_threadsafe(_tasks_of("_call_s3"), s3fs.loop).result():
        assert time.monotonic() < deadline, waiting


async def _tasks_of(name: str) -> int:
    await asyncio.sleep(0.1)
    return sum(name in repr(task) for task in asyncio.all_tasks())


def test_a_fork_has_an_s3fs_of_its_own(deaf: str):
    """One that runs on a thread which a fork has not would wait for ever."""
    storage = StorageSettings(endpoint=deaf, region="us-east-1", anonymous=True, retries=0)
    quick = Bucket("b", storage.model_copy(update={"timeout_s": 0.5}))
    with pytest.raises(StorageError):
        quick.get("x")
    child = os.fork()
    if child == 0:
        try:
            quick.get("x")
        except StorageError:
            os._exit(7)
        os._exit(1)
    end = time.monotonic() + 20
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.05)
    assert os.waitstatus_to_exitcode(ended[1]) == 7


@given(st.lists(st.tuples(st.integers(0, 2**26), st.integers(1, 2**23))))
def test_joined_ranges_hold_all_and_are_far_apart(pairs):
    ranges = [(begin, begin + size) for begin, size in pairs]
    joined = join_ranges(ranges)
    assert all(any(a <= begin and end <= b for a, b in joined) for begin, end in ranges)
    assert all(right[0] - left[1] > 2**20 for left, right in pairwise(joined))
    edges = {edge for pair in ranges for edge in pair}
    assert {edge for pair in joined for edge in pair} <= edges


def test_spellings_of_a_folder_in_s3_have_one_root():
    spellings = ["s3://b/lake", "s3://b/lake/", "s3a://b//lake//", "s3:///b/lake"]
    assert {Folder(uri).root for uri in spellings} == {"s3://b/lake"}
    assert Folder("s3://b").root == "s3://b"
    assert Folder("s3://b/").path("x") == "s3://b/x"
    with pytest.raises(ConfigError, match="names no bucket"):
        Folder.at("s3://")


def test_a_folder_travels_with_how_it_is_reached_and_nothing_else():
    folder = Folder.at("s3://b/lake", DEAD)
    assert folder.is_s3
    with pytest.raises(StorageRefused):
        folder.find()
    again = pickle.loads(pickle.dumps(folder))
    assert (again, again.storage) == (folder, DEAD)
    assert vars(again).keys() == {"uri", "storage", "only"}


def test_where_nothing_answers_that_is_said(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    with pytest.raises(
        StorageRefused, match=r"s3://b/lake/a: nothing answers \(tries: 1\)"
    ) as told:
        # Other settings, other client: one that was made with these credentials.
        Folder.at("s3://b/lake", DEAD.model_copy(update={"timeout_s": 2.0})).read("a")
    assert "SECRET" not in str(told.value)
    assert isinstance(told.value, OSError), "stages try again what storage refuses"


@pytest.mark.parametrize(
    "endpoint", ["http://KEY:SECRET@host:9000", "https://host/?sig=SECRET", "host:9000", "s3://b"]
)
def test_an_endpoint_is_a_plain_url_and_a_secret_in_it_is_not_repeated(endpoint):
    with pytest.raises(ConfigError, match=r"storage.endpoint.*an endpoint is http") as raised:
        load_settings(assignments=[f"storage.endpoint={endpoint}"])
    assert "SECRET" not in str(raised.value)


def test_credentials_are_no_settings():
    with pytest.raises(ConfigError, match=r"storage\.secret' is unknown"):
        load_settings(flags={"storage": {"secret": "SECRET"}})


def test_what_is_fetched_at_once_is_bounded():
    asked = []

    class Counting(Bucket):
        def get(self, key, **given):
            asked.append(given["span"])
            raise FileNotFoundError(key)

    file = RangedFile(Counting("b", DEAD), "k", "etag")
    file.fetch([(0, 2**30)])
    assert asked == []
    with pytest.raises(FileNotFoundError):
        file.fetch([(0, 10), (100, 110)])
    assert asked == ["0-109"]


def test_an_answer_of_an_error_that_breaks_off_is_asked_for_again(monkeypatch):
    """The body of a 404 is read below s3fs, and aiohttp's errors come through."""

    async def call(_client: object, _method: str, **_: object) -> dict[str, object]:
        if broken:
            raise broken.pop()
        return {"answer": 1}

    monkeypatch.setattr(S3FileSystem, "_call_s3", call)
    broken = [aiohttp.ClientPayloadError("Connection broken")]
    storage = StorageSettings(endpoint="http://127.0.0.1:9", region="us-east-1", anonymous=True)
    once = storage.model_copy(update={"retries": 1})
    assert Bucket("bucket", once)._ask("get_object", Key="key") == {"answer": 1}
    broken = [aiohttp.ClientPayloadError("Connection broken")]
    never = storage.model_copy(update={"retries": 0})
    with pytest.raises(StorageError, match=r"s3://bucket/key: the answer is incomplete"):
        Bucket("bucket", never)._ask("get_object", Key="key")
