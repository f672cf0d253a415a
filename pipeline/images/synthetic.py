"""Seeded photographs of two synthetic products, with defects and exact masks.

A product is painted as a `Surface`, a defect changes that surface, and the flawed and the flawless
one are lit and photographed alike. The mask is where the two photographs differ visibly, so
shadows, burrs and halos are in it without being drawn. Lengths and heights (towards the camera)
are in pixels; light is linear, 1 = white paper.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy import ndimage

Field = npt.NDArray[np.float64]  # (SIDE, SIDE), with a last axis of 3 for colour; a spot is y, x
Pixels = npt.NDArray[np.uint8]
Stream = Callable[[str], Generator]  # the same numbers at each call with the same purpose

SIDE = 256
DEFECTS = {
    "brushed_plate": ("scratch", "dent", "stain"),
    "woven_cloth": ("hole", "missing_thread", "foreign_fibre"),
}
_X: Field = np.tile(np.arange(SIDE, dtype=np.float64), (SIDE, 1))
_Y: Field = _X.T.copy()
_FIBRE_DYES = [[0.4, 0.02, 0.02], [0.01, 0.01, 0.01], [0.8, 0.8, 0.75], [0.45, 0.3, 0.03]]
_YARNS = 64  # more than SIDE / pitch, so no yarn occurs twice in an image


@dataclass(frozen=True)
class Surface:
    """What lies before the camera: reflectance 0..1 of shape (SIDE, SIDE, 3), and height."""

    colour: Field
    relief: Field


@dataclass(frozen=True)
class Shot:
    """One RGB exposure, the same without the defect, and 255 where they differ visibly, else 0."""

    image: Pixels
    good_twin: Pixels
    defect_mask: Pixels


def write_products(  # noqa: PLR0913 - how many of each, and how
    root: Path,
    *,
    seed: int = 0,
    train: int = 60,
    good: int = 20,
    defects: int = 12,
    processes: int = 1,
) -> list[str]:
    """Write both products below `root` in the MVTec layout and return their names.

    Each product has `train` and `good` images without a defect, and `defects` images with a mask
    for each of its types. An image depends on `seed` (0 or more) and its own path only, never on
    the counts or the number of processes. Files of the same name are overwritten.
    """
    places = []
    for product, kinds in DEFECTS.items():
        counts = {"train/good": train, "test/good": good} | {f"test/{k}": defects for k in kinds}
        places += [(f"{product}/{f}", n) for f, count in counts.items() for n in range(count)]
    write = partial(_write_shot, root, seed)
    if processes == 1:
        for place in places:
            write(place)
    else:
        # An image takes a tenth of a second of a core. Spawned processes inherit no thread.
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            list(pool.map(write, places, chunksize=4))
    return list(DEFECTS)


def _write_shot(root: Path, seed: int, place: tuple[str, int]) -> None:
    folder, number = place
    shot = photograph(seed, folder, number)
    files = {f"{folder}/{number:03d}.png": shot.image}
    if not folder.endswith("/good"):
        mask = f"{folder}/{number:03d}_mask.png".replace("/test/", "/ground_truth/")
        files[mask] = shot.defect_mask
    for name, pixels in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=3)


def photograph(seed: int, folder: str, number: int) -> Shot:
    """Return an image of "PRODUCT/SPLIT/TYPE", its good twin and its mask."""
    product, _, kind = folder.split("/")

    def stream(purpose: str) -> Generator:
        # Made anew for the twin, which must see the same numbers however many the defect drew.
        return np.random.default_rng([seed, number, *f"{folder}/{purpose}".encode()])

    paint = {"brushed_plate": _brushed_plate, "woven_cloth": _woven_cloth}[product]
    twin = _expose(paint("good", stream), stream("camera"))
    image = twin if kind == "good" else _expose(paint(kind, stream), stream("camera"))
    return Shot(image, twin, _visible_difference(image, twin))


def _expose(light: Field, rng: Generator) -> Pixels:
    """Return the photograph: white balance, vignette, lens blur, tone curve, noise."""
    balance = 1.1 * rng.normal(1.0, 0.04) * rng.normal(1.0, 0.012, 3)
    vignette = 1 - rng.uniform(0.04, 0.1) * np.hypot(_X / 128 - 1, _Y / 128 - 1)[..., None] ** 2
    seen = ndimage.gaussian_filter(light, rng.uniform(0.4, 0.6), axes=(0, 1)) * vignette * balance
    # A shoulder, not a clip: highlights on metal keep their texture.
    encoded: Field = np.tanh(np.maximum(seen, 0)) ** (1 / 2.2) + rng.normal(0, 0.011, light.shape)
    return np.clip(np.rint(encoded * 255), 0, 255).astype(np.uint8)


def _visible_difference(image: Pixels, twin: Pixels) -> Pixels:
    change = np.abs(image.astype(np.float64) - twin).max(axis=2) / 255
    # Smoothed and closed: a dent's shading crosses zero in its middle, yet that is dented too.
    change = ndimage.grey_closing(ndimage.gaussian_filter(change, 0.8), size=11)
    limit = min(0.04, 0.25 * float(change.max()))  # ten grey levels, or a quarter of the worst
    return np.where(ndimage.binary_fill_holes(change > limit), 255, 0).astype(np.uint8)


def _noise(rng: Generator, sigma_y: float, sigma_x: float) -> Field:
    """Return Gaussian noise, mean 0 and variance 1, smooth over these lengths."""
    # By Fourier transform: brush marks and folds need sigmas of 30 and more.
    waves = np.fft.rfft2(rng.standard_normal((SIDE, SIDE)))
    smooth: Field = np.fft.irfft2(ndimage.fourier_gaussian(waves, (sigma_y, sigma_x), n=SIDE))
    return (smooth - float(smooth.mean())) / float(smooth.std())


def _step(x: Field, width: float) -> Field:
    """Return 0 below -width, 1 above width, smooth between."""
    t: Field = np.clip(x / (2 * width) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _over(below: Field, above: Field, alpha: Field) -> Field:
    return below + (above - below) * (alpha if alpha.ndim == below.ndim else alpha[..., None])


def _posed(rng: Generator, turn_deg: float, shift: float) -> tuple[Field, Field]:
    """Return product coordinates of every pixel: v down, u right, 0 near the image's middle."""
    turn, (dy, dx) = np.deg2rad(rng.normal(0, turn_deg)), rng.normal(SIDE / 2, shift, 2)
    y, x = _Y - dy, _X - dx
    return y * np.cos(turn) - x * np.sin(turn), x * np.cos(turn) + y * np.sin(turn)


def _blob(spot: Field, radius: float, rng: Generator, ragged: float) -> Field:
    """Return the depth inside an irregular ellipse: about `radius` at the spot, 0 on its edge."""
    angle, squash = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
    y, x = _Y - spot[0], _X - spot[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    outline = np.maximum(1 + ragged * _noise(rng, radius / 2.5, radius / 2.5), 0.7)
    depth: Field = radius * outline - np.hypot(along, across / squash)
    return depth


def _walk(spot: Field, length: float, bend: float, rng: Generator) -> Field:
    """Return a random path around the spot, (points, 2) of y, x; bend in radians per step."""
    turns = rng.normal(rng.normal(0, bend / 8), bend, int(length))
    heading = rng.uniform(0, 2 * np.pi) + ndimage.gaussian_filter1d(np.cumsum(turns), 3)
    path: Field = np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=0)
    path += spot - path.mean(axis=0)
    return path


def _stroke(paths: list[Field], widths: list[Field]) -> Field:
    """Return coverage 0..1 of lines with one width for each point."""
    canvas = Image.new("L", (SIDE * 4, SIDE * 4))  # a quarter pixel is the thinnest fibre
    draw = ImageDraw.Draw(canvas)
    for path, width in zip(paths, widths, strict=True):
        ends = (4 * path[:, ::-1] + 2).tolist()
        for start, end, wide in zip(ends, ends[1:], width, strict=False):
            draw.line([*start, *end], fill=255, width=max(round(4 * wide), 1))
    return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64) / 255


def _brushed_plate(kind: str, stream: Stream) -> Field:
    """Return the light from a drilled steel plate on a felt bench."""
    rng, mark = stream("product"), stream("defect")
    v, u = _posed(rng, turn_deg=1.2, shift=2.0)
    edge = 16 - np.hypot(np.maximum(np.abs(u) - 88, 0), np.maximum(np.abs(v) - 74, 0))
    bores = [(y, x, 8) for y in (-70, 70) for x in (-84, 84)]  # v, u, radius
    bores += [(0, 0, 27), (0, -62, 11), (0, 62, 11)]
    inside = np.min([edge, *(np.hypot(v - y, u - x) - r for y, x, r in bores)], axis=0)
    brush = 0.7 * _noise(rng, 0.6, 30) + 0.5 * _noise(rng, 1.5, 60) + 0.4 * _noise(rng, 0.5, 5)
    brush = ndimage.map_coordinates(brush, [v + 128, u + 128], order=1, mode="grid-wrap")
    steel = (1 + 0.13 * brush)[..., None] * np.array([0.56, 0.57, 0.59])
    felt = 0.05 * (1 + 0.25 * _noise(rng, 0.8, 0.8) + 0.12 * _noise(rng, 30, 30))
    shadow = ndimage.shift(_step(ndimage.gaussian_filter(inside, 2), 6), (5, 4), mode="nearest")
    bench = (felt * (1 - 0.85 * shadow))[..., None] * np.array([0.85, 0.95, 1.15])
    surface = Surface(steel, 0.6 * ndimage.gaussian_filter(np.clip(inside, -1, 3.5), 0.7))
    if kind != "good":
        spoil = {"scratch": _scratch, "dent": _dent, "stain": _stain}[kind]
        surface = spoil(surface, mark.choice(np.argwhere(inside - 3 > 0)).astype(np.float64), mark)
    dy, dx = np.gradient(surface.relief)
    centre, width, tilt = stream("light").normal([-30, 75, 0], [18, 8, 0.15])
    # Steel mirrors a lamp; a slope turns the ray by twice its angle, some 150 px of lamp per unit.
    across = (_X - 128 + tilt * (_Y - 128) - centre + 150 * dx) / width
    lamp = 0.18 + 0.65 * np.exp(-(across**2)) + 0.3 * np.exp(-(((_Y + 190 * dy) / 140) ** 2))
    return _over(bench, surface.colour * lamp[..., None], _step(inside, 0.7))


def _scratch(surface: Surface, spot: Field, rng: Generator) -> Surface:
    path = _walk(spot, rng.uniform(30, 130), 0.03, rng)
    fade = np.sin(np.linspace(0.15, np.pi - 0.1, len(path)))
    skips = 0.9 + 2 * ndimage.gaussian_filter1d(rng.normal(0, 1, len(path)), 4)
    line = _stroke([path], [rng.uniform(1.4, 3.0) * fade * np.clip(skips, 0.3, 1.3)])
    groove = line - 0.9 * ndimage.gaussian_filter(line, 1.5)  # metal is pushed up on both sides
    glint = 1 + rng.uniform(0.5, 1.1) * line[..., None]
    return Surface(surface.colour * glint, surface.relief - rng.uniform(0.7, 2.0) * groove)


def _dent(surface: Surface, spot: Field, rng: Generator) -> Surface:
    radius = rng.uniform(9, 25)
    depth = _blob(spot, radius, rng, 0.12) / radius
    bowl, rim = _step(depth - 0.35, 0.65), 0.15 * np.exp(-((depth / 0.3) ** 2))
    press = rng.uniform(0.14, 0.34) * radius * (bowl - rim)
    return Surface(surface.colour * (1 - 0.15 * bowl[..., None]), surface.relief - press)


def _stain(surface: Surface, spot: Field, rng: Generator) -> Surface:
    radius = rng.uniform(7, 26)
    depth = _blob(spot, radius, rng, 0.22)
    for drop in spot + rng.normal(0, radius, (rng.integers(0, 4), 2)):
        depth = np.maximum(depth, _blob(drop, radius * rng.uniform(0.1, 0.35), rng, 0.15))
    dried_rim = 0.8 + 0.3 * np.exp(-(((depth - 2) / 2) ** 2))
    film = _step(depth, 1.5) * dried_rim * (1 + 0.12 * _noise(rng, 5, 5))
    # Oil fills the brush marks, so the streaks under it blur as well as darken.
    wet = ndimage.gaussian_filter(surface.colour, (1.2, 0, 0))
    tint = 1 - rng.uniform(0.25, 0.75) * np.array([0.72, 0.86, 1.0])
    return Surface(_over(surface.colour, wet * tint, np.clip(film, 0, 1)), surface.relief)


def _woven_cloth(kind: str, stream: Stream) -> Field:
    """Return the light from a 2/2 twill of blue warp and cream weft, on a dark table."""
    rng, mark = stream("product"), stream("defect")
    v, u = _posed(rng, turn_deg=1.5, shift=4.0)
    pitch = 9.0 * rng.normal(1, 0.015)
    v, u = ((c + 1.3 * _noise(rng, 35, 35) + 0.35 * _noise(rng, 9, 9)) / pitch for c in (v, u))
    dyes = np.array([[0.08, 0.14, 0.25], [0.60, 0.55, 0.46]]) * rng.normal(1, 0.05, (2, 1))
    up, warp = _yarns(u, v, dyes[0], rng)
    down, weft = _yarns(v, u, dyes[1], rng)
    spot = mark.uniform(12, SIDE - 12, 2)
    cuts = {"hole": _torn, "missing_thread": _missing}
    no_warp, no_weft = cuts[kind](v, u, spot, mark) if kind in cuts else np.zeros((2, SIDE, SIDE))
    # Every yarn goes over two and under two, and lies slack where the other set is gone.
    up += 0.9 * np.cos(np.pi / 2 * (v - np.round(u) - 0.5)) - no_weft - 12 * no_warp
    down -= 0.9 * np.cos(np.pi / 2 * (np.round(v) - u - 0.5)) + no_warp + 12 * no_weft
    relief = np.maximum(np.maximum(up, down), -5)
    table = _step(-4 - relief, 0.8)
    colour = _over(weft, warp, _step(up - down, 0.6)) * (1 - 0.97 * table[..., None])
    cloth = Surface(colour, relief)
    if kind == "foreign_fibre":
        fibre = _walk(spot, mark.uniform(40, 150), 0.09, mark)
        cloth = _lay(cloth, [fibre], mark.uniform(1.1, 2.6), mark.choice(_FIBRE_DYES))
    if kind == "hole":
        rim = np.argwhere(ndimage.morphological_gradient(table, 3) > 0).astype(np.float64)
        ends = [_walk(p, mark.uniform(8, 24), 0.15, mark) for p in mark.choice(rim, 14)]
        cloth = _lay(cloth, ends, mark.uniform(0.3, 0.8), dyes[1])
    return _window_light(cloth, stream("light"))


def _yarns(across: Field, along: Field, dye: Field, rng: Generator) -> tuple[Field, Field]:
    """Return height and colour of parallel yarns at whole values of `across`; both in pitches."""
    row = np.round(across).astype(int) % _YARNS
    column = np.clip(np.round(along * 4 + 128), 0, SIDE - 1).astype(int)
    slub = 6 * ndimage.gaussian_filter1d(rng.normal(0, 1, (_YARNS, SIDE)), 10)[row, column]
    aside, thick, tone = rng.normal(0, 1, (3, _YARNS))[:, row]
    offset = across - np.round(across) - 0.03 * aside
    radius = 0.5 * (1 + 0.05 * thick + 0.05 * slub)
    twist = np.sin(2 * np.pi * (along * 1.9 + offset * 1.5 + 0.2 * thick))
    shade = 1 + 0.10 * twist + 0.09 * _noise(rng, 0.7, 0.7) + 0.08 * tone + 0.06 * slub
    return 2.6 * (1 - (offset / radius) ** 2), dye * shade[..., None]


def _torn(v: Field, u: Field, spot: Field, rng: Generator) -> Field:
    """Return where warp and weft are torn away, 0..1; every yarn ends at its own length."""
    radius = rng.uniform(10, 30)
    depth = _blob(spot, radius, rng, 0.2)
    ends = rng.uniform(-0.15, 0.5, (2, _YARNS, 2)) * radius
    row, column = np.round(v).astype(int) % _YARNS, np.round(u).astype(int) % _YARNS
    below, right = (spot[0] < _Y).astype(int), (spot[1] < _X).astype(int)
    return _step(depth - np.stack([ends[0, column, below], ends[1, row, right]]), 1.0)


def _missing(v: Field, u: Field, spot: Field, rng: Generator) -> Field:
    """Return where warp and weft are missing, 0..1: one yarn, for part of its length."""
    is_weft = bool(rng.integers(2))
    across, along = (v, u) if is_weft else (u, v)
    y, x = spot.astype(int)
    length = _step(rng.uniform(3, 14) - np.abs(along - along[y, x]), 0.2)
    gone = length * (np.round(across) == np.round(across[y, x]))
    return np.stack([gone * (not is_weft), gone * is_weft])


def _lay(surface: Surface, paths: list[Field], width: float, dye: Field) -> Surface:
    """Return the surface with fibres on it and their shadow beside them."""
    line = _stroke(paths, [np.full(len(path), width) for path in paths])
    shade = ndimage.shift(ndimage.gaussian_filter(line, 1.2), (2, 1.5))
    shaded = surface.colour * (1 - 0.6 * np.clip(shade, 0, 1))[..., None]
    lifted = 3 + 2 * ndimage.gaussian_filter(line, 0.8)
    return Surface(_over(shaded, dye, line), _over(surface.relief, lifted, line))


def _window_light(surface: Surface, rng: Generator) -> Field:
    """Return the light from matt cloth: a window to the upper left, less between the yarns."""
    dy, dx = np.gradient(ndimage.gaussian_filter(surface.relief, 0.5))
    angle = rng.normal(0.9, 0.1)
    direct = (1 + 0.9 * (dx * np.cos(angle) + dy * np.sin(angle))) / np.sqrt(1 + dx**2 + dy**2)
    hollow = ndimage.gaussian_filter(surface.relief, 5) - surface.relief
    slope_y, slope_x = rng.normal(-0.0012, 0.0006, 2)
    lamp = 1 + slope_y * (_Y - 128) + slope_x * (_X - 128) + 0.05 * _noise(rng, 40, 28)
    light: Field = lamp * (0.35 + 0.65 * np.maximum(direct, 0.05)) * np.maximum(1 - hollow / 6, 0.2)
    return surface.colour * light[..., None]
