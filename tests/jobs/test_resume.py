"""A fit that stopped goes on by the same command, whatever the method: nothing is done twice."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from patchlake.pipeline.driver import fit
from patchlake.pipeline.errors import FragmentsFailed
from patchlake.pipeline.features.extractor import Extractor
from patchlake.pipeline.groups import gallery
from patchlake.pipeline.groups.partials import RunNotes
from patchlake.pipeline.methods import build
from patchlake.pipeline.methods.dn2 import DN2
from patchlake.pipeline.model_store.models import Manifest, read_manifest
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, output_files
from tests.jobs.conftest import TRAINING_IMAGES, WHERE, FittedBy
from tests.jobs.test_methods import settings_of
from tests.small import SMALL

# After which call a fit is stopped, if not after `Method.fit`, of which nothing is written then:
# after the notes of the first epoch, and after the first of a gallery's two files.
STOPPED_AFTER = {"cfa": (RunNotes, "write"), "spade": (gallery._Writer, "__call__")}
# Epochs that are noted by the start that goes on, of three.
EPOCHS_LEFT = {"cfa": [2, 3]}


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """All images that go through a network."""
    seen: list[np.ndarray] = []
    embed = Extractor.__call__

    def noted(self: Extractor, pixels: np.ndarray, *interiors: object):
        seen.extend(pixels)
        return embed(self, pixels, *interiors)

    monkeypatch.setattr(Extractor, "__call__", noted)
    return seen


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each note of a training, how many epochs it tells of."""
    noted: list[int] = []
    write = RunNotes.write

    def counted(self: RunNotes, name: str, arrays: dict[str, np.ndarray]) -> None:
        noted.append(len(arrays["losses"]))
        write(self, name, arrays)

    monkeypatch.setattr(RunNotes, "write", counted)
    return noted


def raising_after(call: Callable[..., object], error: BaseException) -> Callable[..., object]:
    def stopped(*given: object, **named: object) -> object:
        call(*given, **named)
        raise error

    return stopped


def assert_it_is_as_if_undisturbed(model: Path, found: Manifest, undisturbed: Path) -> None:
    assert found.groups == read_manifest(Folder(str(undisturbed))).groups
    assert set(output_files(model)) == set(output_files(undisturbed))
    assert not partials(model)


def partials(model: Path) -> list[Path]:
    return [path for path in (model / "_runs").rglob("*") if "partials" in path.parts]


@pytest.mark.parametrize("method", sorted(SMALL))
def test_a_fit_that_was_stopped_goes_on_from_what_is_stored(
    method: str,
    images: Path,
    fitted_by: FittedBy,
    tmp_path: Path,
    embedded: list[np.ndarray],
    epochs: list[int],
    monkeypatch: pytest.MonkeyPatch,
):
    settings, undisturbed = settings_of(method), fitted_by(method)
    embedded.clear()
    owner, name = STOPPED_AFTER.get(method, (type(build(method, SMALL[method])), "fit"))
    with monkeypatch.context() as patched:
        stopped = raising_after(getattr(owner, name), KeyboardInterrupt())
        patched.setattr(owner, name, stopped)
        with pytest.raises(KeyboardInterrupt):
            fit.run(str(images), str(tmp_path), settings, LOCAL, where=WHERE)
    assert len(embedded) == 1 + TRAINING_IMAGES
    assert not (tmp_path / "model.json").exists()
    assert partials(tmp_path)
    assert len(list(tmp_path.glob("g=*/gallery-*"))) == (method == "spade")

    embedded.clear()
    epochs.clear()
    found = fit.run(str(images), str(tmp_path), settings, LOCAL, where=WHERE)

    # The black image that shows whether method and backbone go together.
    assert [image.any() for image in embedded] == [False]
    assert epochs == EPOCHS_LEFT.get(method, [])
    assert_it_is_as_if_undisturbed(tmp_path, found, undisturbed)


def test_a_group_whose_fit_failed_is_fitted_from_what_is_stored(
    images: Path,
    fitted_by: FittedBy,
    tmp_path: Path,
    embedded: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
):
    settings, undisturbed = settings_of("dn2"), fitted_by("dn2")
    with monkeypatch.context() as patched:
        patched.setattr(DN2, "fit", raising_after(DN2.fit, MemoryError("too large")))
        with pytest.raises(FragmentsFailed, match=r"1 of 1 groups .* MemoryError: too large"):
            fit.run(str(images), str(tmp_path), settings, LOCAL, where=WHERE)
    embedded.clear()
    found = fit.run(str(images), str(tmp_path), settings, LOCAL, where=WHERE)
    assert [image.any() for image in embedded] == [False]
    assert_it_is_as_if_undisturbed(tmp_path, found, undisturbed)
