"""The strip below a heatmap: the score, what it was judged by, and what the colours mean.

The letters are Pillow's own, which have no file and look the same on every machine. Each is
rendered once and kept: a text that is rendered as one takes 0.2 ms, and is closer together by a
pixel here and there.
"""

from functools import lru_cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from patchlake.pipeline.scores.heatmap import ColourScale, blended
from patchlake.pipeline.scores.verdict import Judgement

# All in pixels: the height of letters and of a line, where letters stand in it, the space at the
# edges and between two texts, and the bar of colours.
_LETTERS, _LINE, _BASE, _SPACE = 13, 20, 14, 8
_BAR_WIDTH, _BAR_HEIGHT = 64, 11
# Grey levels. Colours of the bar are those that they are over a photo of middle grey.
_PAPER, _INK, _MIDDLE = 28, 240, 128
# Of a number: as many as are read at a glance, and as many as tell any two float32 apart.
_FEWEST_DIGITS, _MOST_DIGITS = 4, 9


def captioned(
    picture: UInt8[np.ndarray, "h w 3"], judgement: Judgement, scale: ColourScale
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the picture with a strip of one or more lines below it.

    The picture is at the upper left corner of the result, so that places in it stay where they are.
    The result is wider only where the picture is narrower than a text or the bar: `width` is at
    least some 170 to 210 pixels, by the digits of the numbers.

    Args:
        picture: What is drawn already.
        judgement: Of the image. Without a threshold only its score is written.
        scale: Of the picture's colours.
    """
    texts = [_text(words) for words in sentences(judgement)]
    strip = _strip([*texts, _bar(scale)], picture.shape[1])
    height, width = picture.shape[:2]
    whole = np.empty((height + strip.shape[0], strip.shape[1], 3), np.uint8)
    whole[:height, :width] = picture
    whole[:height, width:] = _PAPER
    whole[height:] = strip
    return whole


def sentences(judgement: Judgement) -> list[str]:
    """Return what the strip says of an image, in its order."""
    if judgement.threshold is None:
        return [f"score {judgement.score:.{_FEWEST_DIGITS}g}"]
    # As they are compared.
    score, threshold = _told_apart(judgement.score, float(np.float32(judgement.threshold)))
    verdict = "anomalous" if judgement.is_anomalous else "normal"
    said = [verdict, f"score {score}", f"threshold {threshold}"]
    if judgement.p_value is not None:
        said.append(f"p-value {judgement.p_value:.2g}")
    return said


def _told_apart(one: float, other: float) -> tuple[str, str]:
    """Return two numbers with the fewest digits that show which is larger, if one is."""
    every = range(_FEWEST_DIGITS, _MOST_DIGITS + 1)
    shown = [(f"{one:.{digits}g}", f"{other:.{digits}g}") for digits in every]
    return next((pair for pair in shown if pair[0] != pair[1]), shown[0])


def _strip(
    pieces: list[UInt8[np.ndarray, "line _ 3"]], width: int
) -> UInt8[np.ndarray, "lines width 3"]:
    """Return pieces one beside the other, in as many lines as it takes; none is cut."""
    width = max(width, 2 * _SPACE + max(piece.shape[1] for piece in pieces))
    places, line, left = [], 0, _SPACE
    for piece in pieces:
        if left > _SPACE and left + piece.shape[1] + _SPACE > width:
            line, left = line + 1, _SPACE
        places.append((line * _LINE, left))
        left += piece.shape[1] + 2 * _SPACE
    strip = np.full(((line + 1) * _LINE, width, 3), _PAPER, np.uint8)
    for piece, (top, left) in zip(pieces, places, strict=True):
        strip[top : top + _LINE, left : left + piece.shape[1]] = piece
    return strip


@lru_cache(1)
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_LETTERS)


def _text(words: str) -> UInt8[np.ndarray, "line _ 3"]:
    """Return a line of letters, as wide as they are."""
    return np.concatenate([_letter(one) for one in words], axis=1)


@lru_cache(128)
def _letter(one: str) -> UInt8[np.ndarray, "line _ 3"]:
    image = Image.new("L", (round(_font().getlength(one)), _LINE), _PAPER)
    ImageDraw.Draw(image).text((0, _BASE), one, fill=_INK, font=_font(), anchor="ls")
    return np.repeat(np.asarray(image)[..., None], 3, axis=2)


@lru_cache(64)
def _bar(scale: ColourScale) -> UInt8[np.ndarray, "line _ 3"]:
    """Return the colours of a scale between the values of the map at which they begin and end."""
    low, high = (_text(words) for words in _ends(scale))
    strength = np.linspace(0, 1, _BAR_WIDTH, dtype=np.float32)[None]
    bar = np.full((_LINE, _BAR_WIDTH + _SPACE, 3), _PAPER, np.uint8)
    top = (_LINE - _BAR_HEIGHT) // 2
    colours = blended(np.full((1, _BAR_WIDTH, 3), _MIDDLE, np.uint8), strength)
    bar[top : top + _BAR_HEIGHT, _SPACE // 2 : -_SPACE // 2] = colours
    return np.concatenate([low, bar, high], axis=1)


def _ends(scale: ColourScale) -> tuple[str, str]:
    low, high = _told_apart(scale.low, scale.high)
    return f"map {low}", high
