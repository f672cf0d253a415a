"""Units in which members of an ensemble are compared."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.scores.calibration import Calibration, MeanStd, mean_scale
from patchlake.pipeline.scores.ensemble import ensemble_maps, ensemble_scores
from patchlake.pipeline.scores.heatmap import ColourScale

ONE = Calibration(9, MeanStd(10.0, 2.0), MeanStd(1.0, 0.5), ColourScale(2.0, 3.0))
OTHER = Calibration(9, MeanStd(-1.0, 4.0), MeanStd(0.0, 2.0), ColourScale(8.0, 12.0), threshold=5.0)
MAPLESS = Calibration(9, MeanStd(0.0, 1.0), None, None)

floats = st.floats(-1e3, 1e3, width=32)


def test_a_spread_is_of_the_population():
    assert MeanStd.of(np.array([1, 3], np.float32)) == MeanStd(2.0, 1.0)


@pytest.mark.parametrize("values", [[], [7.0], [7.0, 7.0]])
def test_what_has_no_spread_is_only_shifted(values):
    spread = MeanStd.of(np.array(values, np.float32))
    assert spread.std == 1.0
    assert spread.standardise(np.array([9.0], np.float32))[0] == 9 - spread.mean


@given(st.lists(floats, min_size=2, max_size=20, unique=True), floats, st.floats(0.1, 10))
def test_a_member_in_other_units_changes_no_standard_score(values, shift, scale):
    rows = np.array(values, np.float32)
    moved = (rows.astype(np.float64) * scale + shift).astype(np.float32)
    if min(rows.std(), moved.std()) < 1e-2:
        return
    one = MeanStd.of(rows).standardise(rows)
    other = MeanStd.of(moved).standardise(moved)
    # Scores in other units are rounded anew, each by at most 2^-24 of itself.
    rounding = 2.0**-24 * float(np.abs(moved).max() / moved.std())
    np.testing.assert_allclose(one, other, atol=1e-4 + 4 * rounding, rtol=4 * rounding)


@pytest.mark.parametrize("calibration", [ONE, OTHER, MAPLESS])
def test_json_gives_back_what_it_was_given(calibration):
    assert Calibration.from_json(calibration.to_json()) == calibration


def test_the_mean_is_over_standard_scores():
    scores = [np.array([14, 10], np.float32), np.array([3, -5], np.float32)]
    # (14 - 10) / 2 = 2 and (3 + 1) / 4 = 1; (10 - 10) / 2 = 0 and (-5 + 1) / 4 = -1.
    np.testing.assert_array_equal(ensemble_scores(scores, [ONE, OTHER]), [1.5, -0.5])


def test_maps_meet_on_the_finest_grid():
    fine = np.full((1, 4, 4), 2, np.float32)
    coarse = np.full((1, 2, 2), 4, np.float32)
    # (2 - 1) / 0.5 = 2 and (4 - 0) / 2 = 2, wherever they lie.
    found = ensemble_maps([fine, coarse, None], [ONE, OTHER, MAPLESS])
    np.testing.assert_allclose(found, np.full((1, 4, 4), 2), rtol=1e-6)


def test_without_maps_there_is_none():
    assert ensemble_maps([None], [MAPLESS]) is None
    assert mean_scale([MAPLESS]) is None


def test_the_scale_of_an_ensemble_is_in_its_units():
    # (2 - 1) / 0.5 = 2 and 8 / 2 = 4; (3 - 1) / 0.5 = 4 and 12 / 2 = 6.
    assert mean_scale([ONE, OTHER, MAPLESS]) == ColourScale(3.0, 5.0)
