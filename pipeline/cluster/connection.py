"""Connect to a Ray cluster, or start a Ray for this process alone."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.job_config import JobConfig

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.shown import shown

log = logging.getLogger(__name__)

# Size of a local Ray's object store: at any time, a few dozen fragments of 38 MB are in it.
_STORE_BYTES = 2**30


@contextmanager
def connected(
    address: str | None, aside: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[None]:
    """Connect to a cluster, or start a Ray for this process alone, until the block ends.

    Where this process is connected already, nothing is done.

    Args:
        address: As in `ray.init`. None is the value of RAY_ADDRESS, which `ray job submit` sets for
            what it runs; where that is not set either, a Ray is started on this machine.
        aside: Entered for as long as Ray can write to this process's standard error.

    Raises:
        ConfigError: if there is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    log.info("%s Ray, which takes some seconds", "joins a" if address else "starts a")
    with aside():
        try:
            _init(address)
            yield
        finally:
            ray.shutdown()


def _init(address: str | None) -> None:
    """Raise `ConfigError` if there is no cluster at the address."""
    try:
        if address is None:
            # At least two CPUs, because the infer actor holds one.
            cpus = max(2, os.cpu_count() or 2)
            ray.init(
                "local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=_store_bytes(),
                job_config=_own_modules_only(),
            )
        else:
            ray.init(address, log_to_driver=False, job_config=_own_modules_only())
    except ConnectionError as error:
        # Ray's message repeats the address, which may have a password in it.
        said = "" if "@" in str(address) else f": {error}"
        raise ConfigError(f"no Ray cluster answers at {shown(str(address))}{said}") from None


def _own_modules_only() -> JobConfig:
    """Return the configuration of a job whose workers do not import from the driver's folder.

    Ray puts the folder in which a driver is started first on the import path of its workers. A
    `jobs/` or a `queue.py` of the user's in that folder would be imported instead of ours or
    Python's. Ray does not do so for drivers that use its client, for which this switch is meant.
    But with the switch Ray does not read the environment of a submitted job, which names the
    working directory that was sent with it; so for those the switch stays off.
    """
    return JobConfig(_client_job=RAY_JOB_CONFIG_JSON_ENV_VAR not in os.environ)


def _store_bytes() -> int:
    """Return the size of a local object store: Ray's own 30 % of memory, but not more than needed.

    In time every process has touched all of the store, which then counts as its resident memory.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(_STORE_BYTES, memory * 3 // 10)
