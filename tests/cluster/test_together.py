"""Functions in step on a real Ray: what is gathered, what an error and a death come to."""

import json
import os
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from patchlake.pipeline.cluster.local import LocalRunner
from patchlake.pipeline.cluster.on_ray import RayRunner
from patchlake.pipeline.errors import ConfigError, Stopped
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.partials import EMBEDDINGS, EmbeddedImages
from patchlake.pipeline.methods.cfa import CFA
from patchlake.pipeline.model_store.per_image import write_per_image
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.storage.folder import Folder

# Each starts some five processes, which take most of the seconds to import what they need. What
# workers run here are closures, which travel by value: they do not find `tests`.
pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

SIZES = (7, 6)


def stored_corpus(root: Path, workers) -> StoredCorpus:
    """13 images in two fragments, as the embed stage leaves them."""
    model, rng = Folder(str(root)), np.random.default_rng(0)
    fragments = [
        Fragment("a.parquet", (0,), number, "tile", size, "v1", f"key{number}")
        for number, size in enumerate(SIZES)
    ]
    for fragment, size in zip(fragments, SIZES, strict=True):
        shapes = {"layer0": (size, 6, 5, 4), "layer1": (size, 3, 3, 8)}
        arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        names = [f"{fragment.key}-{row}" for row in range(size)]
        images = EmbeddedImages(
            names, list(range(size)), ["ok"] * size, [f"{i:064x}" for i in range(size)]
        )
        slices = ({n: a[i : i + 4] for n, a in arrays.items()} for i in range(0, size, 4))
        write_per_image(model, f"partials/{fragment.key}{EMBEDDINGS}", slices)
        model.write(f"partials/{fragment.key}.json", json.dumps(asdict(images)).encode())
    return StoredCorpus(model, "partials/", fragments, workers, memory_budget=2**30, threads=2)


class DyingOnce:
    """Two Ray workers, of which one is gone at its tenth gathering, the first time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = 2
        self.each = RayRunner(workers=2).each

    def together(self, call, members):
        folder = self.folder

        class Dying:
            def __init__(self, peers):
                self.number, self.count, self.threads = peers.number, peers.count, peers.threads
                self.peers, self.gathered = peers, 0

            def gather(self, array):
                self.gathered += 1
                died = folder / "died"
                if self.number == 1 and self.gathered == 10 and not died.exists():
                    died.touch()
                    os._exit(1)
                return self.peers.gather(array)

        def dying(peers):
            own = Dying(peers)
            call(own)
            (folder / f"{own.number}-gathered-{own.gathered}").touch()

        RayRunner(workers=2).together(dying, members)


@pytest.mark.slow
def test_arrays_are_gathered_by_number_and_an_error_of_ours_comes_through_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Whatever this says, workers get the Ray Train that is meant.
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "0")

    def gather_and_fail(peers):
        for turn in range(3):
            found = peers.gather(np.full((2, 3), 10 * turn + peers.number, np.float32))
            assert len(found) == peers.count == 2
            for number, array in enumerate(found):
                expected = np.full((2, 3), 10 * turn + number, np.float32)
                np.testing.assert_array_equal(array, expected, strict=True)
        (tmp_path / f"{peers.number}-{os.getpid()}").touch()
        if peers.number == 1:
            raise ConfigError("gamma_c leaves 4 centres")
        # Waits for the other, who will not come.
        peers.gather(np.zeros(1))

    with pytest.raises(ConfigError, match=r"^gamma_c leaves 4 centres$"):
        RayRunner(workers=2).together(gather_and_fail, 4)
    # Each has come that far once: nothing was tried again.
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["0", "1"]


def test_a_signal_ends_the_wait_for_workers():
    def stop(*_):
        raise Stopped("stopped by SIGINT")

    def sleep():
        time.sleep(8)

    before = signal.signal(signal.SIGINT, stop)
    timer = threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT))
    started = time.monotonic()
    try:
        timer.start()
        with pytest.raises(Stopped):
            list(RayRunner().each([sleep]))
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 6


@pytest.mark.slow
def test_cfa_gives_the_same_bits_when_a_worker_has_died(tmp_path: Path):
    method = CFA(epochs=4, hard_negatives=2)
    here = method.fit(stored_corpus(tmp_path / "here", LocalRunner()), seed=0)
    dying = DyingOnce(tmp_path)
    there = method.fit(stored_corpus(tmp_path / "there", dying), seed=0)

    # 12 images, 3 batches an epoch: the death is in the fourth, and the fourth alone is done again.
    assert (tmp_path / "died").exists()
    assert sorted(p.name for p in tmp_path.glob("*-gathered-*")) == [
        "0-gathered-3",
        "1-gathered-3",
    ]
    assert there.facts == here.facts
    np.testing.assert_array_equal(there.bank.rows, here.bank.rows)
    for name, array in here.state.items():
        np.testing.assert_array_equal(there.state[name], array)
