"""A Ray to run on: a cluster's, or one of this process's own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from pipeline.errors import ConfigError
from pipeline.lake.shown import shown

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
            )
        else:
            ray.init(address, log_to_driver=False)
    except ConnectionError as error:
        # Ray repeats the address, with whatever is in it.
        said = "" if "@" in str(address) else f": {error}"
        raise ConfigError(f"no Ray cluster answers at {shown(str(address))}{said}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _store_bytes() -> int:
    """Return the size of a local object store: Ray's own 30 % of memory, but not more than needed.

    Every process has in time touched all of it, and its resident memory counts it.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(_STORE_BYTES, memory * 3 // 10)
