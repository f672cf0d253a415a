"""On a real Ray: members that die are started again, and what kills each worker is given up."""

import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from patchlake.pipeline.cluster.on_ray import RayRunner
from patchlake.pipeline.cluster.runner import Pipeline, Poison
from patchlake.pipeline.errors import ConfigError, StorageError, WorkersLost
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.maths.coreset import greedy, select
from patchlake.pipeline.maths.shard import Shard
from patchlake.pipeline.methods.shared.selection import HeldRows

# What workers run here are closures, which travel by value: they do not find `tests`.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def start_shard(rows: np.ndarray, first: int, pool: int):
    return lambda: Shard(rows, pool=pool, offset=first)


def own_pid(_thing: object) -> int:
    import os

    return os.getpid()


class Killing:
    """Held shards, of which the second is killed before some questions."""

    def __init__(self, held, before: tuple[int, ...]) -> None:
        self.held, self.before, self.asked = held, before, 0

    def ask(self, question):
        if self.asked in self.before:
            os.kill(self.held.ask(lambda _: os.getpid())[1], signal.SIGKILL)
        self.asked += 1
        return self.held.ask(question)


def test_a_selection_is_the_same_when_a_shard_dies_on_the_way():
    rows = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    expected = greedy(rows, 400, start=7)
    starts = [start_shard(rows[:1500], 0, 32), start_shard(rows[1500:], 1500, 32)]
    with RayRunner(workers=2).members(starts) as held:
        killing = Killing(held, before=(3, 9))
        found = select(HeldRows(killing), rows[7], 7, 400)
    assert killing.asked > 12
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.radii, expected.radii)


def test_a_bank_is_in_memory_once_a_node_and_searched_in_place():
    rows = np.random.default_rng(0).normal(size=(20_000, 96)).astype(np.float32)
    runner = RayRunner(workers=2)
    sharing = runner.sharing()
    assert 0 < sharing.bytes < 200 * 2**20
    shared = sharing.share(lambda: ExactSearch.over(rows))

    def search() -> tuple[str, bool, np.ndarray]:
        dense = shared.get()
        address = dense.bank.ctypes.data
        for line in Path("/proc/self/maps").read_text().splitlines():
            begin, _, end = line.partition(" ")[0].partition("-")
            if int(begin, 16) <= address < int(end, 16):
                found = dense.nearest(rows[:50] + 1, 3)[0]
                return line, dense.bank.flags.writeable, found
        raise AssertionError(f"{address:x} is nowhere")

    expected = ExactSearch.over(rows).nearest(rows[:50] + 1, 3)[0]
    for place, is_writeable, found in runner.each([search] * 3):
        assert "plasma" in place
        assert not is_writeable
        np.testing.assert_array_equal(found, expected)


def test_what_cannot_be_shared_is_none_and_the_next_is_shared():
    def missing() -> None:
        raise StorageError("no bank")

    sharing = RayRunner(workers=2).sharing()
    shared = [sharing.share(make) for make in (lambda: "a bank", missing, lambda: "another")]
    assert [thing.get() for thing in shared] == ["a bank", None, "another"]


def test_one_worker_a_node_has_nobody_to_share_with():
    assert RayRunner(workers=1).sharing() is None


def test_a_member_that_cannot_start_ends_the_wait(tmp_path: Path):
    def start():
        (tmp_path / str(len(list(tmp_path.iterdir())))).touch()
        os._exit(1)

    with RayRunner().members([start]) as held, pytest.raises(WorkersLost, match="lost too often"):
        held.ask(own_pid)
    assert 1 < len(list(tmp_path.iterdir())) < 20


def test_a_row_that_kills_its_workers_is_given_up_in_each_stage(tmp_path: Path):
    def dying(stage: str):
        def work(table: pa.Table) -> pa.Table:
            name, done = table.column("name")[0].as_py(), table.column("done")[0].as_py()
            if name == f"kills {stage}" and not (done or "").startswith("given up"):
                os._exit(1)
            return pa.table({"name": [name], "done": [done or ""]})

        return work

    class Infer:
        def start(self, _threads):
            return dying("infer")

    poison = Poison(
        2,
        lambda table: table.column("name")[0].as_py(),
        lambda table, reason: pa.table(
            {"name": table.column("name"), "done": [f"given up: {reason}"]}
        ),
    )
    names = ["one", "kills decode", "two", "kills infer", "kills publish", "three"]
    plan = pa.table({"name": names, "done": [""] * len(names)})
    pipeline = Pipeline(dying("decode"), Infer(), dying("publish"), poison)

    done = [row.to_pylist()[0] for row in RayRunner(workers=1).run(plan, pipeline)]

    assert sorted(row["name"] for row in done) == sorted(names)
    for row in done:
        if row["name"].startswith("kills"):
            stage = row["name"].removeprefix("kills ")
            assert row["done"].startswith(
                f"given up: {stage}: its worker died 2 times while processing it"
            )
        else:
            assert row["done"] == ""


def test_a_worker_that_dies_each_time_it_starts_ends_the_job():
    class Dying:
        def start(self, _threads):
            os._exit(1)

    pipeline = Pipeline(lambda table: table, Dying())
    with pytest.raises(WorkersLost, match="died 3 times while it started"):
        list(RayRunner(workers=1).run(pa.table({"name": ["one"]}), pipeline))


def test_a_fault_of_the_whole_job_is_raised_as_it_was():
    def wrong(_table: pa.Table):
        raise ConfigError("no such column")

    class Infer:
        def start(self, _threads):
            return lambda table: table

    poison = Poison(2, lambda table: table.column("name")[0].as_py(), lambda table, _: table)
    pipeline = Pipeline(wrong, Infer(), None, poison)
    with pytest.raises(ConfigError, match=r"^no such column$"):
        list(RayRunner(workers=1).run(pa.table({"name": ["one"]}), pipeline))
