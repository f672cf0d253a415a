r"""Which changes of real images are found within a night, and how many nights without any are.

    python benchmarks/drift.py WORK PRODUCT=FOLDER OTHER=FOLDER

FOLDERs are in MVTec layout; OTHER's good images stand for another product. The good images are cut
into two halves by their part, as far as thumbnails tell parts (`maths/likeness.py`); a model is
fitted on one half, and the other is scored as it is, and with each change made to the photos. Then
the halves change places. Nights are drawn from the scores: parts at random, with all their shots,
up to so many images. So a night without a change is a draw of the population of the training
images, which is what the test promises something of. A night is judged among 29 such ones, and by
itself (p <= 0.05). The scores have no part_id, unless it is asked for.
"""

import argparse
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

import patchlake
from patchlake.pipeline.images.thumbnails import thumbnail
from patchlake.pipeline.maths.drift import drifting
from patchlake.pipeline.maths.likeness import look_alikes

_SIZES = (20, 50, 100)
_OTHERS = 29
# Images of each half that are changed.
_CHANGED = 300
# Of the other product.
_FOREIGN = 40
Change = Callable[[Image.Image], Image.Image]


def _gain(factor: float) -> Change:
    return lambda image: image.point(lambda level: min(255, round(level * factor)))


def _blur(sigma: float) -> Change:
    return lambda image: image.filter(ImageFilter.GaussianBlur(sigma))


def _crop(share: float) -> Change:
    """Return a change that leaves out so much at each side: the camera is nearer."""

    def crop(image: Image.Image) -> Image.Image:
        width, height = image.size
        left, top = round(width * share), round(height * share)
        return image.crop((left, top, width - left, height - top))

    return crop


def _shift(share: float) -> Change:
    """Return a change that moves the picture by so much of its width, its edge repeated."""

    def shift(image: Image.Image) -> Image.Image:
        pixels = np.asarray(image)
        away = round(pixels.shape[1] * share)
        places = np.maximum(0, np.arange(pixels.shape[1]) - away)
        return Image.fromarray(pixels[:, places])

    return shift


def _jpeg(quality: int) -> Change:
    def again(image: Image.Image) -> Image.Image:
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=quality)
        return Image.open(sink)

    return again


_CHANGES: dict[str, Change] = {
    "none": lambda image: image,
    "light x 0.8": _gain(0.8),
    "light x 0.9": _gain(0.9),
    "light x 0.95": _gain(0.95),
    "light x 1.1": _gain(1.1),
    "blur sigma 0.5": _blur(0.5),
    "blur sigma 1": _blur(1),
    "blur sigma 2": _blur(2),
    "crop 5 %": _crop(0.05),
    "crop 10 %": _crop(0.1),
    "shift 5 %": _shift(0.05),
    "shift 10 %": _shift(0.1),
    "JPEG quality 30": _jpeg(30),
    "JPEG quality 10": _jpeg(10),
}
_DEFECTIVE, _OTHER = "defective", "other"


def main() -> None:
    """Print a line for each change."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("products", nargs=2, metavar="NAME=FOLDER")
    parser.add_argument("--sizes", nargs="+", type=int, default=_SIZES)
    parser.add_argument("--nights", type=int, default=200)
    parser.add_argument("--part-id", action="store_true", help="The scores name the parts.")
    arguments = parser.parse_args()
    (name, source), (_, other) = (one.split("=", 1) for one in arguments.products)
    work = arguments.work / name
    _write_photos(Path(source), Path(other), work)
    p_values: dict[tuple[str, int], list[float]] = {}
    shifts: dict[tuple[str, int], list[float]] = {}
    for half in (0, 1):
        scores = _scored(work, half)
        kinds, rows = _rows(scores)
        for size in arguments.sizes:
            rng = np.random.default_rng(size)
            for kind, some in _kinds(kinds, rows, size, arguments.nights // 2, rng):
                nights = _nights(
                    work / f"nights-{half}", scores, some, has_part_id=arguments.part_id
                )
                p_values.setdefault((kind, size), []).extend(nights.column("p_value").to_pylist())
                shifts.setdefault((kind, size), []).extend(nights.column("shift").to_pylist())
    _show(p_values, shifts, arguments.sizes)


def _write_photos(source: Path, other: Path, work: Path) -> None:
    """Write the photos with each change, and a manifest for each half."""
    if (work / "0.csv").exists():
        return
    good = sorted([*(source / "train/good").iterdir(), *(source / "test/good").iterdir()])
    parts = look_alikes(np.stack([_thumbnail(path) for path in good]))
    # Whole parts go to one half or the other, and are changed or not.
    names = np.random.default_rng(0).permutation(np.unique(parts))
    place = {name: at for at, name in enumerate(names.tolist())}
    halves = np.array([place[part] < len(names) // 2 for part in parts.tolist()]).astype(int)
    print(f"{len(good)} good images of {len(names)} parts, halves of {np.bincount(halves)}")
    lines: tuple[list[str], list[str]] = ([], [])
    left = [_CHANGED, _CHANGED]
    for number in sorted(range(len(good)), key=lambda at: (place[int(parts[at])], at)):
        half = halves[number]
        left[half] -= 1
        kinds = list(_CHANGES) if left[half] >= 0 else ["none"]
        for kind, path in _write_changed(good[number], work / "photos", f"{number:04}", kinds):
            lines[half].append(f"{path},test,good,{kind},{parts[number]}")
            if kind == "none":
                lines[1 - half].append(f"{path},train,good,training,{parts[number]}")
    bad = sorted(p for p in (source / "test").glob("*/*") if p.parent.name != "good")
    more = [(_DEFECTIVE, path) for path in bad]
    more += [(_OTHER, path) for path in sorted((other / "train/good").iterdir())[:_FOREIGN]]
    for at, (kind, path) in enumerate(more):
        target = work / "photos" / kind / f"{at:04}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        for some in lines:
            some.append(f"{target},test,unknown,{kind},{-1 - at}")
    for half, some in enumerate(lines):
        # In the order of the files' names, as a line writes them.
        listed = "\n".join(["uri,split,label,kind,part_id", *sorted(some)])
        (work / f"{half}.csv").write_text(listed)


def _write_changed(
    path: Path, photos: Path, name: str, kinds: Sequence[str]
) -> Iterator[tuple[str, Path]]:
    """Write a photo with some changes; yield each and its path."""
    with Image.open(path) as opened:
        image = opened.convert(opened.mode if opened.mode in ("L", "RGB") else "RGB")
    for kind in kinds:
        target = photos / kind.replace("%", "percent") / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        _CHANGES[kind](image).save(target, compress_level=1)
        yield kind, target


def _thumbnail(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        pixels = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    return thumbnail(np.asarray(pixels)).ravel()


def _scored(work: Path, half: int) -> Path:
    lake, model, scores = (work / f"{what}-{half}" for what in ("images", "model", "scores"))
    patchlake.ingest(work / f"{half}.csv", lake, group=work.name, partitions=["kind"])
    settings = patchlake.settings(score={"heatmaps": "none"})
    if not model.exists():
        patchlake.fit(lake, model, where="kind = 'training'", settings=settings)
    patchlake.score(lake, model, scores, where="kind <> 'training'", settings=settings)
    return scores


def _rows(scores: Path) -> tuple[np.ndarray, pa.Table]:
    """Return of each row its change, and the rows in the order of their files."""
    names = [n for n in patchlake.open_scores(scores).schema.names if n != "anomaly_map"]
    rows = patchlake.open_scores(scores).to_table(columns=names)
    rows = rows.sort_by([("source_path", "ascending"), ("source_row", "ascending")])
    return np.array(rows.column("kind").to_pylist()), rows


def _kinds(
    kinds: np.ndarray, rows: pa.Table, size: int, nights: int, rng: np.random.Generator
) -> Iterator[tuple[str, pa.Table]]:
    """Yield each kind of night, and the rows of many of it, with a column `night`."""
    parts = np.array(rows.column("part_id").to_pylist()).astype(int)
    places = {kind: np.flatnonzero(kinds == kind) for kind in np.unique(kinds)}

    def night(mix: Sequence[tuple[str, float]]) -> np.ndarray:
        return np.concatenate(
            [_draw(places[kind], parts, round(size * share), rng) for kind, share in mix]
        )

    mixed = {
        "other product": [(_OTHER, 1.0)],
        "20 % other product": [("none", 0.8), (_OTHER, 0.2)],
        "10 % other product": [("none", 0.9), (_OTHER, 0.1)],
        "10 % defective": [("none", 0.9), (_DEFECTIVE, 0.1)],
        "30 % defective": [("none", 0.7), (_DEFECTIVE, 0.3)],
    }
    for kind in [*_CHANGES, *mixed]:
        chosen = [night(mixed.get(kind, [(kind, 1.0)])) for _ in range(nights)]
        numbers = np.repeat(np.arange(nights), [len(one) for one in chosen]).astype(str)
        yield kind, rows.take(np.concatenate(chosen)).append_column("night", pa.array(numbers))


def _draw(
    places: np.ndarray, parts: np.ndarray, images: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the rows of parts at random, with all their shots, up to so many."""
    order = rng.permutation(np.unique(parts[places]))
    found = np.concatenate([places[parts[places] == part] for part in order])
    return np.sort(found[:images])


def _nights(table: Path, scores: Path, rows: pa.Table, *, has_part_id: bool) -> pa.Table:
    shutil.rmtree(table, ignore_errors=True)
    shutil.copytree(scores / "_models", table / "_models")
    folder = table / "version=drawn"
    folder.mkdir()
    if not has_part_id:
        at = rows.schema.get_field_index("part_id")
        rows = rows.set_column(at, "part_id", pa.nulls(len(rows), pa.string()))
    pq.write_table(rows.drop_columns(["kind"]), folder / f"part-{'0' * 12}-{'0' * 20}.parquet")
    return patchlake.drift(table, version="drawn", night="night")


def _show(
    p_values: dict[tuple[str, int], list[float]],
    shifts: dict[tuple[str, int], list[float]],
    sizes: Sequence[int],
) -> None:
    print(f"share found among {_OTHERS} nights without a change / p <= 0.05 / median shift")
    print("nights of          " + "".join(f"{size:>22}" for size in sizes))
    for kind in dict.fromkeys(kind for kind, _ in p_values):
        cells = []
        for size in sizes:
            own, none = (np.array(p_values[one, size]) for one in (kind, "none"))
            rng = np.random.default_rng(0)
            judged = [
                drifting(np.append(rng.choice(none, _OTHERS), p))[0][-1] for p in own.tolist()
            ]
            shift = np.median(shifts[kind, size])
            cells.append(f"{np.mean(judged):.3f} / {np.mean(own <= 0.05):.3f} / {shift:.1f}")
        print(f"{kind:<19}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
