"""A plan on both runners: every fragment once, in blocks of one row, however decode's are cut."""

import pyarrow as pa
import pytest

from patchlake.pipeline.cluster import on_ray
from patchlake.pipeline.cluster.local import LocalRunner
from patchlake.pipeline.cluster.on_ray import RayRunner
from patchlake.pipeline.cluster.runner import Pipeline
from patchlake.pipeline.reading.fragments import Fragment, Fragments

PLAN = Fragments.of(
    Fragment(f"{number:03d}.parquet", (0,), 0, "g", number + 1, "v", f"{number:020d}")
    for number in range(60)
)


def _pipeline() -> Pipeline:
    # Closures, which travel to workers by value: they do not find `tests`.
    import pyarrow as pa

    class Infer:
        def start(self, _threads):
            return lambda table: table.append_column("inferred", pa.array([table.num_rows]))

    def decode(table):
        # Beyond what Ray keeps in the driver's memory, so that rows are real blocks.
        return table.append_column("pixels", pa.array([bytes(200_000)]))

    def publish(table):
        return table.select(["key", "images", "inferred"]).append_column(
            "published", pa.array([table.num_rows])
        )

    return Pipeline(decode, Infer(), publish)


def _check(rows: list[pa.Table]) -> None:
    table = pa.concat_tables(rows).sort_by("key")
    assert table.column("key").to_pylist() == PLAN.keys.to_pylist()
    assert table.column("images").to_pylist() == [fragment.images for fragment in PLAN]
    # Every stage was called with one row.
    assert set(table.column("inferred").to_pylist() + table.column("published").to_pylist()) == {1}


def test_here():
    _check(list(LocalRunner().run(PLAN.table, _pipeline())))


@pytest.mark.slow
@pytest.mark.ray
def test_on_ray_with_many_fragments_a_task(local_ray, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(on_ray, "_BLOCKS_A_CPU", 2)
    assert [len(chunk) for chunk in on_ray._chunks(PLAN.table)] == [10] * 6
    _check(list(RayRunner(workers=1).run(PLAN.table, _pipeline())))


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "actors", "threads"),
    [
        (1, 0, None, 1, 1),
        (2, 0, None, 1, 2),
        (3, 0, None, 2, 1),
        (4, 0, None, 3, 1),
        (16, 0, None, 12, 1),
        (16, 0, 2, 2, 1),
        (16, 4, None, 4, 1),
    ],
)
def test_actors_and_their_threads_keep_the_cpus_busy(
    cpus: int,
    gpus: int,
    workers: int | None,
    actors: int,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(on_ray.nodes, "offered", {"CPU": cpus, "GPU": gpus}.get)
    runner = RayRunner(workers)
    assert runner._actors(gpus, cpus) == actors
    assert runner._threads(gpus, actors) == threads
