"""Masks as other people draw them: what is not background is defect, and none is lost."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image
from scipy import ndimage

from pipeline.errors import ImageError
from pipeline.images.formats import Limits
from pipeline.images.masks import decode_mask

LIMITS = Limits(max_pixels=10**7)
DRAWN = np.zeros((60, 80), bool)
DRAWN[20:30, 30:50] = True
DRAWN[40:44, 10:13] = True


def _encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def _grey(value: int, dtype: type = np.uint8, **options: str) -> bytes:
    kind = options.pop("kind", "PNG")
    return _encode(Image.fromarray((DRAWN * value).astype(dtype)), kind, **options)


def _palette(indexes: np.ndarray, colours: list[int], **options: object) -> bytes:
    image = Image.fromarray(indexes.astype(np.uint8)).convert("P")
    image.putdata(indexes.ravel().tolist())
    image.putpalette(colours + [0] * (768 - len(colours)))
    return _encode(image, **options)


def _layers(colour: tuple[int, int, int], ground: tuple[int, ...], inside: int, outside: int):
    pixels = np.empty((*DRAWN.shape, 4), np.uint8)
    pixels[...] = (*ground, outside)
    pixels[DRAWN] = (*colour, inside)
    return _encode(Image.fromarray(pixels))


BLACK = (0, 0, 0)
CLASSES = DRAWN * 1 + DRAWN * (np.arange(80) > 40)
INSTANCES = np.where(
    DRAWN, 1 + np.arange(80)[None, :] // 2 + 40 * (np.arange(60)[:, None] // 21), 0
)
RED = np.where(DRAWN[..., None], (255, 0, 0), 0).astype(np.uint8)
FORMS = {
    "0 and 255": _grey(255),
    "0 and 1": _grey(1),
    "class 100": _grey(100),
    "classes 1 and 2": _encode(Image.fromarray(CLASSES.astype(np.uint8))),
    "40 instances": _encode(Image.fromarray(INSTANCES.astype(np.uint8))),
    "1 bit": _encode(Image.fromarray(DRAWN)),
    "16 bits, 1": _grey(1, np.uint16),
    "16 bits, 255": _grey(255, np.uint16),
    "16 bits, full": _grey(65535, np.uint16),
    "16 bits, TIFF": _grey(300, np.uint16, kind="TIFF"),
    "32 bits": _grey(70_000, np.int32, kind="TIFF"),
    "float": _grey(1, np.float32, kind="TIFF"),
    "PGM of 3": b"P5 80 60 3\n" + (DRAWN * 2).astype(np.uint8).tobytes(),
    "PGM of 65535": b"P5 80 60 65535\n" + (DRAWN * 1).astype(">u2").tobytes(),
    "BMP": _grey(255, kind="BMP"),
    "red": _encode(Image.fromarray(RED)),
    "dark blue": _encode(Image.fromarray(RED[..., ::-1] // 128)),
    "palette, dark red": _palette(CLASSES, [0, 0, 0, 128, 0, 0, 0, 1, 0]),
    "palette of greys": _palette(CLASSES, [0, 0, 0, 1, 1, 1, 2, 2, 2]),
    "palette, never set": _palette(CLASSES, []),
    "palette, white first": _palette(1 - DRAWN, [255, 255, 255, 0, 0, 0]),
    "palette without black": _palette(CLASSES, [90, 90, 90, 255, 0, 0, 0, 255, 0]),
    "palette, transparent ground": _palette(CLASSES, [255, 255, 255, 9, 0, 0, 9, 9, 0],
                                            transparency=0),
    "alpha alone": _layers(BLACK, BLACK, 255, 0),
    "faint alpha alone": _layers(BLACK, BLACK, 1, 0),
    "red on transparent": _layers((255, 0, 0), (255, 0, 0), 255, 0),
    "faint red": _layers((1, 0, 0), BLACK, 3, 0),
    "opaque layers": _layers((255, 255, 255), BLACK, 255, 255),
    "alpha never set": _layers((255, 0, 0), BLACK, 0, 0),
    "grey and alpha": _encode(Image.open(io.BytesIO(_layers((9, 9, 9), BLACK, 255, 0)))
                              .convert("LA")),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_whatever_is_not_background_is_defect(form):
    mask = decode_mask(FORMS[form], DRAWN.shape, LIMITS)
    assert mask.size == (80, 60)
    assert np.array_equal(mask.is_defect, DRAWN)


EMPTY = {
    "grey": _encode(Image.new("L", (8, 6))),
    "16 bits": _encode(Image.new("I;16", (8, 6))),
    "palette": _encode(Image.new("P", (8, 6))),
    "palette, black is not first": _palette(np.full((6, 8), 3), [9] * 9),
    "colour": _encode(Image.new("RGB", (8, 6))),
    "opaque": _encode(Image.new("RGBA", (8, 6), (0, 0, 0, 255))),
    "transparent": _encode(Image.new("RGBA", (8, 6), (0, 0, 0, 0))),
}


@pytest.mark.parametrize("form", EMPTY)
def test_a_mask_of_background_is_empty(form):
    assert decode_mask(EMPTY[form], (16, 16), LIMITS).is_empty


@pytest.mark.parametrize("kind", [{"kind": "JPEG", "quality": 75}, {"kind": "WEBP", "quality": 50}])
def test_the_ringing_of_a_lossy_mask_is_no_defect(kind):
    pixels = Image.fromarray((DRAWN * 255).astype(np.uint8))
    mask = decode_mask(_encode(pixels, **kind), DRAWN.shape, LIMITS)
    assert (mask.is_defect != DRAWN).sum() <= 6


def test_a_soft_edge_is_in_the_middle():
    y, x = np.mgrid[:600, :600]
    disc = (y - 300) ** 2 + (x - 250) ** 2 < 150**2
    soft = Image.fromarray((disc * 255).astype(np.uint8)).resize((200, 200))
    assert len(np.unique(np.asarray(soft))) > 32
    for brightest in (255, 200):
        dimmed = soft.point(lambda value, top=brightest: value * top // 255)
        mask = decode_mask(_encode(dimmed), (200, 200), LIMITS)
        assert (mask.is_defect != disc[1::3, 1::3]).sum() <= 20


def test_ids_of_many_instances_are_no_soft_edge():
    ids = np.arange(1, 101).reshape(10, 10)
    spots = np.kron(ids, np.pad(np.ones((5, 5), int), ((0, 3), (0, 3))))
    mask = decode_mask(_encode(Image.fromarray(spots.astype(np.uint8))), (80, 80), LIMITS)
    assert np.array_equal(mask.is_defect, spots > 0)


@pytest.mark.parametrize("place", [(701, 1003), (0, 0), (1535, 2047)])
@pytest.mark.parametrize("side", [1, 4])
def test_a_defect_of_a_few_pixels_is_not_lost_at_the_frame(place, side):
    pixels = np.zeros((1536, 2048), np.uint8)
    pixels[place[0] : place[0] + side, place[1] : place[1] + side] = 255
    pixels[300:600, 300:600] = 255
    found = decode_mask(_encode(Image.fromarray(pixels), compress_level=1), (256, 256), LIMITS)
    y, x = place[0] // 6, place[1] // 8
    assert found.is_defect[y, x]
    others = found.is_defect.copy()
    others[y : y + 2, x : x + 2] = False
    # The large defect is by halves, as without the small one.
    assert np.array_equal(np.argwhere(others)[[0, -1]], [[50, 37], [99, 74]])


@given(arrays(bool, (24, 36)))
def test_every_defect_has_a_pixel_of_the_frame_and_every_pixel_a_defect(drawn):
    content = _encode(Image.fromarray((drawn * 255).astype(np.uint8)))
    found = decode_mask(content, (6, 9), LIMITS).is_defect
    cells = drawn.reshape(6, 4, 9, 4)
    share = cells.mean(axis=(1, 3))
    assert found[share >= 0.5].all()
    assert not found[share == 0].any()
    pieces, count = ndimage.label(share > 0, np.ones((3, 3)))
    for piece in range(1, count + 1):
        assert found[pieces == piece].any()


def test_a_mask_is_turned_as_its_exif_says():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(DRAWN * 255)).astype(np.uint8))
    mask = decode_mask(_encode(stored, exif=exif), DRAWN.shape, LIMITS)
    assert mask.size == (80, 60)
    assert np.array_equal(mask.is_defect, DRAWN)


def test_what_is_no_mask_is_an_image_error():
    for content in (b"text", b"", _grey(1)[:40]):
        with pytest.raises(ImageError):
            decode_mask(content, (4, 4), LIMITS)
