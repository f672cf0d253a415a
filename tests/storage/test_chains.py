"""URIs of one store in another, and of stores that a package has to be installed for."""

import io
import pickle  # noqa: TID251 - what Ray does with a folder
import subprocess
import sys
import tarfile
import time
import zipfile
from importlib.util import find_spec

import pytest

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError, StorageError, StorageRefused
from patchlake.pipeline.storage.chains import below, direct, split_name
from patchlake.pipeline.storage.folder import Folder, split_uri
from tests.conftest import Store
from tests.fault_proxy import FAULTS

FILES = {"top": b"0", "lake/g=a/1.parquet": b"1" * 90_000, "lake/b": b"22"}


def zipped(files: dict[str, bytes] = FILES) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return sink.getvalue()


def tarred(mode: str) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


CHAINS = (
    "zip://lake::s3://{}/a.zip",
    "zip://lake/::s3a://{}/a.zip",
    "zip://lake::simplecache::s3://{}/a.zip",
    "zip://lake::filecache::s3://{}/a.zip",
    "tar://lake::s3://{}/a.tar",
    "tar://lake::s3://{}/a.tar.gz",
    # (simplecache hides the name, by which tar is known to be compressed.)
    "tar://lake::filecache::s3://{}/a.tar.gz",
    "tar://lake::simplecache::s3://{}/a.tar",
    "simplecache::zip://lake::s3://{}/a.zip",
    "simplecache::s3://{}/lake",
    "filecache::s3://{}/lake",
    "blockcache::s3://{}/lake/",
    "dir::s3://{}/lake",
)


@pytest.fixture
def chained(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Archives in a bucket, to which only `storage.endpoint` leads."""
    store.put("a.zip", zipped())
    store.put("a.tar", tarred("w"))
    store.put("a.tar.gz", tarred("w:gz"))
    for name, content in FILES.items():
        store.put(name, content)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    return store


@pytest.mark.s3
@pytest.mark.slow
class TestInS3:
    @pytest.mark.parametrize("chain", CHAINS)
    def test_a_chain_is_read_from_where_storage_says(self, chain: str, chained: Store):
        storage = chained.settings(retries=12, timeout_s=2.0).storage
        chained.proxy.faults, chained.proxy.rate = FAULTS, 0.2
        folder = Folder.at(chain.format(chained.bucket), storage)
        folder = pickle.loads(pickle.dumps(folder))
        assert [(e.name, e.size) for e in folder.find()] == [("b", 2), ("g=a/1.parquet", 90_000)]
        assert folder.read("b") == b"22"
        assert folder.folders() == ["g=a"]
        with folder.open("g=a/1.parquet") as file:
            file.seek(89_999)
            assert file.read() == b"1"
        again, name = split_uri(folder.path("b"), storage)
        assert (again.root, name) == (folder.root, "b")
        assert again.exists(name)
        assert chained.proxy.requests

    def test_its_requests_are_tried_as_often_as_storage_says(self, chained: Store):
        proxy = chained.proxy
        uri = f"zip://lake::s3://{chained.bucket}/a.zip"
        storage = chained.settings(retries=2, timeout_s=1.0).storage
        proxy.faults, proxy.rate = ("slow_down",), 1
        with pytest.raises(StorageError, match=r"a\.zip: 503: .*\(tries: 3\)"):
            Folder.at(uri, storage)
        assert len(proxy.requests) == 3
        # Half of an answer to HEAD is all of it; its connection is gone when it is used again.
        for fault, requests in (("reset", 3), ("lost", 3), ("truncated", 4), ("stall", 3)):
            proxy.calm()
            proxy.faults, proxy.rate = (fault,), 1
            begun = time.monotonic()
            with pytest.raises(StorageError, match=r"a\.zip: .*incomplete \(tries: 3\)"):
                Folder.at(uri, storage)
            assert 3 <= len(proxy.requests) <= requests
            assert time.monotonic() - begun < 15

    def test_its_region_is_what_storage_says(self, chained: Store):
        storage = chained.settings(region="eu-north-7").storage
        with pytest.raises(StorageRefused, match=r"eu-north-7|403|400"):
            Folder.at(f"tar://::s3://{chained.bucket}/a.tar", storage)

    def test_an_archive_that_changed_is_not_read_as_two_halves(self, chained: Store):
        storage = chained.settings().storage
        folder = Folder(f"zip://lake::s3://{chained.bucket}/big.zip", storage)
        # More than s3fs reads at once.
        chained.put("big.zip", zipped({"lake/x": bytes(60 * 2**20), "lake/y": b"1"}))
        assert [entry.name for entry in folder.find()] == ["x", "y"]
        chained.put("big.zip", zipped({"lake/x": b"1" * 60 * 2**20, "lake/y": b"2"}))
        with pytest.raises(StorageError, match="has changed since it was listed"):
            folder.read("x")

    def test_what_is_not_there_is_said_by_its_name(self, chained: Store):
        storage = chained.settings().storage
        uri = f"zip://::s3://{chained.bucket}/none.zip"
        with pytest.raises(ConfigError, match=r"'zip://::s3.*' cannot be opened: .*none\.zip"):
            Folder.at(uri, storage)
        with pytest.raises(ConfigError, match="cannot be opened: "):
            Folder.at(f"zip://::s3://{chained.bucket}/top", storage)


@pytest.mark.s3
@pytest.mark.slow
def test_an_archive_in_a_public_bucket_is_read_without_credentials(moto, monkeypatch):
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    moto.client().create_bucket(Bucket="archives")
    moto.client().put_object(Bucket="archives", Key="a.zip", Body=zipped(), ACL="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    signed = StorageSettings(endpoint=moto.endpoint, retries=0, timeout_s=7.0)
    uri = "zip://::simplecache::s3://archives/a.zip"
    with pytest.raises(StorageRefused, match="Unable to locate credentials"):
        Folder.at(uri, signed)
    public = Folder.at(uri, signed.model_copy(update={"anonymous": True}))
    assert public.read("top") == b"0"


@pytest.mark.parametrize("place", ["zip://", "zip://lake", "zip://lake/g=a"])
def test_an_archive_on_a_disk_is_a_folder(place: str, tmp_path):
    (tmp_path / "a.zip").write_bytes(zipped())
    folder = Folder.at(f"{place}::file://{tmp_path}/a.zip")
    prefix = place.removeprefix("zip://")
    inside = [name for name in sorted(FILES) if name.startswith(prefix)]
    found = [entry.name for entry in folder.find()]
    assert found == [name.removeprefix(prefix).lstrip("/") for name in inside]
    assert sorted(folder.names()) == found
    for name, whole in zip(found, inside, strict=True):
        assert folder.read(name, at_most=3) == FILES[whole][:3]
        assert folder.entry(name) in folder.find()
        assert split_uri(folder.path(name))[0].path(split_uri(folder.path(name))[1]) == (
            folder.path(name)
        )


def test_a_member_of_the_same_size_is_another_version(tmp_path):
    versions = []
    for content in (b"1", b"2"):
        (tmp_path / "a.zip").write_bytes(zipped({"x": content}))
        versions.append(Folder(f"zip://::{tmp_path}/a.zip").entry("x").version)
    assert versions[0] != versions[1]


@pytest.mark.parametrize(
    ("uri", "name", "path"),
    [
        ("zip://::s3://b/a.zip", "x", "zip://x::s3://b/a.zip"),
        ("zip://g/::s3://b/a.zip", "h/x", "zip://g/h/x::s3://b/a.zip"),
        ("s3://b/a::b", "x", "s3://b/a::b/x"),
        ("/a::b", "x", "/a::b/x"),
        ("/", "x", "/x"),
    ],
)
def test_a_name_is_appended_to_the_first_store_of_a_chain(uri: str, name: str, path: str):
    assert below(uri, name) == path
    parent, last = split_name(path)
    assert below(parent, last) == path


def test_a_cache_of_fsspecs_is_read_past():
    # It would not notice a change, nor say whether a put was the first.
    assert direct("simplecache::s3://b/x") == "s3://b/x"
    assert direct("filecache://::blockcache::zip://a::simplecache::s3://b/x") == (
        "zip://a::simplecache::s3://b/x"
    )
    assert Folder("filecache::s3://b/x").is_s3


@pytest.mark.parametrize(
    ("uri", "package"),
    [
        ("gs://bucket/lake", "gcsfs"),
        ("gcs://bucket/lake", "gcsfs"),
        ("abfs://container/lake", "adlfs"),
        ("abfss://container@account.dfs.core.windows.net/lake", "adlfs"),
        ("az://container/lake", "adlfs"),
        ("zip://::gs://bucket/lake.zip", "gcsfs"),
    ],
)
def test_a_store_whose_package_is_missing_names_it(uri: str, package: str):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(ConfigError, match=rf"'{uri}' cannot be opened: .*pip install {package}$"):
        Folder.at(uri)


@pytest.mark.parametrize(
    "uri", ["abfs://container:SECRET@account/x", "zip://::abfs://k:SECRET@a.b/x", "gs://SECRET@b/x"]
)
def test_a_container_is_no_credential_and_a_key_is(uri: str):
    with pytest.raises(ConfigError, match="carries credentials") as raised:
        Folder(uri)
    assert "SECRET" not in str(raised.value)


def test_who_has_nothing_in_s3_does_not_wait_for_s3fs(tmp_path):
    said = (
        "import sys; from patchlake.pipeline.storage.folder import Folder\n"
        "Folder.at(sys.argv[1]).find(); Folder.at('memory://x').find()\n"
        "print({'s3fs', 'botocore', 'aiohttp'} & sys.modules.keys())"
    )
    command = [sys.executable, "-c", said, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "none"])
def test_what_is_no_archive_is_refused(name: str, tmp_path):
    if name != "none":
        (tmp_path / name).write_bytes(b"\x1f\x8b\x08 no archive" * 99)
    kind = "zip" if name == "a.zip" else "tar"
    with pytest.raises(ConfigError, match="cannot be opened: "):
        Folder.at(f"{kind}://::{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("reference://::s3://b/x.json", "its references"),
        ("zip://::reference://::/x.json", "its references"),
        ("zip://::blockcache::s3://b/a.zip", "mixes blocks"),
        ("tar://::cached://::s3://b/a.tar", "mixes blocks"),
    ],
)
def test_links_that_would_give_something_else_are_refused(uri: str, reason: str):
    with pytest.raises(ConfigError, match=rf"'{uri}' is refused: .*{reason}"):
        Folder.at(uri)


def test_a_store_that_fsspec_does_not_know_is_refused():
    with pytest.raises(ConfigError, match="'nowhere://b/x' cannot be opened: Protocol not known"):
        Folder.at("nowhere://b/x")
