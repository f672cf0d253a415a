r"""Whether a promised rate holds: DN2 fitted 200 times on two thirds of the parts.

    python benchmarks/promise.py FOLDER [FOLDER ...]

FOLDERs have good images only. They are embedded once (lite0); a fit of DN2 is then a choice of
rows. Parts are told by look-alikes at several distances: those by which images are split, which
stand for the truth, and those by which verdicts are calibrated, which patchlake would find. Printed
is the share of fresh images called anomalous, each part counting once, beside three rates.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse.csgraph import connected_components

from patchlake.pipeline.config import BackboneSettings
from patchlake.pipeline.features.backbone import load_backbone
from patchlake.pipeline.features.extractor import Extractor
from patchlake.pipeline.images.thumbnails import thumbnail
from patchlake.pipeline.methods import build
from patchlake.pipeline.scores.conformal import Conformal

_RATES = (0.01, 0.05, 0.1)
_SPLITS = 200
_NEIGHBOURS = 2
# Shares of the typical distance; patchlake's own is 0.25 (`maths/likeness.py`). 0: no parts.
_TRUTHS, _FOUND = (0.2, 0.25, 0.3), (0.0, 0.1, 0.2, 0.25, 0.3)


def main() -> None:
    """Print a line for each pair of distances."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+")
    files = [path for f in parser.parse_args().folders for path in sorted(f.iterdir())]
    pixels = [_pixels(path) for path in files]
    between = _distances(_embedded(pixels))
    grey = np.stack([thumbnail(one).ravel() for one in pixels]).astype(np.float32)
    grey -= grey.mean(axis=1, keepdims=True)
    unlike = _distances(grey / np.maximum(grey.std(axis=1, keepdims=True), 1))
    unlike /= np.median(unlike[np.triu_indices(len(unlike), 1)])
    print(f"{len(files)} images, {_SPLITS} splits\ntruth  parts  found  K    " + _words(_RATES))
    for truth in _TRUTHS:
        parts = _parts(unlike, truth)
        for found in _FOUND:
            alarms, judged = _simulated(between, unlike, parts, found)
            print(f"{truth:<6} {len(set(parts)):<6} {found:<6} {judged:<4.0f} {_words(alarms)}")


def _simulated(
    between: np.ndarray, unlike: np.ndarray, parts: np.ndarray, found: float
) -> tuple[np.ndarray, float]:
    rng, names = np.random.default_rng(0), np.unique(parts)
    alarms, judged = [], []
    for _ in range(_SPLITS):
        chosen = rng.permutation(names)[: len(names) * 2 // 3]
        fitted = np.flatnonzero(np.isin(parts, chosen))
        fresh = np.flatnonzero(~np.isin(parts, chosen))
        told = _parts(unlike[np.ix_(fitted, fitted)], found)
        others = between[np.ix_(fitted, fitted)].copy()
        others[told[:, None] == told] = np.inf
        calibration = Conformal.of(_scores(others), told)
        p_values = calibration.p_values(_scores(between[np.ix_(fresh, fitted)]))
        weights = 1 / np.bincount(parts)[parts[fresh]]
        alarms.append([np.average(p_values <= rate, weights=weights) for rate in _RATES])
        judged.append(calibration.parts)
    return np.mean(alarms, axis=0), float(np.mean(judged))


def _scores(distances: np.ndarray) -> np.ndarray:
    nearest = np.sort(distances, axis=1)[:, :_NEIGHBOURS]
    return np.asarray(nearest.mean(axis=1, dtype=np.float64).astype(np.float32))


def _parts(unlike: np.ndarray, limit: float) -> np.ndarray:
    linked = unlike < limit
    np.fill_diagonal(linked, val=True)
    return np.asarray(connected_components(linked)[1])


def _distances(rows: np.ndarray) -> np.ndarray:
    lengths = np.sum(rows.astype(np.float64) ** 2, axis=1)
    products = rows.astype(np.float64) @ rows.T.astype(np.float64)
    return np.asarray(np.sqrt(np.maximum(0, lengths[:, None] + lengths - 2 * products)))


def _embedded(pixels: list[np.ndarray]) -> np.ndarray:
    method = build("dn2", {})
    backbone = load_backbone(BackboneSettings(layers=method.layers), seed=0)
    extract = Extractor(backbone, partial(method.embed, seed=0))
    pieces = [np.stack(pixels[begin : begin + 4]) for begin in range(0, len(pixels), 4)]
    return np.concatenate([extract(piece)["pooled"] for piece in pieces])


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))


def _words(values: tuple[float, ...] | np.ndarray) -> str:
    return "  ".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    main()
