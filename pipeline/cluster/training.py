"""Run a function on several Ray workers that exchange data, by Ray Train.

Ray Train starts the workers together, connects them (torch.distributed, gloo), and starts all of
them again when one dies. The function itself has to save what must outlive that. Nothing is
reported to Ray, so that its storage path, which other nodes cannot see, stays empty.

Only workers may import this module: see `RayRunner.together`.
"""

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from patchlake.pipeline.errors import PatchlakeError
from patchlake.pipeline.methods.shared.workers import Peers

# Restarts after the death of a worker. Nodes that are taken away with notice are not counted.
_MAX_FAILURES = 3


def run_together(call: Callable[[Peers], None], workers: int) -> None:
    """Run a function on that many workers of one CPU each, until all have returned.

    Raises:
        PatchlakeError: if the function does. After other errors of it all workers are started
            again, as after the death of one.
    """
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="patchlake-train-") as folder:
        trainer = TorchTrainer(
            partial(_run_one, call),
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=False, resources_per_worker={"CPU": 1}
            ),
            run_config=RunConfig(
                storage_path=folder,
                failure_config=FailureConfig(max_failures=_MAX_FAILURES),
                # Typed for the V1 trainer.
                callbacks=[_EndAtFault()],  # type: ignore[list-item]
            ),
        )
        try:
            trainer.fit()
        except ControllerError as error:
            if isinstance(error.controller_failure, PatchlakeError):
                raise error.controller_failure from None
            raise


def _run_one(call: Callable[[Peers], None]) -> None:
    call(_Rank(torch.distributed.get_rank(), torch.distributed.get_world_size()))


class _EndAtFault(UserCallback):
    """Ends the run at a `PatchlakeError`, which another attempt would only raise again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ANN401, ARG002
        for error in worker_exceptions.values():
            if isinstance(error, PatchlakeError):
                raise error


@dataclass(frozen=True)
class _Rank:
    """One of the workers, and how it exchanges data with the others: see `Peers`."""

    number: int
    count: int
    threads: ClassVar[int] = 1

    def gather(self, array: np.ndarray) -> Sequence[np.ndarray]:
        own = torch.tensor(array)
        everybody = [torch.empty_like(own) for _ in range(self.count)]
        torch.distributed.all_gather(everybody, own)
        return [one.numpy() for one in everybody]
