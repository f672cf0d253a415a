"""Functions that run in step on several Ray workers, by Ray Train.

Ray Train starts the workers together, connects them (torch.distributed, gloo), and starts all of
them again when one dies. What is to outlive that is the function's own business: nothing is
reported to Ray, so its storage path, which other nodes do not see, holds nothing.

To be imported in workers only, see `RayRunner.together`.
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

# Restarts after a worker's death; a node that is announced to be taken away is not counted.
_MAX_FAILURES = 3


def run_together(call: Callable[[Peers], None], workers: int) -> None:
    """Run a function on that many workers of one CPU each, until all have returned.

    Raises:
        PatchlakeError: if the function does; other errors of it are tried again like a death.
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
    """Ends the run at an error of ours, which would come again however often it is tried."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ANN401, ARG002
        for error in worker_exceptions.values():
            if isinstance(error, PatchlakeError):
                raise error


@dataclass(frozen=True)
class _Rank:
    """One of the workers, as it sees the others."""

    number: int
    count: int
    threads: ClassVar[int] = 1

    def gather(self, array: np.ndarray) -> Sequence[np.ndarray]:
        own = torch.tensor(array)
        everybody = [torch.empty_like(own) for _ in range(self.count)]
        torch.distributed.all_gather(everybody, own)
        return [one.numpy() for one in everybody]
