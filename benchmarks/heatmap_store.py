"""What heatmaps cost where each is a file, and where a fragment has one (`score.heatmap_store`).

python -m benchmarks.heatmap_store WORK

Fragments of 256 images are published as a job does it, by one process: to a folder of WORK, and to
an S3 server of the tests (OpenStack Swift, which the first call installs in WORK) behind their
proxy, which counts requests and has each wait `--wait` seconds, as the way to a real store does.
Then one picture is read by its path, and one fragment removed.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from PIL import Image

from patchlake.pipeline.config import HeatmapStore, StorageSettings
from patchlake.pipeline.driver.picture import read
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.images.pictures import picture_size, small_photo
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.score_table.heatmaps import heatmap_name
from patchlake.pipeline.scores.heatmap import ColourScale
from patchlake.pipeline.stages.batch import FragmentBatch, FragmentResult
from patchlake.pipeline.stages.publish import Publish
from patchlake.pipeline.storage.folder import Folder
from tests import s3_servers
from tests.fault_proxy import FaultProxy, fault_proxy

_IMAGES, _WIDTH, _HEIGHT, _MAP = 256, 1600, 1200, 28
_STORES: tuple[HeatmapStore, ...] = ("files", "packed")


def batch_of(number: int) -> pa.Table:
    """Return a fragment as it comes to publish: pictures of a pattern and some noise, with maps."""
    rng = np.random.default_rng(number)
    height, width = picture_size(_WIDTH, _HEIGHT)
    pattern = Image.fromarray(rng.integers(60, 200, (_MAP, _MAP)).astype(np.uint8))
    smooth = np.asarray(pattern.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    photos = []
    for _ in range(_IMAGES):
        noisy = np.clip(smooth + rng.normal(0, 2, smooth.shape), 0, 255).astype(np.uint8)
        # In colour, as most photos are.
        photos.append(small_photo(Image.fromarray(noisy).convert("RGB")))
    maps = rng.random((_IMAGES, _MAP, _MAP), np.float32)
    rows = {
        "image_id": [f"{number}-{row}" for row in range(_IMAGES)],
        "source_row": pa.array(range(_IMAGES), pa.int64()),
        "status": ["ok"] * _IMAGES,
        "image_score": pa.array(maps.max(axis=(1, 2))),
        "width": pa.array([_WIDTH] * _IMAGES, pa.int32()),
        "height": pa.array([_HEIGHT] * _IMAGES, pa.int32()),
        "photo": photos,
    }
    fragment = Fragment(f"{number}.parquet", (0,), 0, "product", _IMAGES, "1").keyed("benchmark")
    return FragmentBatch(fragment, pa.table(rows), maps).to_arrow()


def publish(target: Folder, store: HeatmapStore, batches: list[pa.Table]) -> float:
    """Publish the fragments one after the other; return the seconds."""
    stage = Publish(
        geometry=Geometry((224, 224), None),
        scores=target,
        version="0" * 12,
        scored_at=datetime(2026, 1, 1, tzinfo=UTC),
        heatmaps="all",
        heatmap_store=store,
        model_ids={"product": "0"},
        scales={"product": ColourScale(0.5, 1.0)},
        verdicts={},
    )
    began = time.perf_counter()
    for batch in batches:
        failure = FragmentResult.from_arrow(stage(batch)).failure
        if failure is not None:
            raise RuntimeError(failure)
    return time.perf_counter() - began


def measure(
    target: Folder, store: HeatmapStore, batches: list[pa.Table], asked: Callable[[], Counter[str]]
) -> list[str]:
    """Return a line of the table: of a fragment, of a picture that is read, of one removed."""
    count = len(batches)
    seconds = publish(target, store, batches)
    puts = asked()
    files = target.find("_heatmaps")
    key = FragmentBatch.from_arrow(batches[0]).fragment.key
    path = target.path(heatmap_name(key, _IMAGES // 2, store))
    began = time.perf_counter()
    picture = read(path, target.storage)
    reading = time.perf_counter() - began
    gets = asked()
    part = next(e.name for e in parts.every_part(target) if parts.key_of(e.name) == key)
    asked()
    parts.remove(target, [part])
    removals = asked()
    return [
        f"{len(files) // count}",
        f"{sum(e.size for e in files) / count / 1e6:.2f}",
        f"{puts['PUT'] / count:g}",
        f"{seconds / count:.2f}",
        f"{gets['GET']}, {len(picture) / 1e3:.1f} KB, {1000 * reading:.0f} ms",
        ", ".join(f"{number} {kind}" for kind, number in sorted(removals.items())) or "0",
    ]


@contextmanager
def counted_s3(work: Path, wait: float) -> Iterator[tuple[Folder, FaultProxy]]:
    """Run Swift and the proxy; yield a folder of a bucket, and what counts its requests."""
    environment = s3_servers.install(work / "s3-servers")
    with (
        TemporaryDirectory(dir=work) as root,
        s3_servers.swift(environment, Path(root)) as server,
        fault_proxy(server.endpoint) as proxy,
    ):
        server.client().create_bucket(Bucket="benchmark")
        os.environ.update(server.environment)
        note = proxy.note

        def slowly(method: str, target: str, span: str):  # noqa: ANN202 - as the proxy has it
            time.sleep(wait)
            return note(method, target, span)

        proxy.note = slowly  # type: ignore[method-assign]
        storage = StorageSettings(endpoint=proxy.endpoint, region="us-east-1")
        yield Folder.at("s3://benchmark/scores", storage), proxy


def main() -> None:
    """Parse, measure both stores in both places, and print a line of Markdown for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for the servers, and for what is written")
    parser.add_argument("--fragments", type=int, default=4)
    parser.add_argument("--wait", type=float, default=0.03, help="seconds, of each request of S3")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    batches = [batch_of(number) for number in range(arguments.fragments)]
    print("| where | store | files | MB | PUT | s | a picture: GET | a fragment removed |")
    print("|---|---|---|---|---|---|---|---|")
    with TemporaryDirectory(dir=arguments.work) as root:
        for store in _STORES:
            line = measure(Folder.at(f"{root}/{store}"), store, batches, Counter)
            print(f"| disk | {store} | {' | '.join(line)} |", flush=True)
    with counted_s3(arguments.work, arguments.wait) as (bucket, proxy):

        def asked() -> Counter[str]:
            counts = proxy.counts()
            proxy.calm()
            return counts

        for store in _STORES:
            line = measure(Folder.at(bucket.path(store), bucket.storage), store, batches, asked)
            print(f"| S3 | {store} | {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
