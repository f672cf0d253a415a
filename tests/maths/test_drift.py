"""The test of drift: its level where nothing has changed, its power where something has."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, hypergeom, mannwhitneyu

from patchlake.pipeline.maths import drift
from patchlake.pipeline.maths.drift import Photos, compared, drifting

WIDTH = 8


def photos(rng: np.random.Generator, parts: int, *, shots: int = 1, alike: float = 0.9) -> Photos:
    """Parts of one population, with up to so many shots each, which are as alike as is said.

    Embeddings have heavy tails and directions of very different spread; brightness is rounded, so
    that there are ties.
    """
    each = rng.integers(1, shots + 1, parts)
    part = np.repeat(np.arange(parts), each)
    width = WIDTH + 3
    own = rng.standard_t(3, (parts, width))[part]
    values = alike * own + np.sqrt(1 - alike**2) * rng.standard_t(3, (len(part), width))
    values *= np.geomspace(100, 0.1, width)
    return Photos(
        part,
        rng.integers(0, 2**63, len(part)).astype(np.uint64),
        np.round(values[:, 0] / 20),
        values[:, 1],
        values[:, 2],
        values[:, 3:],
    )


def shuffled(one: Photos, rng: np.random.Generator) -> Photos:
    """The same images in another order, with other numbers for their parts."""
    order = rng.permutation(len(one.parts))
    names = rng.permutation(int(one.parts.max()) + 1)
    fields = {name: getattr(one, name)[order] for name in one.__dataclass_fields__}
    return Photos(**(fields | {"parts": names[fields["parts"]]}))


@pytest.mark.parametrize(
    ("night", "trained", "shots"),
    [(1, 40, 1), (3, 12, 5), (20, 30, 5), (40, 150, 2), (100, 25, 1)],
)
def test_the_level_is_held_however_few_parts_and_however_alike_their_shots(night, trained, shots):
    rng = np.random.default_rng(night)
    repeats = 300
    # Nights have other numbers of shots a part than the training images.
    p_values = np.array(
        [
            compared(photos(rng, night), photos(rng, trained, shots=shots)).p_value
            for _ in range(repeats)
        ]
    )
    for level in (0.01, 0.05, 0.2):
        # So many are seen with probability 1e-4 where the level is just held.
        assert (p_values <= level).sum() <= binom.isf(1e-4, repeats, level)


@pytest.mark.slow
def test_of_many_nights_that_share_their_training_images_hardly_any_table_has_a_false_one():
    rng = np.random.default_rng(0)
    tables = 40
    false = 0
    for _ in range(tables):
        training = photos(rng, 60, shots=3)
        p_values = [compared(photos(rng, 15, shots=3), training).p_value for _ in range(20)]
        is_drift, _ = drifting(np.array(p_values, np.float64))
        false += bool(is_drift.any())
    assert false <= binom.isf(1e-4, tables, drift.RATE)


def test_shots_of_one_part_that_are_taken_for_parts_would_alarm():
    """Why one image stands for a part: else the level is not held."""
    rng = np.random.default_rng(1)

    def apart(one: Photos) -> Photos:
        return replace(one, parts=np.arange(len(one.parts)))

    kept = broken = 0
    for _ in range(60):
        night, training = photos(rng, 8, shots=12), photos(rng, 30, shots=12)
        kept += compared(night, training).p_value <= 0.05
        broken += compared(apart(night), apart(training)).p_value <= 0.05
    assert kept <= binom.isf(1e-4, 60, 0.05)
    assert broken > 15


@pytest.mark.parametrize("signal", ["brightness", "sharpness", "scores", "embedding"])
def test_a_shift_is_found_and_named(signal):
    rng = np.random.default_rng(2)
    night, training = photos(rng, 20), photos(rng, 60, shots=3)
    name = "embeddings" if signal == "embedding" else signal
    values = getattr(training, name)
    # Of the embedding, in its least direction.
    moved = np.zeros(WIDTH) if signal == "embedding" else 0.0
    if signal == "embedding":
        moved[-1] = 5 * values[:, -1].std()
    else:
        moved = 2.5 * values.std()
    found = compared(replace(night, **{name: getattr(night, name) + moved}), training)
    assert min(found.p_values, key=lambda one: found.p_values[one]) == signal
    assert found.p_value < 1e-4


def test_a_fifth_of_foreign_parts_is_found():
    rng = np.random.default_rng(3)
    night, training = photos(rng, 50), photos(rng, 100)
    foreign = night.embeddings.copy()
    foreign[::5] += 30 * training.embeddings.std(axis=0)
    found = compared(replace(night, embeddings=foreign), training)
    assert found.p_values["embedding"] < 1e-3


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(2, 30))
def test_neither_order_nor_numbers_of_parts_show(seed, night, trained):
    rng = np.random.default_rng(seed)
    one, two = photos(rng, night, shots=3), photos(rng, trained, shots=3)
    assert compared(one, two) == compared(shuffled(one, rng), shuffled(two, rng))


@given(st.integers(0, 2**32))
def test_no_unit_shows(seed):
    """Other grey levels, or embeddings that are turned and stretched, give the same p-values."""
    rng = np.random.default_rng(seed)
    one, two = photos(rng, 12), photos(rng, 30)
    turn, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))

    def changed(some: Photos) -> Photos:
        return replace(
            some,
            brightness=some.brightness / 4 + 3,
            sharpness=np.exp(some.sharpness / 1e3),
            embeddings=7 * some.embeddings @ turn + 5,
        )

    before, after = compared(one, two), compared(changed(one), changed(two))
    assert after.p_values == pytest.approx(before.p_values, rel=1e-6)
    assert after.shift == pytest.approx(before.shift, rel=1e-4, abs=1e-4)


def test_what_is_not_known_is_not_tested():
    rng = np.random.default_rng(4)
    one, two = photos(rng, 10, shots=2), photos(rng, 20, shots=2)
    unknown = np.full(len(one.parts), np.nan)
    found = compared(replace(one, scores=unknown), two)
    assert set(found.p_values) == {"brightness", "sharpness", "embedding"}
    higher = replace(one, scores=one.scores + 2 * two.scores.std())
    bare = replace(
        higher, brightness=unknown, sharpness=unknown, embeddings=np.empty((len(unknown), 0))
    )
    found = compared(bare, two)
    assert (set(found.p_values), found.shift) == ({"scores"}, None)
    # Fewer tests to pay for.
    four = compared(higher, two).p_values["scores"]
    assert found.p_value == pytest.approx(four / 4, rel=1e-12)
    assert compared(replace(bare, scores=unknown), two).p_value is None


def test_ranks_are_scipys_and_the_strangest_are_counted():
    rng = np.random.default_rng(5)
    one, two = photos(rng, 20), photos(rng, 30)
    alone = [replace(p, brightness=np.full(len(p.parts), np.nan)) for p in (one, two)]
    found = compared(*alone).p_values["sharpness"]
    assert found == pytest.approx(min(1, 3 * mannwhitneyu(one.sharpness, two.sharpness).pvalue))
    strange = np.array([5.0, 9.0, 1.0, 1.0, 4.0, 3.0])
    # Of a night of two, the one part that is the strangest of six.
    assert drift._strangest(strange, 2) == pytest.approx(hypergeom.sf(0, 6, 2, 1))
    assert drift._strangest(np.ones(6), 2) == 1


def test_what_is_the_same_everywhere_tells_nothing():
    same = Photos(
        np.arange(9),
        np.arange(9).astype(np.uint64),
        *np.ones((3, 9)),
        np.ones((9, WIDTH)),
    )
    assert compared(same, same).p_value == 1


def test_the_shift_is_in_standard_deviations_of_a_part():
    rng = np.random.default_rng(6)
    spread = np.geomspace(1, 100, WIDTH)

    def drawn(parts: int, away: float) -> Photos:
        values = rng.normal(size=(parts, WIDTH)) * spread
        values[:, 3] += away * spread[3]
        marks = rng.integers(0, 2**63, parts).astype(np.uint64)
        return Photos(np.arange(parts), marks, *rng.normal(size=(3, parts)), values)

    training = drawn(1000, 0)
    assert compared(drawn(200, 3), training).shift == pytest.approx(3, abs=0.3)
    assert compared(drawn(200, 0), training).shift < 0.4


@given(st.lists(st.floats(0, 1), max_size=40))
def test_drifting_nights_are_those_of_benjamini_and_yekutieli(p_values):
    p = np.array(p_values, np.float64)
    is_drift, largest = drifting(p)
    harmonic = sum(1 / k for k in range(1, len(p) + 1))
    ordered = np.sort(p)
    below = [
        k for k in range(1, len(p) + 1) if ordered[k - 1] <= drift.RATE * k / len(p) / harmonic
    ]
    expected = ordered[below[-1] - 1] if below else 0.0
    assert largest == pytest.approx(expected)
    assert is_drift.tolist() == [bool(below) and one <= expected for one in p_values]
