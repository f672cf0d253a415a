"""A Ray to run on: a cluster's, or one of this process's own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.job_config import JobConfig

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.shown import shown

# Of a local Ray's object store: a few dozen fragments of 38 MB are on their way at a time.
_STORE_BYTES = 2**30


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start a Ray of this process's own, for the length of the block.

    Args:
        address: As in `ray.init`; None is RAY_ADDRESS, which `ray job submit` sets for what it
            runs, and where that is not set either a Ray is started here.

    Raises:
        ConfigError: if there is no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address is None:
            # Two CPUs at least: one is held by the infer actor.
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
        # Ray repeats the address, with whatever is in it.
        said = "" if "@" in str(address) else f": {error}"
        raise ConfigError(f"no Ray cluster answers at {shown(str(address))}{said}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _own_modules_only() -> JobConfig:
    """Return the configuration of a job whose workers do not import from the driver's folders.

    Ray puts the folder in which a driver is started before everything else on its workers' path,
    so that a `jobs/` or a `queue.py` of the user's there would be imported instead of ours or
    Python's. It spares the drivers behind its client that, by this switch; but then a submitted
    job's environment is not read, which names the working directory that it was sent.
    """
    return JobConfig(_client_job=RAY_JOB_CONFIG_JSON_ENV_VAR not in os.environ)


def _store_bytes() -> int:
    """Return the size of a local object store: Ray's own 30 % of memory, but not more than needed.

    Every process has in time touched all of it, and its resident memory counts it.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(_STORE_BYTES, memory * 3 // 10)
