"""The verb `choose`: a table, a sentence, and settings that a fit takes."""

from pathlib import Path

import pytest
import yaml

import patchlake as library
from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import choose
from patchlake.pipeline.model_store.models import read_manifest
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import TINY_FLAGS

FEW = {
    "square": {"resize": (64, 64)},
    "own shape": {"resize": "auto", "pixels": 96 * 96},
}
# All but what the candidates have of their own.
FLAGS = [flag for flag in TINY_FLAGS if "image.resize" not in flag]
FLAGS = [
    one
    for at, one in enumerate(FLAGS)
    # A `--set` that has lost its value.
    if not (one == "--set" and FLAGS[at + 1 : at + 2] in ([], ["--set"], ["--runner"]))
]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "CANDIDATES", FEW)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_what_is_recommended_is_printed_written_and_fitted_with(patchlake, images, tmp_path):
    out = tmp_path / "chosen.yaml"
    done = patchlake("choose", images, out, "--repeat", 1, *FLAGS)
    assert done.code == 0
    for name, size in (("square", "64 x 64"), ("own shape", "96 x 96")):
        (line,) = [line for line in done.out.splitlines() if name in line and size in line]
        assert line.count("0.") >= 4
    assert "Recommended: " in done.out
    assert str(out) in done.out
    written = yaml.safe_load(out.read_text())
    assert load_settings(out.read_text()).image.resize in ((64, 64), "auto")
    assert written.keys() == {"image"}
    fitted = patchlake("fit", images, tmp_path / "model", "--config", out, *FLAGS)
    assert fitted.code == 0
    model = read_manifest(Folder(str(tmp_path / "model")))
    recommended = next(name for name in FEW if f"Recommended: {name}." in done.out)
    expected = {"square": (64, 64), "own shape": (96, 96)}[recommended]
    found = next(iter(model.shapes.values()), model.geometry.resize)
    assert found == expected


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_without_a_file_the_settings_are_printed(patchlake, images):
    done = patchlake("choose", images, "--repeat", 1, *FLAGS)
    assert done.code == 0
    lines = done.out.splitlines()
    told = yaml.safe_load("\n".join(lines[lines.index("image:") :]))
    assert dict(told["image"]) in ({"resize": [64, 64]}, {"resize": "auto", "pixels": 9216})


def test_a_file_of_another_kind_is_refused_before_anything_is_read(patchlake, tmp_path):
    done = patchlake("choose", tmp_path / "nothing", tmp_path / "chosen.txt", *FLAGS)
    assert done.code == 2
    assert "is not the name of a YAML file; end it with .yaml" in done.err


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_the_library_gives_the_same(images: Path, tiny):
    settings = tiny.model_copy(update={"image": load_settings().image})
    found = library.choose(images, repeat=1, settings=settings)
    assert [one.name for one in found.trials] == list(FEW)
    assert found.words().startswith(f"Recommended: {found.recommended.name}.")
