"""Which candidate is recommended, and that candidates really are fitted and scored."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest

from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import choose
from patchlake.pipeline.driver.choose import MARGIN, Trial, recommended
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.observer import Note, no_note
from patchlake.pipeline.errors import ConfigError
from tests.conftest import LOCAL, TINY


class Counting:
    """An observer that keeps the steps of each task."""

    def __init__(self) -> None:
        self.steps: dict[str, list[int]] = {}

    def task(self, what: str, total: int, unit: str, note: Note = no_note):
        assert (total, unit) == (5, "candidates")
        assert note() == ""
        return nullcontext(self.steps.setdefault(what, []).append)


def trial(name: str, merit: float) -> Trial:
    return Trial(name, {}, (224, 224), merit, merit, merit, 0.01)


def test_a_dearer_candidate_has_to_be_better_by_the_margin():
    cheap, close, best = (
        trial("cheap", 0.8),
        trial("close", 0.8 + MARGIN * 0.9),
        trial("best", 0.8 + MARGIN * 1.5),
    )
    assert recommended([cheap]) is cheap
    assert recommended([cheap, close]) is cheap
    # Beside the cheap one, and not beside the close one.
    assert recommended([cheap, close, best]) is best
    assert recommended([best, close, cheap]) is best


def test_a_method_without_maps_is_judged_by_images_alone():
    one = Trial("one", {}, (224, 224), 0.75, math.nan, math.nan, 0.01)
    assert one.merit == 0.75


@pytest.mark.slow
def test_candidates_are_fitted_and_scored(images, monkeypatch, caplog):
    caplog.set_level("INFO", logger="patchlake")
    few = {
        "square": {"resize": (64, 64)},
        "the same": {"resize": "auto", "pixels": 64 * 64},
        "own shape": {"resize": "auto", "pixels": 96 * 96},
        "the same in a tile": {
            "resize": "auto",
            "pixels": 96 * 96,
            "tile": {"size": 96, "overlap": 0},
        },
        "tiles": {"resize": "auto", "pixels": 160**2, "tile": {"size": 96, "overlap": 32}},
    }
    monkeypatch.setattr(choose, "CANDIDATES", few)
    flags = {name: value for name, value in TINY.items() if name != "image"}
    settings = load_settings(flags=flags)
    observer, fits, fit = Counting(), [], choose.fit.run
    monkeypatch.setattr(choose.fit, "run", lambda *given: fits.append(1) or fit(*given))
    found = choose.run(str(images), settings, Execution("local", observer=observer))
    assert [one.name for one in found.trials] == list(few)
    sides = [64, 64, 96, 96, 160]
    assert [one.inputs for one in found.trials] == [(side, side) for side in sides]
    # What makes the same inputs is fitted once, and nothing is said of files that are gone.
    assert len(fits) == 3
    assert replace(found.trials[1], name="square", image=few["square"]) == found.trials[0]
    assert observer.steps == {"choose": [1] * 5}
    assert "/images, into " not in caplog.text
    assert "good photos of" in caplog.text
    for one in found.trials:
        # An untrained network.
        assert 0.3 < one.image_auroc <= 1
        assert 0.3 < one.pixel_auroc <= 1
        assert 0 < one.aupro <= 1
        assert one.seconds_per_image > 0
    assert found.recommended in found.trials
    again = choose.run(str(images), settings, LOCAL)
    for one, other in zip(found.trials, again.trials, strict=True):
        assert (one.image_auroc, one.pixel_auroc, one.aupro) == (
            other.image_auroc,
            other.pixel_auroc,
            other.aupro,
        )


@pytest.mark.parametrize("changed", [{"columns": {"roi": "m"}}, {"image": {"roi": {"a": "m.png"}}}])
def test_regions_of_interest_are_refused(images, changed):
    with pytest.raises(ConfigError, match=r"choose without image\.roi and columns\.roi"):
        choose.run(str(images), load_settings(flags=changed), LOCAL)
