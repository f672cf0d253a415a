"""A table in S3 over the nights: new files, expiry, an Iceberg table, a compacted copy."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import TINY_FLAGS, Store
from tests.jobs.test_s3 import upload

pytest.importorskip("pyiceberg")

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.utils.config import Config

pytestmark = [
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NIGHTS = {"dt=2026-08-01": "brushed_plate", "dt=2026-11-22": "woven_cloth"}


@pytest.fixture
def catalog(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A catalog on SQLite whose warehouse is in the bucket, described as a user would."""
    properties = {
        "type": "sql",
        "uri": f"sqlite:///{tmp_path}/catalog.db",
        "warehouse": store.uri("warehouse"),
        "s3.endpoint": store.server.endpoint,
        "s3.access-key-id": store.server.access_key,
        "s3.secret-access-key": store.server.secret,
        "s3.region": "us-east-1",
    }
    for name, value in properties.items():
        variable = name.upper().replace(".", "__").replace("-", "_")
        monkeypatch.setenv(f"PYICEBERG_CATALOG__LAKE__{variable}", value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    return properties


def _published(properties: dict[str, str]) -> tuple[int, pa.Table]:
    """The snapshots of the Iceberg table, and its rows as pyiceberg reads them."""
    opened = SqlCatalog("lake", **properties)
    table = opened.load_table("plant.scores")
    found = len(table.metadata.snapshots), table.scan().to_arrow()
    opened.close()
    return found


def _rows(store: Store, folder: str) -> pa.Table:
    names = ["source_path", "source_row", "image_score"]
    files = [
        content
        for name, content in store.files(folder).items()
        if name.startswith("version=") and name.endswith(".parquet")
    ]
    tables = [pq.ParquetFile(io.BytesIO(content)).read(columns=names) for content in files]
    return pa.concat_tables(tables).sort_by([(name, "ascending") for name in names])


def _pictures(store: Store) -> int:
    return sum(name.endswith(".jpg") for name in store.files("scores"))


def test_new_nights_expiry_iceberg_and_compact_in_s3(
    store: Store, images: Path, model: Path, catalog: dict[str, str], patchlake
):
    upload(store.server, store.bucket, model, "model")
    lake, scores, dest = (store.uri(name) for name in ("images", "scores", "compacted"))
    command = ("score", lake, store.uri("model"), scores, *TINY_FLAGS)
    command += ("--iceberg", "lake.plant.scores")
    for night, (date, product) in enumerate(NIGHTS.items(), start=1):
        (file,) = images.glob(f"g={product}/*.parquet")
        store.put(f"images/{date}/a.parquet", file.read_bytes())
        result = patchlake(*command)
        assert result.code == 0, result.err
        snapshots, rows = _published(catalog)
        assert (snapshots, len(rows)) == (night, 22 * night)
        # Whoever starts it twice adds nothing.
        before = store.output("scores")
        assert patchlake(*command).code == 0
        assert store.output("scores") == before
        assert _published(catalog)[0] == night
    names = ["source_path", "source_row", "image_score"]
    order = [(name, "ascending") for name in names]
    assert rows.select(names).sort_by(order).to_pylist() == _rows(store, "scores").to_pylist()

    assert patchlake("compact", scores, dest).code == 0
    assert _rows(store, "compacted") == _rows(store, "scores")
    assert _pictures(store) == 44

    result = patchlake(*command, "--expire", "dt < '2026-11-01'")
    assert result.code == 0, result.err
    assert "0 parts added, 3 removed" in result.err
    left = _rows(store, "scores")
    assert len(left) == _pictures(store) == 22
    assert _published(catalog)[1].select(names).sort_by(order).to_pylist() == left.to_pylist()
    assert patchlake("compact", scores, dest).code == 0
    assert _rows(store, "compacted") == left
    # The ledger, in S3 as on a disk, keeps what has expired from being scored again.
    before = store.output("scores")
    assert patchlake(*command).code == 0
    assert store.output("scores") == before
