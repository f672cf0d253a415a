r"""What a heatmap costs, from the photo that came with the row to its JPEG, step by step.

    python benchmarks/heatmap.py FOLDER... --side 512

Milliseconds of processor time an image, medians, and bytes. Maps are made up: two smooth spots,
both coloured and outlined.

    hand-over   the photo made in decode, of every image; and what it was before: grey, raw
    photo       decoded in publish
    map         smoothed, at the photo's size
    colour      over the photo
    outlines    found and drawn
    strip       with a score that was not drawn before
    JPEG        encoded
    whole       from the photo to the JPEG, by the calls that a job makes, less the regions
    regions     of anomalous images, pictures or not
    all over    colour all over the photo
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from features import evenly, files_below
from PIL import Image

from patchlake.pipeline.images.files import decode_light
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.images.pictures import photo_pixels, picture_size, small_photo
from patchlake.pipeline.scores.caption import captioned
from patchlake.pipeline.scores.heatmap import ColourScale, outline, overlay, to_jpeg
from patchlake.pipeline.scores.regions import is_marked, regions_of
from patchlake.pipeline.scores.verdict import Judgement
from patchlake.pipeline.stages.examined import Examined

GEOMETRY, SCALE, ALL_OVER = Geometry((224, 224), None), ColourScale(1.5, 2.25), ColourScale(0.5, 3)
PIXEL_THRESHOLD = 1.6

Times = dict[str, list[float]]
_Made = TypeVar("_Made")


def main() -> None:
    """Parse, and print one line a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=12, help="images of a folder, evenly spread")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, help="images are resized to a square of it first")
    arguments = parser.parse_args()
    for folder in arguments.folders:
        times: Times = defaultdict(list)
        sizes = []
        for path in evenly(files_below(folder), arguments.count):
            image, _ = decode_light(path.read_bytes(), Limits(), ())
            if arguments.side:
                image = image.resize((arguments.side, arguments.side), Image.Resampling.BICUBIC)
            sizes += [step_by_step(image, number, times) for number in range(arguments.rounds)]
        photo, picture, grey = (int(value) for value in np.mean(sizes, axis=0))
        print(f"{folder}: the last of {image.size}, {image.mode}; bytes of a photo {photo}, where")
        print(f"  they were {grey}, and of a picture {picture}; ms:")
        print("  " + ", ".join(f"{name} {median(values):.2f}" for name, values in times.items()))


def step_by_step(image: Image.Image, number: int, times: Times) -> tuple[int, int, int]:
    """Add what each step takes; return bytes: of the photo, of the picture, of grey pixels."""

    def timed(name: str, make: Callable[[], _Made]) -> _Made:
        began = time.process_time_ns()
        made = make()
        times[name].append((time.process_time_ns() - began) / 1e6)
        return made

    rows, columns = picture_size(*image.size)
    spots = two_spots(number)
    judgement = Judgement(2.5 + 0.001 * len(times["whole"]), 1.9, 0.01, PIXEL_THRESHOLD)
    other = Judgement(3.5 + 0.001 * len(times["whole"]), 1.9, 0.01, PIXEL_THRESHOLD)
    photo = timed("hand-over", lambda: small_photo(image))
    whole = Examined(other, spots, image.size, GEOMETRY)
    timed("whole", lambda: to_jpeg(whole.picture(photo, SCALE)))
    timed("grey before", lambda: as_before(image, columns, rows))
    pixels = timed("photo", lambda: photo_pixels(photo))
    frame = timed("map", lambda: GEOMETRY.to_frame(spots, image.size, (rows, columns)))
    coloured = timed("colour", lambda: overlay(pixels, frame, SCALE))
    marked = is_marked(frame, PIXEL_THRESHOLD)
    timed("outlines", lambda: outline(coloured, is_marked(frame, PIXEL_THRESHOLD)))
    picture = timed("strip", lambda: captioned(coloured, judgement, SCALE))
    content = timed("JPEG", lambda: to_jpeg(picture))
    timed("regions", lambda: regions_of(frame, marked, image.size))
    timed("all over", lambda: overlay(pixels, frame, ALL_OVER))
    return len(photo), len(content), rows * columns


def two_spots(number: int) -> np.ndarray:
    """Return a map of 28 x 28 patches with two spots, each above the scale's low end."""
    made = np.random.default_rng(number).random((28, 28), np.float32) * 0.3 + 1
    made[6:11, 8:14] += 1.6
    made[20:22, 20:27] += 1
    return made


def as_before(image: Image.Image, width: int, height: int) -> bytes:
    """Return the grey pixels that were handed over before photos were."""
    return image.convert("L").resize((width, height), Image.Resampling.BILINEAR).tobytes()


if __name__ == "__main__":
    main()
