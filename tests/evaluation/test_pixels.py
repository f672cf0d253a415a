"""Streaming pixel AUROC and AUPRO, against scikit-learn and a slow reading of the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from patchlake.pipeline.evaluation.pixels import PixelCurves

OCTAVE_BYTES = 3 * 2**14 * 8


def curves_of(images):
    curves = PixelCurves()
    for anomaly_map, mask in images:
        curves.add(anomaly_map, mask)
    return curves


def exact_auroc(images):
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in images])
    return roc_auc_score(np.concatenate([mask.ravel() for _, mask in images]), scores)


def slow_aupro(images, fpr_limit):
    """Return AUPRO by its definition: every distinct threshold, one region after the other."""
    regions, good = [], []
    for anomaly_map, mask in images:
        labels, count = ndimage.label(mask, structure=[[1, 1, 1], [1, 1, 1], [1, 1, 1]])
        regions += [anomaly_map[labels == i] for i in range(1, count + 1)]
        good.append(anomaly_map[~mask])
    good = np.concatenate(good)
    thresholds = np.unique(np.concatenate([m.ravel() for m, _ in images]))[::-1]

    area, fpr_before, pro_before = 0.0, 0.0, 0.0
    for threshold in thresholds:
        fpr = np.mean(good >= threshold)
        pro = np.mean([np.mean(region >= threshold) for region in regions])
        if fpr > fpr_limit:
            share = (fpr_limit - fpr_before) / (fpr - fpr_before)
            pro_at_limit = pro_before + share * (pro - pro_before)
            return (area + (fpr_limit - fpr_before) * (pro_before + pro_at_limit) / 2) / fpr_limit
        area += (fpr - fpr_before) * (pro_before + pro) / 2
        fpr_before, pro_before = fpr, pro
    return area / fpr_limit


def noise_images(seed=0, count=3, side=18, offset=0.0):
    """White noise, raised a little on random masks of many small regions."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        mask = rng.random((side, side)) < 0.08
        scores = rng.standard_normal((side, side)) + mask + offset
        yield scores.astype(np.float32), mask


def smooth_images(seed=0, count=6, side=32):
    """Distance-like maps: smooth texture, blobs near the defects, every third image good."""
    rng = np.random.default_rng(seed)
    for image in range(count):
        mask = np.zeros((side, side), bool)
        for _ in range(image % 3):
            y, x = rng.integers(0, side - 6, 2)
            mask[y : y + rng.integers(3, side // 3), x : x + rng.integers(3, side // 3)] = True
        texture = ndimage.gaussian_filter(rng.standard_normal((side, side)), 2) * 4
        blobs = ndimage.gaussian_filter(np.roll(mask, 2, axis=1).astype(float), 3)
        yield (3 + texture + 2 * blobs).astype(np.float32), mask


DATA = {
    "noise": list(noise_images()),
    "positive noise": list(noise_images(seed=1, offset=10.0)),
    "smooth": list(smooth_images()),
    "negative smooth": [(m - 8, mask) for m, mask in smooth_images(seed=1)],
    "few levels": [(np.round(m), mask) for m, mask in smooth_images(seed=2)],
}


@pytest.mark.parametrize("name", DATA)
def test_auroc_is_within_its_error_bound_of_the_exact_one(name):
    curves = curves_of(DATA[name])
    error = abs(curves.auroc() - exact_auroc(DATA[name]))
    assert error <= min(curves.auroc_error_bound() + 1e-12, 2e-4)
    if name != "few levels":  # the bound cannot tell true ties from near ones
        assert curves.auroc_error_bound() < 2e-4


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("fpr_limit", [0.05, 0.3, 1.0])
def test_aupro_is_that_of_the_definition(name, fpr_limit):
    curves = curves_of(DATA[name])
    error = abs(curves.aupro(fpr_limit) - slow_aupro(DATA[name], fpr_limit))
    if name != "few levels":  # the bound cannot tell true ties from near ones
        assert curves.aupro_error_bound(fpr_limit) < 1e-3
    assert error <= min(curves.aupro_error_bound(fpr_limit) + 5e-7, 1e-3)


def test_auroc_of_full_size_maps_is_close_to_exact():
    images = list(smooth_images(seed=3, count=12, side=256))
    assert curves_of(images).auroc() == pytest.approx(exact_auroc(images), abs=1e-5)


def test_scores_closer_than_a_cell_are_ties_and_the_bound_says_so():
    # 2**-16 relative: defects are the larger, by less than the cells can tell.
    mask = np.arange(64).reshape(8, 8) < 8
    curves = curves_of([(np.where(mask, 1 + 2.0**-16, 1.0).astype(np.float32), mask)])
    assert curves.auroc() == 0.5
    assert curves.auroc_error_bound() == 0.5
    assert curves.aupro() == pytest.approx(0.15)
    assert curves.aupro_error_bound() == pytest.approx(1.0)


def test_a_perfect_map_gives_one():
    images = [(mask.astype(np.float32) * (3 + m**2) + 0.5, mask) for m, mask in DATA["smooth"]]
    curves = curves_of(images)
    assert curves.auroc() == 1.0
    assert curves.aupro() == pytest.approx(1.0, abs=1e-12)
    assert curves.auroc_error_bound() == 0.0


@pytest.mark.parametrize("value", [-3.0, -0.0, 0.0, 1e-42, 5.0])
def test_a_constant_map_ranks_nothing(value):
    curves = curves_of([(np.full_like(m, value), mask) for m, mask in DATA["smooth"]])
    assert curves.auroc() == 0.5
    # The straight line from (0, 0) to (1, 1) encloses limit**2 / 2.
    assert curves.aupro(0.3) == pytest.approx(0.15, abs=1e-12)


def test_both_zeros_are_one_score():
    mask = np.array([[True, False], [True, False]])
    assert curves_of([(np.array([[0.0, -0.0], [-0.0, 0.0]], np.float32), mask)]).auroc() == 0.5


def test_scores_of_every_size_and_sign_keep_their_order():
    largest, smallest = np.finfo(np.float32).max, np.finfo(np.float32).smallest_normal
    ladder = [-largest, -2.5, -2.0, -1e-30, -smallest, 0.0, smallest, 1e-30, 2.0, 2.5, largest]
    scores = np.array([ladder], np.float32)
    for top in range(1, len(ladder)):
        mask = np.arange(len(ladder))[np.newaxis] >= len(ladder) - top
        curves = curves_of([(scores, mask)])
        assert (curves.auroc(), curves.auroc_error_bound()) == (1.0, 0.0)


def test_regions_weigh_the_same_whatever_their_area():
    mask = np.zeros((10, 10), bool)
    mask[0, 0] = mask[5:10, 5:10] = True
    # Only the region of one pixel is found: half of the regions, 1/26 of the defective pixels.
    scores = np.where(mask, 1.0, 2.0).astype(np.float32)
    scores[0, 0] = 3.0
    assert curves_of([(scores, mask)]).aupro() == pytest.approx(0.5, abs=1e-6)


def test_diagonal_neighbours_are_one_region():
    diagonal = np.eye(4, dtype=bool)
    diagonal[0, 3] = True  # a second region, of one pixel
    scores = np.where(diagonal, 1.0, 2.0).astype(np.float32)
    scores[0, 3] = 3.0
    assert curves_of([(scores, diagonal)]).aupro() == pytest.approx(0.5, abs=1e-6)


def test_a_vertical_step_at_the_limit_adds_no_area():
    # 3 of 10 good pixels score above the defect: PRO is 0 up to FPR 0.3 and 1 from there.
    scores = np.array([[9, 9, 9, 5, 1, 1, 1, 1, 1, 1, 1]], np.float32)
    curves = curves_of([(scores, scores == 5)])
    assert curves.aupro(0.3) == 0.0
    assert curves.aupro(0.6) == pytest.approx(0.5)


@given(
    homes=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    order=st.permutations(range(6)),
    merges=st.permutations(range(4)),
)
@settings(deadline=None, max_examples=25)
def test_any_partition_and_order_gives_the_same_bits(homes, order, merges):
    images = DATA["smooth"]
    parts = [PixelCurves() for _ in range(4)]
    for image in order:
        parts[homes[image]].add(*images[image])
    merged = PixelCurves()
    for part in merges:
        merged.merge(parts[part])

    whole = curves_of(images)
    for metric in ("auroc", "aupro", "auroc_error_bound", "aupro_error_bound", "nbytes"):
        values = [getattr(curves, metric) for curves in (merged, whole)]
        assert len({value() if callable(value) else value for value in values}) == 1


def test_merging_leaves_the_other_as_it_was():
    first, second = curves_of(DATA["smooth"][:3]), curves_of(DATA["smooth"][3:])
    before = second.auroc(), second.nbytes
    first.merge(second)
    first.merge(second)
    first.add(*DATA["noise"][0])
    assert (second.auroc(), second.nbytes) == before


def test_memory_is_bounded_by_the_octaves_not_the_images():
    rng = np.random.default_rng(0)
    curves = PixelCurves()
    mask = rng.random((32, 32)) < 0.1
    for _ in range(200):
        curves.add(rng.uniform(1, 7.9, (32, 32)).astype(np.float32), mask)
    assert curves.nbytes == 3 * OCTAVE_BYTES  # 1..2, 2..4, 4..8


def test_without_regions_there_is_no_area():
    good = curves_of([(m, np.zeros_like(mask)) for m, mask in DATA["smooth"]])
    all_defective = curves_of([(m, np.ones_like(mask)) for m, mask in DATA["smooth"]])
    for curves in (PixelCurves(), good, all_defective):
        assert curves.auroc() is None
        assert curves.aupro() is None
        assert curves.auroc_error_bound() is None
        assert curves.aupro_error_bound() is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_and_nothing_is_counted(bad):
    curves = PixelCurves()
    scores = np.array([[1.0, bad]], np.float32)
    with pytest.raises(ValueError, match="1 of 2 scores"):
        curves.add(scores, np.array([[True, False]]))
    assert curves.nbytes == 0


def test_shapes_that_differ_are_both_named():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        PixelCurves().add(np.zeros((2, 3), np.float32), np.zeros((3, 2), bool))


def test_a_mask_that_is_not_boolean_is_refused():
    with pytest.raises(TypeError):
        PixelCurves().add(np.zeros((2, 2), np.float32), np.full((2, 2), 255, np.uint8))


@pytest.mark.parametrize("fpr_limit", [0.0, -0.1, 1.01, np.nan])
def test_a_limit_that_is_no_rate_is_named(fpr_limit):
    for metric in (PixelCurves().aupro, PixelCurves().aupro_error_bound):
        with pytest.raises(ValueError, match=str(fpr_limit)):
            metric(fpr_limit)
