"""sheet: many small pictures on one."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFont

from patchlake.pipeline.images.sheet import MOST, SIDE, Tile, contact_sheet, fitted


def _jpeg(colour: tuple[int, int, int], width: int = SIDE, height: int = SIDE) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image).astype(int)


RED, BLUE = _jpeg((250, 0, 0)), _jpeg((0, 0, 250))


def _area(pixels: np.ndarray, channel: int) -> int:
    others = [c for c in range(3) if c != channel]
    return int(((pixels[..., channel] > 200) & (pixels[..., others].max(-1) < 60)).sum())


def test_photo_and_heatmap_stand_side_by_side_and_equal_tiles_give_equal_bytes() -> None:
    tiles = [Tile(RED, BLUE, ("1  a.png", "score 1")) for _ in range(5)]
    sheet = contact_sheet(tiles)
    assert sheet == contact_sheet(tiles)
    pixels = _pixels(sheet)
    assert _area(pixels, 0) == _area(pixels, 2) == 5 * SIDE * SIDE
    reds = np.flatnonzero((pixels[..., 0] > 200).any(0) & (pixels[..., 2] < 60).any(0))
    blues = np.flatnonzero((pixels[..., 2] > 200).any(0))
    assert reds.min() < blues.min()


def test_what_no_tile_has_gets_no_place() -> None:
    both = _pixels(contact_sheet([Tile(RED, BLUE, ("a",))]))
    photo, heatmap = (
        _pixels(contact_sheet([t])) for t in (Tile(RED, None, ("a",)), Tile(None, BLUE, ("a",)))
    )
    assert photo.shape == heatmap.shape
    assert both.shape[1] - photo.shape[1] == SIDE
    assert (_area(photo, 0), _area(heatmap, 2)) == (SIDE * SIDE, SIDE * SIDE)
    nothing = _pixels(contact_sheet([Tile(None, None, ("a",), "the images are not there")]))
    assert nothing.shape == photo.shape
    assert nothing[:SIDE].max() > 150  # it says why


def test_pictures_of_any_shape_lie_in_their_field() -> None:
    tiles = [
        Tile(_jpeg((250, 0, 0), 40, 20), None, ("a",)),
        Tile(_jpeg((250, 0, 0), 9, 500), None, ("b",)),
    ]
    assert _area(_pixels(contact_sheet(tiles)), 0) == pytest.approx(40 * 20 + 5 * SIDE, abs=SIDE)


def test_there_is_room_for_some() -> None:
    for count in (0, MOST + 1):
        with pytest.raises(ValueError, match=f"not {count}"):
            contact_sheet([Tile(None, None, ("a",))] * count)


def test_a_long_name_keeps_its_ends() -> None:
    font = ImageFont.load_default(13)
    name = f"line-7/{'very/' * 2000}long/0001.png"
    cut = fitted(name, font, 200)
    assert cut.startswith("line-7/")
    assert cut.endswith("/0001.png")
    assert "…" in cut
    assert font.getlength(cut) <= 200
    assert fitted("0001.png", font, 200) == "0001.png"
    assert font.getlength(fitted("W" * 40, font, 5)) <= 13 * 2
