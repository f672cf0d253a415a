"""AUPIMO from two histograms, against a slow reading of the definition and anomalib."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from patchlake.pipeline.evaluation.overlap import ImageOverlap

# What a mask's weight may be rounded by.
ROUNDED = 5e-7


def overlap_of(images):
    overlap = ImageOverlap()
    for anomaly_map, mask in images:
        overlap.add(anomaly_map, mask)
    return overlap


def slow_aupimo(images, lowest, highest, above=-np.inf):
    """Return AUPIMO by its definition: image by image, every distinct score above `above`."""
    goods = [m for m, mask in images if not mask.any()]
    scores = np.unique(np.concatenate([m.ravel() for m, _ in images]))[::-1]
    thresholds = scores[scores > above]
    rates = [np.mean([np.mean(good >= t) for good in goods]) for t in thresholds]
    return np.mean(
        [
            _slow_area(rates, [np.mean(m[mask] >= t) for t in thresholds], lowest, highest)
            for m, mask in images
            if mask.any()
        ]
    )


def _slow_area(rates, overlaps, lowest, highest):
    low, high = math.log(lowest), math.log(highest)
    area, free, before = 0.0, 0.0, None
    for rate, overlap in zip(rates, overlaps, strict=True):
        if rate == 0:
            free = overlap
            continue
        x = math.log(rate)
        x0, y0, slope = -math.inf, free, 0.0
        if before is not None:
            x0, y0 = before
            slope = (overlap - y0) / (x - x0) if x > x0 else 0.0
        left, right = max(low, x0), min(high, x)
        if right > left:
            at = y0 + slope * ((left + right) / 2 - x0) if slope else y0
            area += (right - left) * at
        before = x, overlap
    return area / (high - low)


LEVELS = st.lists(st.integers(1, 60), min_size=36, max_size=36)


@st.composite
def small_images(draw):
    images = []
    for kind in draw(st.permutations(["good", "good", "bad", "bad", "bad"])):
        anomaly_map = np.array(draw(LEVELS), np.float32).reshape(6, 6) / 4
        mask = np.zeros((6, 6), bool)
        if kind == "bad":
            y, x = draw(st.integers(0, 5)), draw(st.integers(0, 5))
            mask[y : y + 3, x : x + 2] = True
        images.append((anomaly_map, mask))
    return images


@given(images=small_images(), limits=st.sampled_from([(0.02, 0.2), (0.05, 0.5), (0.1, 1.0)]))
def test_aupimo_is_that_of_the_definition_where_no_scores_share_a_cell(images, limits):
    ours = overlap_of(images).aupimo(*limits)
    assert ours == pytest.approx(slow_aupimo(images, *limits), abs=ROUNDED)


def smooth_images(goods, bads, *, seed=0, side=48, strength=1.0):
    rng = np.random.default_rng(seed)
    images = []
    for number in range(goods + bads):
        mask = np.zeros((side, side), bool)
        if number >= goods:
            y, x = rng.integers(0, side - 8, 2)
            mask[y : y + rng.integers(3, side // 3), x : x + rng.integers(3, side // 3)] = True
        texture = ndimage.gaussian_filter(rng.standard_normal((side, side)), 2) * 4
        blob = ndimage.gaussian_filter(np.roll(mask, 2, axis=1).astype(float), 2)
        images.append(((3 + texture + strength * blob).astype(np.float32), mask))
    return images


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_aupimo_of_any_scores_is_within_its_error_bound(seed, strength):
    images = smooth_images(4, 4, seed=seed, strength=strength)
    overlap, limits = overlap_of(images), (1e-3, 1e-2)
    bound = overlap.aupimo_error_bound(*limits)
    assert bound < 2e-3
    assert abs(overlap.aupimo(*limits) - slow_aupimo(images, *limits)) <= bound + ROUNDED


def test_aupimo_of_full_size_maps_has_the_rates_of_the_paper():
    images = smooth_images(4, 3, side=256, strength=3.0)
    good = np.concatenate([m.ravel() for m, mask in images if not mask.any()])
    overlap = overlap_of(images)
    # The lowest threshold is well beyond the highest rate.
    expected = slow_aupimo(images, 1e-5, 1e-4, above=np.quantile(good, 1 - 3e-4))
    assert 0.02 < expected < 0.98
    assert abs(overlap.aupimo() - expected) <= overlap.aupimo_error_bound() + ROUNDED
    assert overlap.aupimo_error_bound() < 5e-3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
def test_aupimo_is_near_that_of_anomalib(seed):
    pytest.importorskip("anomalib", reason="anomalib is no dependency")
    import torch
    from anomalib.metrics.pimo.functional import aupimo_scores

    images = smooth_images(12, 5, seed=seed, side=256, strength=3.0)
    theirs = aupimo_scores(
        torch.from_numpy(np.stack([m for m, _ in images])),
        torch.from_numpy(np.stack([mask for _, mask in images])),
        force=True,  # 12 good images have too few pixels beyond 1e-4 for the 300 points it wants
    )
    is_bad = np.array([mask.any() for _, mask in images])
    # It takes the thresholds next to the ends of the range, and does not interpolate.
    assert overlap_of(images).aupimo() == pytest.approx(
        float(theirs[4][torch.from_numpy(is_bad)].mean()), abs=0.005
    )


@given(order=st.permutations(range(8)))
def test_any_order_gives_the_same_bits(order):
    images = smooth_images(4, 4, seed=1)
    shuffled = overlap_of([images[i] for i in order])
    assert shuffled.aupimo(1e-3, 1e-2) == overlap_of(images).aupimo(1e-3, 1e-2)


@given(factor=st.sampled_from([0.25, 2.0, 1024.0]))
def test_another_unit_of_the_scores_changes_nothing(factor):
    images = smooth_images(3, 3, seed=2)
    scaled = overlap_of([(m * np.float32(factor), mask) for m, mask in images])
    assert scaled.aupimo(1e-3, 1e-2) == overlap_of(images).aupimo(1e-3, 1e-2)


def test_every_image_weighs_the_same_however_large_its_defect():
    good = np.ones((8, 8), np.float32)
    small, large = np.zeros((8, 8), bool), np.ones((8, 8), bool)
    small[0, 0] = True
    # The small defect is found and the large one is not: half of the images, 1/65 of the pixels.
    images = [(good, ~large), (good * 2, small), (good / 2, large)]
    assert overlap_of(images).aupimo(0.1, 0.5) == pytest.approx(0.5, abs=1e-6)


def test_good_pixels_of_anomalous_images_are_no_false_alarms():
    mask = np.zeros((8, 8), bool)
    mask[:2] = True
    anomalous = np.where(mask, 2.0, 9.0).astype(np.float32)
    images = [(np.ones((8, 8), np.float32), np.zeros_like(mask)), (anomalous, mask)]
    assert overlap_of(images).aupimo(0.1, 0.5) == 1.0


def test_where_the_best_good_pixels_tie_only_what_is_above_them_counts():
    mask = np.zeros((10, 10), bool)
    mask[0] = True
    tied = np.where(mask, 5.0, 1.0).astype(np.float32)  # a tenth of the good pixels
    found = np.ones((10, 10), np.float32)
    found[0, :4], found[0, 4:] = 6.0, 5.0
    images = [(tied, np.zeros_like(mask)), (found, mask)]
    overlap = overlap_of(images)
    assert overlap.aupimo(0.01, 0.1) == pytest.approx(0.4, abs=1e-6)
    assert slow_aupimo(images, 0.01, 0.1) == pytest.approx(0.4)
    # Nothing tells how the curve rises to the tie.
    assert overlap.aupimo_error_bound(0.01, 0.1) == pytest.approx(0.6, abs=1e-6)


def test_too_few_good_pixels_for_the_lowest_rate_give_none():
    zeros = np.zeros((256, 256), bool)
    mask = zeros.copy()
    mask[:9, :9] = True
    flat = np.ones((256, 256), np.float32)
    bad = (flat + mask).astype(np.float32), mask
    assert overlap_of([(flat, zeros), bad]).aupimo() is None
    assert overlap_of([(flat, zeros), bad]).aupimo_error_bound() is None
    assert overlap_of([(flat, zeros), (flat, zeros), bad]).aupimo() == 1.0
    assert overlap_of([(flat, zeros)] * 2).aupimo() is None
    assert overlap_of([bad]).aupimo() is None
    assert ImageOverlap().aupimo() is None


def test_good_images_of_another_size_are_refused():
    overlap = overlap_of([(np.ones((4, 4), np.float32), np.zeros((4, 4), bool))])
    with pytest.raises(ValueError, match="25 pixels, those before it 16"):
        overlap.add(np.ones((5, 5), np.float32), np.zeros((5, 5), bool))


@pytest.mark.parametrize("limits", [(0.0, 0.1), (0.1, 0.1), (0.1, 1.1), (0.2, 0.1)])
def test_rates_that_are_none_are_named(limits):
    for metric in (ImageOverlap().aupimo, ImageOverlap().aupimo_error_bound):
        with pytest.raises(ValueError, match=str(limits[1])):
            metric(*limits)


def test_memory_does_not_grow_with_the_images():
    overlap = ImageOverlap()
    rng = np.random.default_rng(0)
    mask = np.arange(64).reshape(8, 8) < 3
    for number in range(200):
        scores = rng.uniform(1, 7.9, (8, 8)).astype(np.float32)
        overlap.add(scores, mask if number % 2 else np.zeros_like(mask))
    assert overlap.histograms.nbytes == 3 * 2 * 2**14 * 8  # 1..2, 2..4, 4..8
