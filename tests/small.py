"""The methods, found by their names, with settings that make each small enough for a second."""

import pytest

from patchlake.pipeline.config import Scalar
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.methods import build, names, options_of
from patchlake.pipeline.methods.shared.contract import Updatable

# Whole numbers from here on say how much there is to do, and not which way: epochs, dimensions,
# images to retrieve, rows at most.
_MANY = 10
# Shares up to here leave next to nothing of a lake of a dozen images.
_LITTLE = 0.01


def small(name: str) -> dict[str, Scalar]:
    """Return settings of a method: a tenth of what is much, and the tenfold of what is little.

    What a method does not allow stays as it is.
    """
    changed: dict[str, Scalar] = {}
    for option, default in options_of(build(name, {})).items():
        if isinstance(default, int) and default >= _MANY:
            changed[option] = default // 10
        if option.endswith("_fraction") and isinstance(default, float) and default <= _LITTLE:
            changed[option] = default * 10
    return {option: value for option, value in changed.items() if _is_allowed(name, option, value)}


def _is_allowed(name: str, option: str, value: Scalar) -> bool:
    try:
        build(name, {option: value})
    except ConfigError:
        return False
    return True


SMALL = {name: small(name) for name in names()}
# For tests of every method. MuSc compares each image with each, which takes the longest.
EVERY = [
    pytest.param(name, marks=pytest.mark.slow) if name == "musc" else name for name in sorted(SMALL)
]
# For tests that take seconds with each: a memory bank and a Gaussian at once, the others slowly.
FEW = [
    name if name in ("patchcore", "padim") else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(SMALL)
]
UPDATABLE = [name for name in SMALL if isinstance(build(name, {}), Updatable)]
