"""The whole way in S3: the same bytes as elsewhere, whatever storage does, or a loud end."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
from safetensors.torch import save_file

import patchlake as library
from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import fit, score
from patchlake.pipeline.reading import apart
from patchlake.pipeline.record.runs import Summary
from patchlake.pipeline.score_table.packed import pack
from patchlake.pipeline.storage.s3 import _tail
from tests.conftest import LOCAL, TINY_FLAGS, Store, by_place, output_files, soak
from tests.fault_proxy import FAULTS, Fault, fault_proxy
from tests.s3_servers import Server

pytestmark = [pytest.mark.s3, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def upload(server: Server, bucket: str, local: Path, folder: str) -> None:
    client = server.client()
    for file in local.rglob("*"):
        if file.is_file():
            key = f"{folder}/{file.relative_to(local)}"
            client.put_object(Bucket=bucket, Key=key, Body=file.read_bytes())


@pytest.fixture(scope="module")
def prepared(swift: Server, images: Path, model: Path) -> tuple[str, dict[str, bytes]]:
    """A bucket with images and a model, and what scoring them writes when nothing goes wrong."""
    bucket = f"prepared-{uuid.uuid4().hex[:12]}"
    swift.client().create_bucket(Bucket=bucket)
    upload(swift, bucket, images, "images")
    upload(swift, bucket, model, "model")
    with fault_proxy(swift.endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in swift.environment.items():
            patch.setenv(name, value)
        lake = Lake(Store(swift, proxy, bucket), bucket, {})
        lake.score("undisturbed")
        return bucket, lake.store.output("undisturbed")


@dataclass(frozen=True)
class Lake:
    """Images and a model in one bucket, and a store of its own for each test's results."""

    store: Store
    bucket: str
    expected: dict[str, bytes]

    @property
    def images(self) -> str:
        return f"s3://{self.bucket}/images"

    @property
    def model(self) -> str:
        return f"s3://{self.bucket}/model"

    def command(self, scores: str = "scores") -> tuple[str, ...]:
        return "score", self.images, self.model, self.store.uri(scores), *TINY_FLAGS

    def score(self, name: str, **storage: object) -> Summary:
        settings = self.store.settings(**storage)
        return score.run(self.images, self.model, self.store.uri(name), settings, LOCAL)


_numbers = count(20)


def fresh_client() -> tuple[str, str]:
    """Return a setting that no client of this process has: it takes credentials when it is made."""
    return "--set", f"storage.timeout_s={next(_numbers)}"


@pytest.fixture
def lake(prepared: tuple[str, dict[str, bytes]], store: Store) -> Lake:
    _tail.cache_clear()
    return Lake(store, *prepared)


def test_every_verb_works_in_s3_and_gives_what_a_disk_gives(
    store: Store, pictures: Path, images: Path, tmp_path: Path, patchlake
):
    weights = tmp_path / "weights.safetensors"
    save_file(timm.create_model("resnet10t.c3_in1k").state_dict(), weights)
    upload(store.server, store.bucket, pictures, "pictures")
    store.put("settings/weights.safetensors", weights.read_bytes())
    store.put("settings/tiny.yaml", b"image: {resize: [64, 64]}\nfragment_images: 10\n")
    flags = (
        *("--config", store.uri("settings/tiny.yaml"), "--runner", "local"),
        *("--set", "score.scored_at=2026-01-01T00:00:00Z"),
    )
    tagged = (*flags, "--backbone", "resnet10t.c3_in1k", "--set", "method.coreset_fraction=0.1")
    lake, model, out = (store.uri(name) for name in ("images", "model", "scores"))
    for command in (
        ("ingest", store.uri("pictures"), lake, *flags),
        ("fit", lake, model, *tagged, "--weights", store.uri("settings/weights.safetensors")),
        ("score", lake, model, out, *flags),
    ):
        result = patchlake(*command)
        assert result.code == 0, result.err
    metrics = patchlake("evaluate", lake, out, "--json")
    runs = json.loads(patchlake("status", out, "--json").out)
    assert (runs[0]["state"], runs[0]["images_done"]) == ("finished", 44)

    ours, theirs = str(tmp_path / "model"), str(tmp_path / "scores")
    on_disk = (*tagged[2:], "--set", "image.resize=[64, 64]", "--set", "fragment_images=10")
    assert patchlake("fit", images, ours, *on_disk, "--weights", weights).code == 0
    here = (*flags[2:], "--set", "fragment_images=10")
    assert patchlake("score", images, ours, theirs, *here).code == 0
    assert json.loads(patchlake("evaluate", images, theirs, "--json").out) == json.loads(
        metrics.out
    )
    downloaded = tmp_path / "downloaded"
    for name, content in store.files("scores").items():
        (downloaded / name).parent.mkdir(parents=True, exist_ok=True)
        (downloaded / name).write_bytes(content)
    there, here = by_place(downloaded), by_place(Path(theirs))
    assert len(there) == 44
    read = library.open_scores(out).to_table(["source_path", "source_row", "image_score"])
    assert {(r["source_path"], r["source_row"]): r["image_score"] for r in read.to_pylist()} == {
        place: row["image_score"] for place, row in there.items()
    }
    unlike = ("heatmap_path", "source_path")
    # Files are named by their sources, which lie elsewhere; the rows are the same.
    assert sorted(
        [[v for k, v in row.items() if k not in unlike] for row in there.values()], key=str
    ) == sorted([[v for k, v in row.items() if k not in unlike] for row in here.values()], key=str)


def test_nothing_that_is_written_or_said_holds_a_credential(
    lake: Lake, patchlake, monkeypatch: pytest.MonkeyPatch
):
    # Nothing else has these words: `testing`, say, is a split.
    token = "TOKEN0f5e2b7c"
    monkeypatch.setenv("AWS_SECURITY_TOKEN", token)
    said = ""
    model, scores = lake.store.uri("model"), lake.store.uri("scores")
    for command in (
        ("fit", lake.images, model, *TINY_FLAGS),
        ("score", lake.images, model, scores, *TINY_FLAGS),
        ("status", scores, "--json"),
        ("evaluate", lake.images, scores),
        ("score", lake.images, lake.store.uri("none"), scores, *TINY_FLAGS),
        ("status", lake.store.uri("nothing")),
    ):
        result = patchlake(*command)
        said += result.out + result.err
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "WRONG3a9d11")
    result = patchlake(*lake.command(), *fresh_client())
    assert result.code == 2
    said += result.out + result.err
    secret = lake.store.server.secret
    secrets = (secret.encode(), token.encode(), b"WRONG3a9d11", b"test:tester", b"Signature=")
    everything = {**lake.store.files(), "said": said.encode()}
    assert len(everything) > 60
    for name, content in everything.items():
        for word in secrets:
            assert word not in content, f"{name} holds {word!r}"
            assert word.decode() not in name


@pytest.mark.parametrize(
    ("faults", "rate"),
    [
        # Waits that grow, of everything at once; then all kinds, now and then, and all the time.
        (("slow_down",), 0.5),
        (FAULTS, 0.1),
        soak(FAULTS, 0.5),
    ],
)
def test_faults_of_storage_change_no_byte(faults: Sequence[Fault], rate: float, lake: Lake):
    lake.store.proxy.faults, lake.store.proxy.rate = faults, rate
    summary = lake.score("scores", timeout_s=2, retries=12)
    assert summary.statuses == {"ok": 44}
    met = lake.store.proxy.met().keys()
    assert met == set(faults) or (met and rate < 0.5)
    assert lake.store.output("scores") == lake.expected


def test_a_fit_under_faults_makes_the_same_model(lake: Lake):
    """At half of all requests; at a tenth of them, and on Ray, below."""
    store = lake.store
    fit.run(lake.images, store.uri("undisturbed"), store.settings(), LOCAL)
    store.proxy.faults = ("slow_down", "internal", "reset", "lost", "truncated")
    store.proxy.rate = 0.5
    settings = store.settings(timeout_s=2, retries=12)
    fit.run(lake.images, store.uri("disturbed"), settings, LOCAL)
    ours, theirs = store.output("disturbed"), store.output("undisturbed")
    assert ours.keys() == theirs.keys()
    # The manifest records the settings of storage, and when.
    assert all(ours[name] == theirs[name] for name in ours if name != "model.json")
    groups = [json.loads(files["model.json"])["groups"] for files in (ours, theirs)]
    assert groups[0] == groups[1]


@pytest.mark.soak
def test_when_the_store_goes_away_the_job_says_so_and_nothing_is_half_done(lake: Lake, patchlake):
    proxy = lake.store.proxy
    lake.score("counted")
    whole = len(proxy.requests)
    codes = set()
    for number, share in enumerate((0.05, 0.2, 0.4, 0.6, 0.8, 0.97)):
        proxy.calm()
        # Footers are known to whoever has read them: here, and in the process apart.
        _tail.cache_clear()
        apart.close()
        command = (*lake.command(f"scores{number}"), "--set", "storage.retries=0")
        proxy.outage_after = round(share * whole)
        ended = patchlake(*command)
        codes.add(ended.code)
        assert ended.code in (3, 4), ended.err
        # The answer to a HEAD has no body, and so no code of S3.
        assert "SlowDown" in ended.err or "503: Service Unavailable" in ended.err
        assert "Traceback" not in ended.err
        left = lake.store.output(f"scores{number}")
        left.pop("_preflight", None)  # the next start removes it
        assert left.items() <= lake.expected.items()
        for name in left:
            if name.endswith(".parquet"):
                rows = pq.ParquetFile(pa.BufferReader(left[name])).read().to_pylist()
                assert all(row["heatmap_path"] in left for row in rows), "the part comes last"
        proxy.calm()
        assert patchlake(*command).code == 0
        assert lake.store.output(f"scores{number}") == lake.expected
    assert 4 in codes


def test_requests_of_a_score_are_few(lake: Lake):
    proxy = lake.store.proxy
    summary = lake.score("scores")
    fragments, files = summary.fragments, 2
    assert (fragments, summary.images) == (6, 44)
    images = proxy.counts(f"/{lake.bucket}/images")
    # The footer of a file once, as one process plans and decodes; then each fragment's columns.
    assert images == {"GET": 1 + files + fragments}, "one GET more is the preflight's"
    heatmaps = proxy.counts(f"/{lake.store.bucket}/scores/_heatmaps")
    parts = proxy.counts(f"/{lake.store.bucket}/scores/version")
    assert heatmaps == {"PUT": 44}
    assert parts == {"PUT": fragments}
    beside = len(proxy.requests) - images.total() - heatmaps.total() - parts.total()
    assert beside <= 40, proxy.told()
    proxy.calm()
    assert lake.score("scores").already_done == fragments
    again = proxy.counts(f"/{lake.bucket}/images")
    assert again == {"GET": 1}, "footers are known to this process by their version"
    assert len(proxy.requests) <= 40, proxy.told()


def packed_settings(store: Store) -> Settings:
    settings = store.settings()
    packed = settings.score.model_copy(update={"heatmap_store": "packed"})
    return settings.model_copy(update={"score": packed})


def test_packed_heatmaps_are_one_put_a_fragment_and_the_bytes_of_a_disk(lake: Lake, tmp_path: Path):
    store, settings = lake.store, packed_settings(lake.store)
    summary = score.run(lake.images, lake.model, store.uri("scores"), settings, LOCAL)
    heatmaps = f"/{store.bucket}/scores/_heatmaps"
    assert store.proxy.counts(heatmaps) == {"PUT": summary.fragments} == {"PUT": 6}
    assert store.proxy.counts(f"/{store.bucket}/scores/version") == {"PUT": 6}
    # On a disk they are the same bytes, also where half of all requests fail.
    there = str(tmp_path / "scores")
    score.run(lake.images, lake.model, there, settings, LOCAL)
    store.proxy.faults, store.proxy.rate = ("slow_down", "reset", "lost", "truncated"), 0.5
    score.run(lake.images, lake.model, store.uri("disturbed"), settings, LOCAL)
    store.proxy.calm()
    here = {name: c for name, c in output_files(Path(there)).items() if name[0] != "_"}
    here |= {n: c for n, c in output_files(Path(there)).items() if n.startswith("_heatmaps")}
    for name in ("scores", "disturbed"):
        assert here.items() <= store.output(name).items()

    rows = library.open_scores(store.uri("scores"), settings=settings)
    path = rows.to_table(columns=["heatmap_path"]).column(0)[0].as_py()
    found = library.picture(store.uri(f"scores/{path}"), settings=settings)
    assert found == library.picture(f"{there}/{path}")


def test_of_a_zip_its_end_and_the_picture_are_read_and_no_byte_more(lake: Lake):
    store, name = lake.store, f"scores/_heatmaps/{'0' * 20}.zip"
    pictures = {row: b"\xff\xd8\xff" + bytes(30_000) for row in range(1000, 1256)}
    store.put(name, pack(pictures))
    path = store.uri(f"{name}#1000.jpg")
    assert library.picture(path, settings=store.settings()) == pictures[1000]
    assert [request.kind for request in store.proxy.requests] == ["GET", "GET"]
    first, second = (request.span for request in store.proxy.requests)
    # 30 bytes and the name stand before each picture.
    assert (first, second) == ("bytes=-65536", f"bytes=0-{30 + len('1000.jpg') + 30_003 - 1}")


def test_heatmaps_of_both_stores_go_with_their_parts(lake: Lake):
    store, settings = lake.store, packed_settings(lake.store)
    for one, of_pictures in ((settings, 1), (store.settings(), 4)):
        table = store.uri(f"scores{of_pictures}")
        score.run(lake.images, lake.model, table, one, LOCAL)
        store.proxy.calm()
        score.run(lake.images, lake.model, table, one, LOCAL, expire="g = 'woven_cloth'")
        counts = store.proxy.counts(f"/{store.bucket}/scores{of_pictures}/_heatmaps")
        left = store.output(f"scores{of_pictures}")
        assert sum(name.startswith("_heatmaps") for name in left) == {1: 3, 4: 22}[of_pictures]
        # What was kept the other way is asked for, too: its zip is removed unseen.
        assert counts["DELETE"] == 3 + {1: 0, 4: 22}[of_pictures]


def test_a_picture_that_is_refused_or_not_there_ends_with_2(lake: Lake, patchlake, tmp_path: Path):
    store = lake.store
    path = store.uri(f"scores/_heatmaps/{'0' * 20}.zip#1.jpg")
    out = str(tmp_path / "a.jpg")
    gone = patchlake("picture", path, out)
    assert (gone.code, "does not exist; a heatmap_path is" in gone.err) == (2, True)
    store.put(f"scores/_heatmaps/{'0' * 20}.zip", b"")
    empty = patchlake("picture", path, out)
    assert (empty.code, "0 bytes are no zip" in empty.err) == (2, True)
    store.proxy.denied = (("GET", f"/{store.bucket}/scores"),)
    denied = patchlake("picture", path, out, *fresh_client())
    assert (denied.code, "access denied" in denied.err) == (2, True)
    assert not Path(out).exists()


def test_images_by_uri_are_read_once(lake: Lake, images: Path, pictures: Path):
    store = lake.store
    upload(store.server, store.bucket, pictures, "pictures")
    for file in images.glob("g=*/*.parquet"):
        table = pq.ParquetFile(file).read()
        uris = [store.uri(f"pictures/{name}") for name in table.column("image_id").to_pylist()]
        table = table.drop_columns(["image", "uri"]).append_column("uri", pa.array(uris))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=10)
        store.put(f"named/{file.relative_to(images)}", sink.getvalue().to_pybytes())
    settings = store.settings()
    prefixes = settings.image.model_copy(update={"uri_prefixes": (store.uri("pictures"),)})
    settings = settings.model_copy(update={"image": prefixes})
    summary = score.run(store.uri("named"), lake.model, store.uri("scores"), settings, LOCAL)
    assert summary.statuses == {"ok": 44}
    assert store.proxy.counts(f"/{store.bucket}/pictures") == {"GET": 44}
    # These files are small: what holds the footer holds all.
    assert store.proxy.counts(f"/{store.bucket}/named") == {"GET": 1 + 2}


def test_wrong_credentials_a_missing_bucket_and_a_dead_endpoint_end_before_any_work(
    lake: Lake, patchlake, monkeypatch: pytest.MonkeyPatch
):
    def end(images: str, model: str, scores: str, *flags: str) -> str:
        lake.store.proxy.calm()
        result = patchlake("score", images, model, scores, *TINY_FLAGS, *fresh_client(), *flags)
        assert result.code == 2, result.err
        assert "Traceback" not in result.err
        lines = [line for line in result.err.strip().splitlines() if "reading what" not in line]
        assert len(lines) == 1, lines
        assert not lake.store.proxy.counts()["PUT"]
        return lines[0]

    images, model, scores = lake.images, lake.model, lake.store.uri("scores")
    missing = "s3://no-such-bucket-here/x"
    told = "s3://no-such-bucket-here/x/: there is no such bucket"
    assert told in end(missing, model, scores)
    assert told in end(images, model, missing)
    assert "no-such-bucket-here/x/model.json: there is no such bucket" in end(
        images, missing, scores
    )
    dead = ("--set", "storage.endpoint=http://127.0.0.1:9", "--set", "storage.retries=1")
    assert "nothing answers (tries: 2)" in end(images, model, scores, *dead)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert "access denied (SignatureDoesNotMatch" in end(images, model, scores)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "Unable to locate credentials" in end(images, model, scores)
    assert lake.store.output("scores") == {}


def test_a_prefix_that_may_not_be_written_ends_before_any_work(lake: Lake, patchlake):
    command = lake.command()
    lake.store.proxy.denied = (("PUT", f"/{lake.store.bucket}/scores"),)
    result = patchlake(*command)
    assert result.code == 2
    assert f"s3://{lake.store.bucket}/scores/_preflight: access denied (AccessDenied" in result.err
    lake.store.proxy.denied = (("GET", f"/{lake.bucket}/images"),)
    result = patchlake(*command)
    assert result.code == 2
    assert "access denied" in result.err
    assert lake.store.files("scores") == {}


def test_what_swift_itself_denies_a_user_ends_before_any_work(
    lake: Lake, patchlake, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test:reader")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "reading")
    command = lake.command()
    result = patchlake(*command)
    assert result.code == 2
    assert f"s3://{lake.bucket}/images/: access denied (AccessDenied" in result.err
    for bucket in (lake.bucket, lake.store.bucket):
        lake.store.server.client().put_bucket_acl(Bucket=bucket, ACL="public-read")
    result = patchlake(*command)
    assert result.code == 2
    assert f"s3://{lake.store.bucket}/scores/_preflight: access denied (AccessDenied" in result.err


@pytest.mark.ray
def test_a_worker_without_credentials_ends_before_any_work(local_ray: None, lake: Lake, patchlake):
    # The Ray was started before this process had any.
    flags = [*TINY_FLAGS[:-1], "ray"]
    command = ("score", lake.images, lake.model, lake.store.uri("scores"), *flags)
    result = patchlake(*command)
    assert result.code == 2
    assert "a worker on " in result.err
    assert "Unable to locate credentials" in result.err
    assert lake.store.output("scores").keys() == {"_source.json"}


@pytest.mark.ray
@pytest.mark.soak
def test_ray_with_faults_writes_the_bytes_of_local_without(lake: Lake, tmp_path: Path):
    fit.run(lake.images, lake.store.uri("undisturbed"), lake.store.settings(), LOCAL)
    lake.store.proxy.faults, lake.store.proxy.rate = FAULTS, 0.1
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    flags = [*TINY_FLAGS[:-1], "ray", "--set", "storage.timeout_s=3", "--set", "workers=1"]
    for verb in (
        ("fit", lake.images, lake.store.uri("again")),
        ("score", lake.images, lake.model, lake.store.uri("scores")),
    ):
        command = [sys.executable, "-m", "patchlake", *verb, *flags]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert lake.store.proxy.met()
    assert lake.store.output("scores") == lake.expected
    kept = {n: c for n, c in lake.store.output("undisturbed").items() if n != "model.json"}
    assert {n: c for n, c in lake.store.output("again").items() if n != "model.json"} == kept
