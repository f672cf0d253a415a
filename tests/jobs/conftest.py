"""One undisturbed model of each method, of one group, fitted when it is first asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from patchlake.pipeline.driver import fit
from tests.conftest import LOCAL
from tests.jobs.test_methods import settings_of
from tests.small import SMALL

FittedBy = Callable[[str], Path]

# The group, of 12 training images in two fragments.
GROUP = "woven_cloth"
WHERE = f"g == '{GROUP}'"
TRAINING_IMAGES = 12


@pytest.fixture(scope="session")
def fitted_by(images: Path, tmp_path_factory: pytest.TempPathFactory) -> FittedBy:
    """Return what gives the folder of a method's model of the tiny images; nobody writes there."""
    root, done = tmp_path_factory.mktemp("fitted"), set[str]()

    def folder(method: str) -> Path:
        assert method in SMALL
        if method not in done:
            fit.run(str(images), str(root / method), settings_of(method), LOCAL, where=WHERE)
            done.add(method)
        return root / method

    return folder
