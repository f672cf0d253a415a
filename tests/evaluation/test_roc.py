"""Image AUROC, against scikit-learn and the laws of a rank statistic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import roc_auc_score

from patchlake.pipeline.evaluation.roc import auroc


@st.composite
def labelled_scores(draw):
    """Multiples of 1/8 with many ties, and labels of both classes."""
    size = draw(st.integers(2, 60))
    eighths = draw(arrays.arrays(np.int64, size, elements=st.integers(-20, 20)))
    labels = draw(arrays.arrays(np.bool_, size))
    labels[:2] = [True, False]
    return eighths / 8, labels


@given(labelled_scores())
def test_equals_scikit_learn_with_ties(data):
    scores, labels = data
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("decimals", [1, 2, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_scikit_learn_on_many_images(decimals, dtype):
    rng = np.random.default_rng(0)
    labels = rng.random(20_000) < 0.03
    scores = np.round(rng.standard_normal(20_000) + labels, decimals).astype(dtype)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(labelled_scores())
def test_unchanged_by_strictly_monotone_maps(data):
    scores, labels = data
    # Both maps are exact in float64 on multiples of 1/8, so no tie is made or broken.
    assert auroc(scores**3, labels) == auroc(scores, labels) == auroc(2 * scores + 1, labels)


@given(labelled_scores())
def test_negated_scores_give_the_complement(data):
    scores, labels = data
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-15)


def test_known_values():
    labels = np.array([False, False, True, True])
    assert auroc(np.array([1.0, 2.0, 3.0, np.inf]), labels) == 1.0
    assert auroc(np.array([3.0, 4.0, -np.inf, 1.0]), labels) == 0.0
    assert auroc(np.array([2.0, 2.0, 2.0, 2.0]), labels) == 0.5
    assert auroc(np.array([-0.0, 0.0, 0.0, -0.0]), labels) == 0.5
    assert auroc(np.array([0.1, 0.4, 0.35, 0.8]), labels) == 0.75


@pytest.mark.parametrize("label", [True, False])
def test_one_class_alone_has_no_auroc(label):
    assert auroc(np.array([1.0, 2.0]), np.array([label, label])) is None


def test_no_images_have_no_auroc():
    assert auroc(np.zeros(0), np.zeros(0, bool)) is None


def test_nan_scores_are_counted_in_the_error():
    with pytest.raises(ValueError, match="1 of 3 scores are NaN"):
        auroc(np.array([1.0, np.nan, 2.0]), np.array([True, False, False]))


def test_lengths_that_differ_are_both_named():
    with pytest.raises(ValueError, match=r"\(3,\), labels \(2,\)"):
        auroc(np.zeros(3), np.array([True, False]))
