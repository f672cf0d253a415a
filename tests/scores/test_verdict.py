"""Verdicts of one model and of several; regions of an anomalous image."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from patchlake.pipeline.scores.calibration import Calibration, Judged, MeanStd, Sample
from patchlake.pipeline.scores.regions import MOST, is_marked, regions_of
from patchlake.pipeline.scores.verdict import Judgement, Verdict, judgements_of

SAMPLES = [Sample(n, float(n), n / 2, n / 4, 1.0) for n in range(30)]
CALIBRATION = Calibration.of(SAMPLES, None)
FRAMES = arrays(
    np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 4)
)


def judged(images=range(1, 31), offset=0.0):
    count = len(list(images))
    return Judged(
        scores=tuple(n + offset for n in range(count)),
        peaks=tuple(n / 2 for n in range(count)),
        parts=tuple(range(count)),
        images=tuple(images),
    )


def verdict_of(judged, calibrations, rate):
    members = [replace(c, judged=one) for one, c in zip(judged, calibrations, strict=True)]
    return Verdict.of(members, rate)


def test_a_model_says_what_it_promises():
    verdict = verdict_of([judged()], [CALIBRATION], 0.1)
    # 3 of 31 are 0.097: two of thirty scores are above the threshold.
    assert (verdict.threshold, verdict.pixel_threshold, verdict.reservation) == (27, 13.5, None)
    assert verdict.p_values(np.array([28.0], np.float32))[0] == pytest.approx(3 / 31)
    few = verdict_of([judged()], [CALIBRATION], 0.01)
    assert "takes good images of 99 parts, and those of 30 were measured: 0.0323" in few.reservation


def test_a_threshold_that_the_method_was_asked_for_goes_first():
    own = Calibration.of(SAMPLES, 12.5)
    assert verdict_of([judged()], [own], 0.1).threshold == 12.5
    of_before = verdict_of([None], [own], 0.1)
    assert (of_before.threshold, of_before.pixel_threshold) == (12.5, None)
    assert np.isnan(of_before.p_values(np.zeros(2, np.float32))).all()


def test_each_score_is_judged():
    verdict = verdict_of([judged()], [CALIBRATION], 0.1)
    good, bad = judgements_of(np.array([27, 28], np.float32), verdict)
    assert (good.score, good.threshold, good.pixel_threshold) == (27, 27, 13.5)
    assert (bad.score, bad.threshold, bad.pixel_threshold) == (28, 27, 13.5)
    assert (good.p_value, bad.p_value) == pytest.approx((4 / 31, 3 / 31))
    assert (good.is_anomalous, bad.is_anomalous) == (False, True)
    # A threshold that the method was asked for, without a measured image.
    [alone] = judgements_of(np.array([13], np.float32), Verdict(12.5))
    assert (alone, alone.is_anomalous) == (Judgement(13.0, 12.5), True)
    [unknown] = judgements_of(np.array([13], np.float32), None)
    assert (unknown, unknown.is_anomalous) == (Judgement(13.0), None)


def test_an_image_is_judged_as_the_columns_of_the_table_say():
    # Of float32, which of these is the same number.
    threshold = 0.1
    assert float(np.float32(threshold)) > threshold
    assert Judgement(float(np.float32(threshold)), threshold).is_anomalous is False


def test_nothing_is_said_where_nothing_was_measured():
    assert verdict_of([None], [CALIBRATION], 0.1) is None
    assert verdict_of([judged(), None], [CALIBRATION] * 2, 0.1) is None


def test_an_ensemble_is_judged_by_the_images_that_all_members_measured():
    unit = Calibration(30, MeanStd(0.0, 1.0), MeanStd(0.0, 1.0), None)
    one, other = judged(), judged([*range(30, 10, -1), 99], offset=1.0)
    verdict = verdict_of([one, other], [unit] * 2, 0.1)
    shared = range(11, 31)
    wanted = sorted(((i - 1) + (30 - i + 1)) / 2 for i in shared)
    assert verdict.calibration.scores.tolist() == wanted
    assert verdict.calibration.parts == 20
    assert verdict_of([one, judged(range(100, 130))], [unit] * 2, 0.1) is None


def test_of_equal_files_none_is_taken_for_another():
    unit = Calibration(30, MeanStd(0.0, 1.0), MeanStd(0.0, 1.0), None)
    one, other = judged([1, 1, 2, 0, 0, 3]), judged([1, 2, 3, 0])
    assert verdict_of([one, other], [unit] * 2, 0.5).calibration.parts == 2


@given(FRAMES, st.integers(0, 5))
def test_each_marked_pixel_is_in_one_region_and_no_image_is_without(frame, threshold):
    marked = is_marked(frame, threshold)
    size = frame.shape[1], frame.shape[0]
    regions = regions_of(frame, marked, size)
    assert regions
    assert sum(one.area for one in regions) == marked.sum()
    if (frame > threshold).any():
        np.testing.assert_array_equal(marked, frame > threshold)
    else:
        # The one around the highest point.
        assert len(regions) == 1
        assert marked[np.unravel_index(frame.argmax(), frame.shape)]
    assert max(one.peak for one in regions) == frame.max()
    _, count = ndimage.label(marked, structure=np.ones((3, 3)))
    assert len(regions) == min(count, MOST)
    assert [one.area for one in regions] == sorted((one.area for one in regions), reverse=True)


@given(FRAMES, st.integers(1, 5), st.integers(1, 5))
def test_regions_are_in_pixels_of_the_image(frame, across, down):
    marked = is_marked(frame, 2)
    height, width = frame.shape
    small = regions_of(frame, marked, (width, height))
    large = regions_of(frame, marked, (width * across, height * down))
    for one, other in zip(small, large, strict=True):
        assert (other.x, other.width) == (one.x * across, one.width * across)
        assert (other.y, other.height) == (one.y * down, one.height * down)
        assert other.area == one.area * across * down
        assert other.centre_x == pytest.approx(one.centre_x * across)
        assert one.x <= one.centre_x <= one.x + one.width


@given(FRAMES, st.integers(0, 5), st.integers(1, 900), st.integers(1, 900))
def test_a_region_is_what_scipy_says_of_the_whole_frame(frame, threshold, width, height):
    marked = is_marked(frame, threshold)
    across, down = width / frame.shape[1], height / frame.shape[0]
    labels, count = ndimage.label(marked, structure=np.ones((3, 3)))
    every = range(1, count + 1)
    expected = [
        (peak, (centre[0] + 0.5) * down, (centre[1] + 0.5) * across)
        for peak, centre in zip(
            ndimage.maximum(frame, labels, every),
            ndimage.center_of_mass(marked, labels, every),
            strict=True,
        )
    ]
    found = regions_of(frame, marked, (width, height))
    assert sorted((one.peak, one.centre_y, one.centre_x) for one in found) == sorted(expected)


def test_a_box_never_leaves_the_image():
    frame = np.ones((512, 209), np.float32)
    [region] = regions_of(frame, is_marked(frame, 0), (1001, 2453))
    assert (region.x, region.y, region.width, region.height) == (0, 0, 1001, 2453)
    assert region.area == 1001 * 2453
    assert (region.centre_x, region.centre_y) == pytest.approx((500.5, 1226.5))


def test_what_is_not_of_one_length_is_refused():
    with pytest.raises(ValueError, match=r"scores, parts, images and peaks are \[2, 1, 2, 2\]"):
        Judged((1.0, 2.0), (0,), (1, 2))
    whole = replace(CALIBRATION, judged=judged())
    assert Calibration.from_json(whole.to_json()) == whole
