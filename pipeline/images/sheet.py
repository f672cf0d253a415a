"""A contact sheet: many small pictures on one PNG, each with its heatmap and a caption."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

# All in pixels: the side of a picture, the space around it, and a line of the caption.
SIDE = 256
_GAP, _LINE, _LETTERS = 12, 18, 13
# Beyond these the sheet would have more pixels than many a viewer opens.
MOST = 200
_PAPER, _FIELD, _INK, _FAINT = (28, 28, 28), (44, 44, 44), (240, 240, 240), (170, 170, 170)
_CUT = "…"


@dataclass(frozen=True)
class Tile:
    """One image: its JPEGs, as far as there are any, and what stands below them."""

    photo: bytes | None
    heatmap: bytes | None
    caption: Sequence[str]
    # What stands in the place of a picture that is not there.
    instead: str = ""
    # (width, height) of what is shown of the heatmap, in its pixels: without the strip below it.
    shown: tuple[int, int] | None = None


def contact_sheet(tiles: Sequence[Tile]) -> bytes:
    """Return a PNG with all tiles, from the left to the right and then down.

    Where no tile has a photo, or none a heatmap, there is no place for it. Equal tiles give equal
    bytes, with one version of Pillow.

    Args:
        tiles: From 1 to `MOST`; of our own JPEGs, as they are decoded here.

    Raises:
        ValueError: if there are none, or too many.
    """
    if not 0 < len(tiles) <= MOST:
        raise ValueError(f"a contact sheet has 1 to {MOST} images, not {len(tiles)}")
    places = [
        name for name in ("photo", "heatmap") if any(getattr(tile, name) for tile in tiles)
    ] or ["photo"]
    lines = max(len(tile.caption) for tile in tiles)
    width = len(places) * SIDE + _GAP
    height = SIDE + lines * _LINE + _GAP
    # About as wide as it is high.
    columns = min(len(tiles), max(1, round(math.sqrt(len(tiles) * height / width))))
    rows = math.ceil(len(tiles) / columns)
    sheet = _Sheet.of(columns * width + _GAP, rows * height + _GAP)
    for number, tile in enumerate(tiles):
        left = _GAP + number % columns * width
        top = _GAP + number // columns * height
        for at, name in enumerate(places):
            crop = tile.shown if name == "heatmap" else None
            sheet.paste((left + at * SIDE, top), getattr(tile, name), crop)
        if getattr(tile, places[0]) is None:
            sheet.write((left + 4, top + 4), tile.instead, _FAINT, SIDE - 8)
        for line, text in enumerate(tile.caption):
            ink = _FAINT if line else _INK
            sheet.write((left, top + SIDE + 2 + line * _LINE), text, ink, len(places) * SIDE)
    sink = io.BytesIO()
    sheet.image.save(sink, "PNG")
    return sink.getvalue()


@dataclass(frozen=True)
class _Sheet:
    image: Image.Image
    draw: ImageDraw.ImageDraw

    @classmethod
    def of(cls, width: int, height: int) -> "_Sheet":
        image = Image.new("RGB", (width, height), _PAPER)
        return cls(image, ImageDraw.Draw(image))

    def paste(self, at: tuple[int, int], jpeg: bytes | None, crop: tuple[int, int] | None) -> None:
        """Draw a picture into the middle of its field, or as much of it as is asked for."""
        self.draw.rectangle((*at, at[0] + SIDE - 1, at[1] + SIDE - 1), fill=_FIELD)
        if jpeg is None:
            return
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
            small = picture.convert("RGB").crop((0, 0, *(crop or picture.size)))
        small.thumbnail((SIDE, SIDE))
        left, top = (SIDE - small.width) // 2, (SIDE - small.height) // 2
        self.image.paste(small, (at[0] + left, at[1] + top))

    def write(self, at: tuple[int, int], text: str, ink: tuple[int, int, int], width: int) -> None:
        """Write a line, cut to a width."""
        font = ImageFont.load_default(_LETTERS)
        self.draw.text(at, fitted(text, font, width), ink, font)


def fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return a text that is no wider than so many pixels: of a long one, its two ends."""
    # No text of so many letters is narrower.
    most = 4 * max(1, width)
    if len(text) > most:
        text = f"{text[: most // 2]}{text[-most // 2 :]}"
    if font.getlength(text) <= width:
        return text
    kept = len(text)
    while kept > 1 and font.getlength(_shortened(text, kept)) > width:
        kept -= 1
    return _shortened(text, kept)


def _shortened(text: str, kept: int) -> str:
    # The end of a path says more than its beginning.
    head = kept // 3
    return f"{text[:head]}{_CUT}{text[len(text) - (kept - head) :]}"
