"""Where the stages of a job run, and who watches."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal

from patchlake.pipeline.cluster.kernels import kernels
from patchlake.pipeline.cluster.runner import Runner
from patchlake.pipeline.driver.observer import Observer, Silent
from patchlake.pipeline.storage.preflight import Preflight

log = logging.getLogger(__name__)

RunnerName = Literal["auto", "ray", "local"]
# This process, a Ray that is started on this machine, or a cluster that is there.
Place = Literal["local", "ray", "cluster"]

_CHOSEN: Mapping[Place, str] = {
    "local": "in this process; --runner ray would start a Ray",
    "ray": "on a Ray that is started here; --runner local would stay in this process",
    "cluster": "on the Ray cluster that is named",
}

# Ray takes some ten seconds more to start. On two cores it does not catch up: at 1,340 images one
# process does 19.7 a second, and Ray 18.0. Larger machines were not measured.
FEW_IMAGES = 5000


@dataclass(frozen=True)
class Execution:
    """Where the stages run, and who is told how far they are."""

    # `auto` is chosen by each job, which knows its size.
    runner: RunnerName = "local"
    # Of a Ray cluster, as in `ray.init`; None is that of RAY_ADDRESS, or else a Ray of its own.
    address: str | None = None
    observer: Observer = field(default_factory=Silent)
    # Entered while Ray is connected, by who does not want what Ray itself says on standard error.
    aside: Callable[[], AbstractContextManager[None]] = nullcontext

    def chosen(self, size: int, few: int = FEW_IMAGES) -> "Execution":
        """Return where a job runs; where `auto` has a choice, say which it is.

        Args:
            size: Images to do. Without any nothing is started, whatever is asked for.
            few: Up to so many stay in this process, if no cluster is named.
        """
        place = self.place(size, few)
        if self.runner == "auto" and size:
            log.info("runs %s", _CHOSEN[place])
        return replace(self, runner="local" if place == "local" else "ray")

    def place(self, size: int, few: int = FEW_IMAGES) -> "Place":
        """Return where a job of that size runs."""
        if size == 0 or self.runner == "local":
            return "local"
        if self.address or os.environ.get("RAY_ADDRESS"):
            return "cluster"
        return "ray" if self.runner == "ray" or size > few else "local"

    @property
    def threads(self) -> int:
        """Threads of one stage: all cores here; one CPU a task on Ray."""
        return 1 if self.runner == "ray" else os.cpu_count() or 1

    @contextmanager
    def start(self, workers: int | None, preflight: Preflight | None = None) -> Iterator[Runner]:
        """Yield the runner, when its workers may use the storage. Raises `ConfigError`."""
        with self._start(workers) as runner:
            if preflight is not None:
                preflight.in_workers(runner)
            found = {node: ", ".join(names) for node, names in runner.everywhere(kernels).items()}
            if len(set(found.values())) > 1:
                log.warning(
                    "the nodes run different BLAS kernels (%s): which node does an image may show "
                    "in the last bits; the same OPENBLAS_CORETYPE on all of them makes them one",
                    "; ".join(f"{node}: {names}" for node, names in found.items()),
                )
            yield runner

    @contextmanager
    def _start(self, workers: int | None) -> Iterator[Runner]:
        if self.runner == "auto":
            raise ValueError("where this runs was not chosen")
        if self.runner == "local":
            from patchlake.pipeline.cluster.local import LocalRunner

            yield LocalRunner()
            return
        from patchlake.pipeline.cluster.connection import connected
        from patchlake.pipeline.cluster.on_ray import RayRunner

        with connected(self.address, self.aside):
            yield RayRunner(workers)
