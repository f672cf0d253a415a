"""The wait before a request to a store is tried again."""

import random
import time

# Waits are drawn from 0 to twice the one before: 0.1 s, 0.2 s, ... A store that throttles wants
# minutes from all of its clients together, not from one.
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 20.0


def wait_s(attempt: int) -> float:
    """Return how long to wait after an attempt, counted from 0."""
    wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt)
    return random.uniform(0, wait)  # noqa: S311 - spreads clients, guards nothing


def wait_after(attempt: int) -> None:
    """Wait after an attempt, counted from 0."""
    time.sleep(wait_s(attempt))
