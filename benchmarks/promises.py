r"""Whether a promised rate holds for any method, which is fitted on good images of some parts.

    python benchmarks/promises.py WORK FOLDER [FOLDER ...] --method patchcore --splits 200
    python benchmarks/promises.py WORK FOLDER [FOLDER ...] --method patchcore padim  # an ensemble

FOLDERs have good images only, which are embedded once (lite0); each embedding is a fragment of its
own, so that a fit is a choice of fragments, and is otherwise the one of `patchlake fit`, with its
calibration. Parts are told by look-alikes of all images, which stand for the truth; those that a
fit tells are told of its own images. Of each part two images at most are fitted on, and one is
judged. Printed are the shares of fresh parts called anomalous beside three rates, the standard
error over the splits, and how many parts were measured: of each method and, of several, of their
ensemble. Splits are written to WORK as they are done, and an interrupted run goes on.

A fit scores its images by the one model without what their part gave to it. With `--refit` they are
scored by a model fitted without their part, which is what that stands for.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from patchlake.pipeline.cluster.local import LocalRunner
from patchlake.pipeline.config import BackboneSettings, ImageSettings
from patchlake.pipeline.features.backbone import load_backbone
from patchlake.pipeline.groups.calibrate import Calibrator
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.fit import calibrator_of, judged_by
from patchlake.pipeline.groups.gallery import write_gallery
from patchlake.pipeline.groups.membership import Membership
from patchlake.pipeline.groups.parts import judged_of
from patchlake.pipeline.images.appearance import appearance
from patchlake.pipeline.images.thumbnails import thumbnail
from patchlake.pipeline.maths.likeness import look_alikes
from patchlake.pipeline.methods import build
from patchlake.pipeline.methods.shared.contract import GroupDetector, Method
from patchlake.pipeline.model_store.identity import Identity
from patchlake.pipeline.model_store.models import GeometryRecord, Network
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.scores.calibration import Calibration
from patchlake.pipeline.scores.ensemble import ensemble_scores
from patchlake.pipeline.scores.verdict import Verdict
from patchlake.pipeline.stages.batch import FragmentBatch
from patchlake.pipeline.stages.embed import Embedder
from patchlake.pipeline.storage.folder import Folder

_RATES = (0.01, 0.05, 0.1)
# Of the images by whose looks parts are told, and of the network's input as it is by itself.
_SIDE = 224
_BUDGET = 4 * 2**30


def main(words: Sequence[str] | None = None) -> None:
    """Embed, then fit and judge split after split, and print the shares."""
    arguments = _arguments(words)
    files = [path for folder in arguments.folders for path in sorted(folder.iterdir())]
    options = [{k: json.loads(v) for k, v in one} for one in _by_method(arguments)]
    members = [
        _Member.embedded(name, given, files, arguments)
        for name, given in zip(arguments.method, options, strict=True)
    ]
    grey = np.stack([thumbnail(_pixels(path, _SIDE)).ravel() for path in files])
    parts = look_alikes(grey)
    refit = "-refit" if arguments.refit else ""
    kept = arguments.work / f"{'-'.join(arguments.method)}-{arguments.side}{refit}.jsonl"
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for number in range(len(done), arguments.splits):
        found = _judged(members, parts, arguments.parts, number)
        done.append(found)
        with kept.open("a") as handle:
            handle.write(json.dumps(found) + "\n")
        if (number + 1) % 10 == 0 or number + 1 == arguments.splits:
            print(_words(done), flush=True)


def _judged(members: Sequence["_Member"], parts: np.ndarray, count: int, number: int) -> dict:
    """Return what each member, and the ensemble of several, calls anomalous of the fresh parts."""
    rng = np.random.default_rng(number)
    names = rng.permutation(np.unique(parts))
    shots = {name: rng.permutation(np.flatnonzero(parts == name)) for name in names}
    chosen = np.sort(np.concatenate([shots[name][:2] for name in names[:count]]))
    fresh = np.sort(np.concatenate([shots[name][:1] for name in names[count:]]))
    fits = [member.fit(chosen) for member in members]
    scores = [member.scores(one, fresh) for member, one in zip(members, fits, strict=True)]
    calibrations = [one.calibration for one in fits]
    shutil.rmtree(members[0].model.path("groups"), ignore_errors=True)
    found = {
        member.identity.method: _shares(score, [calibration])
        for member, score, calibration in zip(members, scores, calibrations, strict=True)
    }
    if len(members) > 1:
        found["ensemble"] = _shares(ensemble_scores(scores, calibrations), calibrations)
    return {"found": found, "fresh": len(fresh)}


def _shares(scores: np.ndarray, calibrations: Sequence[Calibration]) -> dict:
    """Return the shares of these scores called at each rate, and the parts measured."""
    verdict = Verdict.of(calibrations, _RATES[0])
    assert verdict is not None
    assert verdict.calibration is not None
    p_values = verdict.p_values(scores)
    return {
        "shares": [float(np.mean(p_values <= rate)) for rate in _RATES],
        "measured": verdict.calibration.parts,
    }


@dataclass(frozen=True)
class _Fitted:
    detector: GroupDetector
    calibration: Calibration


@dataclass(frozen=True)
class _Member:
    """One method, and the stored embeddings of all images."""

    model: Folder
    method: Method
    identity: Identity
    fragments: Sequence[Fragment]
    is_refitted: bool

    @classmethod
    def embedded(
        cls, name: str, options: dict, files: Sequence[Path], arguments: argparse.Namespace
    ) -> "_Member":
        """Return the method with the embeddings, which are made where they are not there."""
        side = arguments.side
        work = arguments.work / f"{name}-{side}"
        method = build(name, options)
        network = BackboneSettings(layers=method.layers)
        embedder = Embedder(Folder.at(str(work)), "embedded/", network, name, options, 0)
        fragments = [
            Fragment(path.name, (0,), 0, "all", 1, "1", f"{number:06}")
            for number, path in enumerate(files)
        ]
        stage = None
        for fragment, path in zip(fragments, files, strict=True):
            if not (work / "embedded" / f"{fragment.key}.embeddings.arrow").exists():
                stage = stage or embedder.start(1)
                (result,) = stage(_batch(fragment, _pixels(path, side)).to_arrow()).to_pylist()
                if result["failure"]:
                    raise SystemExit(f"{path}: {result['failure']}")
        backbone = load_backbone(network, seed=0)
        identity = Identity(
            method=name,
            method_options=options,
            geometry=GeometryRecord.of(ImageSettings(resize=(side, side))),
            network=Network(
                name=network.name,
                layers=method.layers,
                weights=None,
                weights_sha256=backbone.weights_sha256,
                precision="float32",
            ),
            index={},
            seed=0,
            robust=False,
        )
        return cls(Folder.at(str(work)), method, identity, fragments, arguments.refit)

    def fit(self, chosen: np.ndarray) -> _Fitted:
        """Return what `patchlake fit` makes of these images, and how it is calibrated."""
        corpus = self._corpus(chosen)
        calibrator = self._calibrator(corpus)
        result = calibrator.result
        images = Membership.of(corpus, 0)
        candidates = np.arange(corpus.images) if result.unseen is None else result.unseen
        images = images.measured(list(calibrator.measure(corpus, candidates)))
        images = judged_by(self.method, calibrator, corpus, images)
        measured = Calibration.of(images.samples(), result.threshold)
        judged = judged_of(images)
        if self.is_refitted and judged is not None:
            judged = replace(judged, scores=self._refitted(chosen, np.array(judged.parts)))
        return _Fitted(calibrator.detector, replace(measured, judged=judged))

    def _calibrator(self, corpus: StoredCorpus) -> Calibrator:
        result = self.method.fit(corpus, seed=0)
        gallery = write_gallery(corpus, result.to_gallery, self.model) if result.to_gallery else []
        return calibrator_of(self.method, self.model, result, gallery, self.identity)

    def _refitted(self, chosen: np.ndarray, parts: np.ndarray) -> tuple[float, ...]:
        """Return the scores of training images by fits of all images but those of their part."""
        assert len(parts) == len(chosen), "some image was not measured"
        scores = np.empty(len(chosen))
        for part in np.unique(parts):
            own = parts == part
            scores[own] = self.scores(self._calibrator(self._corpus(chosen[~own])), chosen[own])
        return tuple(scores.tolist())

    def scores(self, fitted: "_Fitted | Calibrator", images: np.ndarray) -> np.ndarray:
        """Return the scores of images that the model does not know."""
        arrays = (one for _, one in self._corpus(images).some(range(len(images))))
        found = [fitted.detector.score(one).image_scores for one in arrays]
        return np.concatenate(found)

    def _corpus(self, images: np.ndarray) -> StoredCorpus:
        some = [self.fragments[image] for image in images]
        return StoredCorpus(self.model, "embedded/", some, LocalRunner(1), _BUDGET, 1)


def _batch(fragment: Fragment, pixels: np.ndarray) -> FragmentBatch:
    looks = appearance(pixels)
    rows = {
        "image_id": pa.array([fragment.path]),
        "source_row": pa.array([0], pa.int64()),
        "part_id": pa.array([None], pa.string()),
        "sha256": pa.array([f"{int(fragment.key):064x}"[::-1]]),
        "status": pa.array(["ok"]),
        "brightness": pa.array([looks.brightness]),
        "sharpness": pa.array([looks.sharpness]),
        "thumbnail": pa.array([looks.thumbnail]),
    }
    return FragmentBatch(fragment, pa.table(rows), pixels[None])


def _pixels(path: Path, side: int) -> np.ndarray:
    with Image.open(path) as image:
        small = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(small)


def _words(done: Sequence[dict]) -> str:
    """Return a line for each method, and for the ensemble: means over the splits."""
    fresh = np.mean([one["fresh"] for one in done])
    lines = [f"{len(done):>4} splits, {fresh:.0f} fresh parts"]
    for name in done[0]["found"]:
        shares = np.array([one["found"][name]["shares"] for one in done])
        errors = shares.std(axis=0) / np.sqrt(len(done))
        told = [
            f"{rate:g}: {mean:.4f} +- {error:.4f}"
            for rate, mean, error in zip(_RATES, shares.mean(axis=0), errors, strict=True)
        ]
        measured = np.mean([one["found"][name]["measured"] for one in done])
        lines.append(f"  {name:<12} {', '.join(told)}  ({measured:.0f} parts measured)")
    return "\n".join(lines)


def _by_method(arguments: argparse.Namespace) -> list[list[list[str]]]:
    """Return the options of each method, as pairs of name and text."""
    every: list[list[list[str]]] = [[] for _ in arguments.method]
    for text in arguments.option:
        place, _, value = text.partition("=")
        method, _, name = place.rpartition(".")
        every[arguments.method.index(method)].append([name, value])
    return every


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--method", nargs="+", default=["patchcore"])
    parser.add_argument("--option", nargs="*", default=[], help="METHOD.NAME=VALUE")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--side", type=int, default=_SIDE, help="pixels of the network's input")
    parser.add_argument("--refit", action="store_true", help="without each part in turn: slow")
    parser.add_argument("--parts", type=int, default=110, help="fitted on")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
