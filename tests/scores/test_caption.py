"""The strip below a heatmap: what it says, on pictures of any size."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.scores import caption
from patchlake.pipeline.scores.caption import captioned, sentences
from patchlake.pipeline.scores.heatmap import ColourScale, blended
from patchlake.pipeline.scores.verdict import Judgement

SCALE = ColourScale(1.5, 2.25)
ANOMALOUS = Judgement(2.53125, 1.912345, 0.00990099, 1.6)
# Of any model: calibrations are finite numbers.
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


def strip_of(judgement, scale=SCALE, width=512):
    picture = np.zeros((1, width, 3), np.uint8)
    return captioned(picture, judgement, scale)[1:]


def test_the_words():
    assert sentences(ANOMALOUS) == [
        "anomalous",
        "score 2.531",
        "threshold 1.912",
        "p-value 0.0099",
    ]
    assert sentences(Judgement(1.5, 1.912345, 0.25)) == [
        "normal",
        "score 1.5",
        "threshold 1.912",
        "p-value 0.25",
    ]
    # The method's own threshold, and none.
    assert sentences(Judgement(123456.0, 2.0)) == ["anomalous", "score 1.235e+05", "threshold 2"]
    assert sentences(Judgement(2.53125)) == ["score 2.531"]


@given(numbers, numbers)
def test_the_numbers_show_which_one_is_larger(score, threshold):
    verdict, said, against = sentences(Judgement(score, threshold))
    shown = float(said.removeprefix("score ")), float(against.removeprefix("threshold "))
    assert (verdict == "anomalous") == (score > threshold) == (shown[0] > shown[1])


def test_what_is_compared_as_equal_is_shown_as_equal():
    threshold = 0.1
    score = float(np.float32(threshold))
    assert score > threshold
    assert sentences(Judgement(score, threshold)) == ["normal", "score 0.1", "threshold 0.1"]


def test_numbers_are_no_longer_than_it_takes():
    close = sentences(Judgement(float(np.float32(1.9123456)), 1.912))
    assert close[1:] == ["score 1.9123", "threshold 1.912"]


@pytest.mark.parametrize(
    "other",
    [
        Judgement(2.53225, 1.912345, 0.00990099),
        Judgement(2.53125, 1.922345, 0.00990099),
        Judgement(2.53125, 1.912345, 0.02),
        Judgement(2.53125, 1.912345),
        Judgement(2.53125),
    ],
)
def test_each_number_is_drawn(other):
    strips = strip_of(ANOMALOUS), strip_of(other)
    assert strips[0].shape[1:] == strips[1].shape[1:] == (512, 3)
    assert strips[0].shape != strips[1].shape or (strips[0] != strips[1]).any()


def test_the_scale_and_its_ends_are_drawn():
    strip = strip_of(ANOMALOUS)
    assert (strip != strip_of(ANOMALOUS, ColourScale(1.4, 2.25))).any()
    assert (strip != strip_of(ANOMALOUS, ColourScale(1.5, 2.26))).any()
    # As they are in the picture, over a middle grey: from none to full.
    ends = blended(np.full((1, 2, 3), 128, np.uint8), np.array([[0, 1]], np.float32))[0]
    for end in ends:
        assert (strip == end).all(axis=2).any()
    assert ((np.ptp(strip.astype(int), axis=2) > 30).any(axis=0)).sum() > 50


@given(
    st.integers(1, 600),
    st.integers(1, 40),
    st.builds(Judgement, numbers, st.none() | numbers, st.none() | st.floats(0, 1)),
    st.tuples(numbers, numbers).filter(lambda ends: ends[0] < ends[1]),
)
def test_a_picture_of_any_size_stays_in_its_corner_and_no_text_is_cut(
    width, height, judgement, ends
):
    picture = np.full((height, width, 3), 200, np.uint8)
    scale = ColourScale(*ends)
    whole = captioned(picture, judgement, scale)
    np.testing.assert_array_equal(whole[:height, :width], picture)
    paper = whole[-1, -1]
    # Beside a narrow picture, and at the edges of the strip, there is nothing.
    assert (whole[:height, width:] == paper).all()
    strip = whole[height:]
    for edge in (strip[0], strip[-1], strip[:, :6], strip[:, -6:]):
        assert (edge == paper).all()
    assert whole.shape[1] >= width
    # Of each piece all that it has is there, once.
    pieces = [caption._text(words) for words in sentences(judgement)]
    inked = sum(int((piece != paper).any(axis=2).sum()) for piece in pieces)
    inked += int((caption._bar(scale) != paper).any(axis=2).sum())
    assert int((strip != paper).any(axis=2).sum()) == inked


def test_there_are_as_many_lines_as_it_takes_and_a_narrow_picture_is_made_wide_enough():
    assert strip_of(ANOMALOUS).shape == (2 * caption._LINE, 512, 3)
    assert strip_of(Judgement(2.53125)).shape == (caption._LINE, 512, 3)
    lines, width, _ = strip_of(ANOMALOUS, width=1).shape
    assert lines == 5 * caption._LINE
    assert 100 < width < 250


def test_threads_do_not_show():
    """Letters are rendered by one font in all threads of a stage."""
    judgements = [Judgement(n + 0.125, 7.5, n / 200) for n in range(120)]
    expected = [strip_of(one) for one in judgements]
    caption._letter.cache_clear()
    caption._bar.cache_clear()
    found = [None] * len(judgements)

    def draw(begin):
        for number in range(begin, len(judgements), 6):
            found[number] = strip_of(judgements[number])

    threads = [threading.Thread(target=draw, args=(begin,)) for begin in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
