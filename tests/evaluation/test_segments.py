"""Pixels and regions at a threshold, against loops over pixels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from patchlake.pipeline.evaluation.segments import Segments

MASKS = arrays(bool, (7, 9))


def regions_of(mask):
    """Return the 8-connected regions of a mask as sets of pixels, by flooding."""
    left, regions = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        region, front = set(), [left.pop()]
        while front:
            y, x = front.pop()
            region.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            front += near
        regions.append(region)
    return regions


@given(images=st.lists(st.tuples(MASKS, MASKS), min_size=1, max_size=4), data=st.data())
def test_counts_are_those_of_pixels_one_by_one_in_any_order(images, data):
    segments = Segments()
    for is_predicted, mask in data.draw(st.permutations(images)):
        segments.add(is_predicted, mask)
    pairs = [
        (bool(p), bool(m))
        for predicted, mask in images
        for p, m in zip(predicted.flat, mask.flat, strict=True)
    ]
    tp, fp, fn = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True)))
    regions = [
        any(predicted[place] for place in region)
        for predicted, mask in images
        for region in regions_of(mask)
    ]
    assert segments == Segments(tp, fp, fn, len(regions), sum(regions))
    if tp + fn:
        assert segments.f1() == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert segments.region_hit_rate() == pytest.approx(np.mean(regions))
    else:
        assert (segments.f1(), segments.region_hit_rate()) == (None, None)


def test_good_images_alone_have_no_rate_but_count_later():
    segments = Segments()
    assert segments.f1() is None
    none, one = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    one[1, 1] = True
    segments.add(one, none)
    assert (segments.f1(), segments.region_hit_rate()) == (None, None)
    segments.add(one, one)
    assert segments.f1() == pytest.approx(2 / 3)
    assert segments.region_hit_rate() == 1.0
