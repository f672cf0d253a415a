"""Masks as other people draw them: what is not background is defect, and none is lost."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from scipy import ndimage

from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.images import edges
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.images.masks import decode_mask

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


def _deep_png(samples: np.ndarray) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    height, width, channels = samples.shape
    colour_type = {2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def _deep_tiff(samples: np.ndarray, order: str, photometric: int = 2, **forms: bool) -> bytes:
    height, width, channels = samples.shape
    stored = samples.astype(order + "u2")
    planes = [stored[..., i] for i in range(channels)] if forms.get("planar") else [stored]
    strips = [plane.tobytes() for plane in planes]
    if forms.get("packed"):
        strips = [zlib.compress(strip) for strip in strips]
    begins = np.cumsum([8, *(len(strip) for strip in strips)])
    tags = [(256, [width]), (257, [height]), (258, [16] * channels),
            (259, [8 if forms.get("packed") else 1]), (262, [photometric]),
            (273, begins[:-1]), (277, [channels]), (278, [height]),
            (279, [len(strip) for strip in strips]), (284, [2 if len(strips) > 1 else 1]),
            *([(338, [2])] if photometric == 2 and channels == 4 else [])]  # fmt: skip
    blob, entries = b"".join(strips), b""
    for tag, values in tags:
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            place, blob = struct.pack(order + "I", 8 + len(blob)), blob + packed
        else:
            place = packed
        entries += struct.pack(order + "HHI", tag, 4, len(values)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(blob))
    return head + blob + struct.pack(order + "H", len(tags)) + entries + bytes(4)


def _deep(ids: np.ndarray, channels: int) -> np.ndarray:
    """Ids in the first channel; the last of 2 and 4 is opaque where they are."""
    samples = np.zeros((*ids.shape, channels), np.uint16)
    samples[..., 0] = ids
    if channels % 2 == 0:
        samples[..., -1] = np.where(ids > 0, 65535, 0)
    return samples


BLACK = (0, 0, 0)
WHITE = (255, 255, 255)
CLASSES = DRAWN * 1 + DRAWN * (np.arange(80) > 40)
INSTANCES = np.where(
    DRAWN, 1 + np.arange(80)[None, :] // 2 + 40 * (np.arange(60)[:, None] // 21), 0
)
FAR_IDS = np.where(DRAWN, np.where(np.arange(80) > 40, 65535, 201), 0)
BLACK_ON_HIDDEN_WHITE = np.where(DRAWN[..., None], (0, 65535), (65535, 0))
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
    "palette, black on transparent white": _palette(
        1 - DRAWN, [*BLACK, *WHITE], transparency=1
    ),
    "palette, black on transparent black": _palette(DRAWN, [*BLACK, *BLACK], transparency=0),
    "palette, faint black": _palette(DRAWN, [*BLACK, *BLACK], transparency=bytes([0, 1])),
    "palette, classes and a hidden colour": _palette(
        CLASSES, [*WHITE, 9, 0, 0, 255, 0, 0], transparency=0
    ),
    "palette, two grounds": _palette(
        np.where(DRAWN, 2, np.arange(80) % 2), [*WHITE, *BLACK, 255, 0, 0], transparency=0
    ),
    "palette, hidden whole": _palette(DRAWN, [*BLACK, 255, 0, 0], transparency=bytes(2)),
    "black on transparent white": _layers(BLACK, WHITE, 255, 0),
    "faint black on transparent white": _layers(BLACK, WHITE, 3, 0),
    "red on transparent white": _layers((255, 0, 0), WHITE, 255, 0),
    "grey and alpha, black on transparent white": _encode(
        Image.open(io.BytesIO(_layers(BLACK, WHITE, 255, 0))).convert("LA")
    ),
    "white made transparent": _encode(
        Image.fromarray(np.where(DRAWN, 0, 255).astype(np.uint8)), transparency=255
    ),
    "white of 16 bits made transparent": _encode(
        Image.fromarray(np.where(DRAWN, 0, 65535).astype(np.uint16)), transparency=65535
    ),
    "white colour made transparent": _encode(
        Image.fromarray(np.where(DRAWN[..., None], BLACK, WHITE).astype(np.uint8)),
        transparency=WHITE,
    ),
    "deep grey and alpha, black on transparent white": _deep_png(BLACK_ON_HIDDEN_WHITE),
    **{
        f"PNG of 16 bits, {channels} channels, {name}": _deep_png(_deep(ids, channels))
        for channels in (2, 3, 4)
        for name, ids in (("class 1", DRAWN * 1), ("class 256", DRAWN * 256), ("ids", FAR_IDS))
    },
    **{
        f"TIFF of 16 bits {order}, {channels} channels, {forms}": _deep_tiff(
            _deep(FAR_IDS, channels), order, **forms
        )
        for order in "<>"
        for channels in (3, 4)
        for forms in ({}, {"packed": True}, {"planar": True})
    },
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
    "transparent white": _encode(Image.new("RGBA", (8, 6), (255, 255, 255, 0))),
    "palette, transparent white": _encode(
        Image.fromarray(np.zeros((6, 8), np.uint8)).convert("P"), transparency=0
    ),
    "colour of 16 bits": _deep_png(np.zeros((6, 8, 3), np.uint16)),
    "float": _encode(Image.new("F", (8, 6)), "TIFF"),
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


def _labelled(pieces: np.ndarray) -> np.ndarray:
    return ndimage.label(pieces, np.ones((3, 3)))[0].astype(np.uint16)


GRID = np.zeros((400, 400), bool)
GRID[10::38, 10::38] = True
TALL = np.kron(np.arange(1, 101).reshape(10, 10), np.ones((5, 5), int))
SMALL = {
    "scratches": _labelled(np.broadcast_to(np.arange(400)[:, None] % 9 == 4, (400, 400))),
    "slanted scratches": _labelled(np.add.outer(np.arange(400), np.arange(400)) % 11 == 3),
    "pores of a pixel": _labelled(GRID),
    "pores of 2x2": _labelled(ndimage.binary_dilation(GRID, np.ones((2, 2)))),
    "crosses": _labelled(ndimage.binary_dilation(GRID)),
    "pores and a large defect": np.maximum(
        _labelled(GRID), np.where(np.arange(400) > 350, 5000, 0)
    ),
    "ids that touch": TALL,
    "ids far apart": _labelled(GRID) * 300,
    "ids of two scratches that cross": np.maximum(
        _labelled(GRID), np.where(np.arange(400) == 200, 150, 0)
    ),
}


@pytest.mark.parametrize("form", SMALL)
def test_ids_of_thin_and_tiny_instances_are_no_soft_edge(form):
    ids = SMALL[form]
    assert len(np.unique(ids)) > 32
    for sample in (np.uint8, np.uint16, np.int32, np.float32):
        if ids.max() > 255 and sample == np.uint8:
            continue
        kind = "TIFF" if sample in (np.int32, np.float32) else "PNG"
        content = _encode(Image.fromarray(ids.astype(sample)), kind)
        mask = decode_mask(content, ids.shape, LIMITS)
        assert np.array_equal(mask.is_defect, ids > 0)


@pytest.mark.parametrize("rows", [1, 7, 400, 10**6])
def test_pieces_are_compared_across_blocks_of_rows(rows, monkeypatch):
    y, x = np.mgrid[:600, :600]
    disc = (y - 300) ** 2 + (x - 250) ** 2 < 150**2
    soft = np.asarray(Image.fromarray((disc * 255).astype(np.uint8)).resize((200, 200)))
    monkeypatch.setattr(edges, "_STRIP_PIXELS", rows * 200)
    assert edges.edge_of(soft, is_lossy=False) == soft.max() / 2
    monkeypatch.setattr(edges, "_STRIP_PIXELS", rows * 400)
    assert edges.edge_of(SMALL["slanted scratches"], is_lossy=False) == 0


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("side", [120, 900])
def test_thin_lines_of_a_resized_mask_are_soft(side, resample):
    drawn = Image.new("L", (480, 480))
    pen = ImageDraw.Draw(drawn)
    for i in range(20):
        pen.line((7 * i, 0, 479, 24 * i + 5), 255, 1 + i % 7)
    soft = np.asarray(drawn.resize((side, side), resample))
    assert len(np.unique(soft)) > 32
    assert edges.edge_of(soft, is_lossy=False) == soft.max() / 2


LOSSY = [{"kind": "JPEG", "quality": quality} for quality in (10, 50, 75, 95)] + [
    {"kind": "WEBP", "quality": 50}
]


@pytest.mark.parametrize("kind", LOSSY, ids=str)
@pytest.mark.parametrize("level", [70, 100, 128, 200])
def test_a_lossy_mask_of_two_classes_keeps_both(kind, level):
    drawn = np.zeros((256, 320), np.uint8)
    drawn[40:100, 60:150] = 255
    drawn[150:190, 101:171] = level
    mask = decode_mask(_encode(Image.fromarray(drawn), **kind), drawn.shape, LIMITS)
    assert (mask.is_defect != (drawn > 0)).sum() <= 40
    # Colours have blocks of twice the side.
    drawn[125:205, 101:211] = level
    layers = [Image.fromarray(np.where(drawn == level, part, drawn)) for part in (0, level, 0)]
    green = Image.merge("RGB", layers)
    mask = decode_mask(_encode(green, **kind), drawn.shape, LIMITS)
    assert (mask.is_defect != (drawn > 0)).sum() <= 80


@pytest.mark.parametrize("kind", [{"kind": "JPEG", "quality": q} for q in (1, 5, 20, 75)], ids=str)
@pytest.mark.parametrize("step", [3, 8, 12, 17, 40])
def test_the_grey_of_a_lossy_binary_mask_is_no_class(kind, step):
    drawn = np.zeros((256, 256), np.uint8)
    drawn[40:, 40:] = np.where(np.add.outer(np.arange(216), np.arange(216) // 2) % step < 2, 255, 0)
    read = np.asarray(Image.open(io.BytesIO(_encode(Image.fromarray(drawn), **kind))))
    assert edges.edge_of(read, is_lossy=True) > read.max() * 0.45


def test_a_lossy_mask_on_a_grey_ground_has_no_class_of_it():
    drawn = np.full((128, 128), 90, np.uint8)
    drawn[40:80, 40:80] = 255
    mask = decode_mask(_encode(Image.fromarray(drawn), "JPEG"), drawn.shape, LIMITS)
    assert np.array_equal(mask.is_defect, drawn > 90)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("share", [1, 7])
def test_a_mask_that_is_not_finite_is_unreadable(odd, share):
    pixels = np.zeros((6, 7), np.float32)
    pixels.flat[::share] = odd
    with pytest.raises(ImageError, match="finite") as raised:
        decode_mask(_encode(Image.fromarray(pixels), "TIFF"), (6, 7), LIMITS)
    assert raised.value.status == "unreadable"


@pytest.mark.parametrize("lowest", [-1, -40])
@pytest.mark.parametrize("sample", [np.float32, np.int32])
@pytest.mark.parametrize("highest", [-1, 0, 1])
def test_a_mask_of_negative_values_is_refused_by_name(lowest, highest, sample):
    pixels = np.linspace(lowest, highest, 400).reshape(20, 20).astype(sample)
    with pytest.raises(ImageError, match=f"values from {lowest}") as raised:
        decode_mask(_encode(Image.fromarray(pixels), "TIFF"), (20, 20), LIMITS)
    assert raised.value.status == "unsupported"


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_form_of_16_bit_colour_that_cannot_be_read_is_refused_with_what_to_do(order):
    inks = np.full((4, 4, 4), 1, np.uint16)
    with pytest.raises(ImageError, match="with 8 bits a channel") as raised:
        decode_mask(_deep_tiff(inks, order, 5), (4, 4), LIMITS)
    assert raised.value.status == "unsupported"
    assert "image.bits" not in str(raised.value)


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
