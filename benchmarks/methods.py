r"""All methods and one ensemble beside the peers, on the same images, weights and metrics.

    python benchmarks/methods.py FOLDER WORK --weights resnet18.safetensors \
        --last-block densenet169.safetensors \
        --peers anomalib:padim ind_knn_ad:padim --peer-python PYTHON --peer-source CHECKOUT
    python benchmarks/methods.py FOLDER WORK --weights FILE --last-block FILE --methods detail

FOLDER has one product in MVTec layout, of which `--every` takes one photo of so many, of each label
by itself; WORK is for lakes, models and scores. Every fit and every scoring is a process of its own
that is timed from after its imports; one after the other, so that each has the machine to itself.
Peak memory is that of the process. ResNet-18 for the methods that do without the last block,
DenseNet-169 for the others (its file must have all layers); the whole image at 224 x 224 for all.
`--repeats` takes the median of several.

`--methods detail` is PatchCore with three backbones and each way to see fine detail: the whole
image at 224 and at 448 pixels, the photo's own shape, its own shape and pixels in tiles, and only
rows of the bank from near a patch's place.

The metrics of the peers' maps are computed as ours are (frame of 256 x 256, AUPRO to 30 and 5 %);
SegF1 is at the calibrated pixel threshold, which the peers do not have.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from shapes import share_of

LITE, RESNET, DENSENET = "lite0", "resnet18.tv_in1k", "densenet169.tv_in1k"


@dataclass(frozen=True)
class Contender:
    """One of ours: its backbone, and its settings beside the defaults."""

    backbone: str
    method: Mapping[str, object] = field(default_factory=dict)
    image: Mapping[str, object] = field(default_factory=dict)


OURS: Mapping[str, Contender] = {
    "patchcore": Contender(RESNET),
    "padim": Contender(RESNET),
    "cfa": Contender(RESNET),
    "spade": Contender(DENSENET),
    "spade-same_location": Contender(DENSENET, {"gallery": "same_location"}),
    "dn2": Contender(DENSENET),
    "mahalanobis": Contender(DENSENET),
    "patchcore-densenet169": Contender(DENSENET),
}
DETAIL: Mapping[str, Contender] = {
    f"patchcore-{way}-{backbone.partition('.')[0]}": Contender(backbone, method, image)
    for backbone in (LITE, RESNET, DENSENET)
    for way, method, image in (
        ("224", {}, {}),
        ("448", {}, {"resize": [448, 448]}),
        ("own_shape", {}, {"resize": "auto"}),
        ("tiles", {}, {"resize": "auto", "tile": {"size": 256, "overlap": 128}}),
        ("radius_1", {"position_radius": 1}, {}),
        ("radius_3", {"position_radius": 3}, {}),
    )
}
ENSEMBLE = ("patchcore", "padim")
_SCORE = {"heatmaps": "none"}
LAST_BLOCK_PEERS = ("ind_knn_ad:spade",)


@dataclass
class Row:
    """One line of the table."""

    name: str
    backbone: str
    image_auroc: float | None
    pixel_auroc: float | None
    aupro: float | None
    aupro_5: float | None
    seg_f1: float | None
    fit_s: float | None
    images_per_s: float
    model_mib: float | None
    peak_mib: float


def main() -> None:
    """Ingest, run every contender, and print the table."""
    arguments = _arguments()
    if arguments.child:
        _child(json.loads(arguments.child))
        return
    if arguments.every > 1:
        share = arguments.work / "share" / arguments.folder.name
        shutil.rmtree(share, ignore_errors=True)
        share_of(arguments.folder, share, arguments.every)
        arguments.folder = share
    lakes = _lakes(arguments)
    rows: list[Row] = []
    for name in DETAIL if arguments.methods == ["detail"] else arguments.methods:
        rows += _ours(name, lakes, arguments)
        _print(rows[-1:])
    for name in arguments.peers:
        rows += _peer(name, arguments)
        _print(rows[-1:])
    metrics = "image AUROC | pixel AUROC | AUPRO | AUPRO 5 % | SegF1"
    print(f"| | backbone | {metrics} | fit s | images/s | model MiB | MiB |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    _print(rows)


def _lakes(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Return the lake of all images, and that of the test images."""
    folder, work = arguments.folder, arguments.work
    every, test = work / "images", work / "test"
    if not every.exists():
        copy = work / "only"
        for part in ("test", "ground_truth"):
            shutil.copytree(folder / part, copy / part)
        for source, lake in ((folder, every), (work / "only", test)):
            named = {"images": str(lake), "group": folder.name}
            _run_child({"verb": "ingest", "source": str(source)} | named)
    return every, test


def _ours(name: str, lakes: tuple[Path, Path], arguments: argparse.Namespace) -> list[Row]:
    """Fit and score one of ours, `--repeats` times; no row if it cannot be."""
    every, test = lakes
    members = ENSEMBLE if name == "ensemble" else (name,)
    models = [arguments.work / f"model-{member}" for member in members]
    scores = arguments.work / f"scores-{name}"
    fits, scorings, peaks = [], [], []
    contender = (OURS | DETAIL)[members[0]]
    settings = _settings(name, contender, arguments)
    for _ in range(arguments.repeats):
        shutil.rmtree(scores, ignore_errors=True)
        if name != "ensemble":
            shutil.rmtree(models[0], ignore_errors=True)
            fit = {"verb": "fit", "images": str(every), "model": str(models[0])}
            seconds, peak = _run_child(fit | {"settings": settings})
            fits.append(seconds)
            peaks.append(peak)
        scoring = {"verb": "score", "images": str(test), "models": list(map(str, models))}
        seconds, peak = _run_child(scoring | {"scores": str(scores), "settings": {"score": _SCORE}})
        scorings.append(seconds)
        peaks.append(peak)
    from patchlake.pipeline.driver import evaluate

    (values,) = evaluate.run(str(test), str(scores)).values()
    images = int(values["images"] or 0)
    size = sum(f.stat().st_size for model in models for f in model.rglob("*") if f.is_file())
    return [
        Row(
            name,
            contender.backbone.partition(".")[0],
            values["image_auroc"],
            values["pixel_auroc"],
            values["aupro"],
            values["aupro_5"],
            values["seg_f1"],
            statistics.median(fits) if fits else None,
            images / statistics.median(scorings),
            size / 2**20,
            max(peaks),
        )
    ]


def _settings(name: str, contender: Contender, arguments: argparse.Namespace) -> dict[str, object]:
    files = {LITE: None, RESNET: arguments.weights, DENSENET: arguments.last_block}
    weights = files[contender.backbone]
    method = {"name": name.partition("-")[0]} | contender.method
    if method["name"] == "cfa" and arguments.epochs:
        method["epochs"] = arguments.epochs
    return {
        "backbone": {"name": contender.backbone} | ({"weights": str(weights)} if weights else {}),
        "method": method,
        "image": dict(contender.image),
        "score": _SCORE,
    }


def _peer(name: str, arguments: argparse.Namespace) -> list[Row]:
    """Fit and score one of a peer's methods once."""
    is_last = name in LAST_BLOCK_PEERS
    backbone = (DENSENET if is_last else RESNET).partition(".")[0]
    weights = arguments.last_block if is_last else arguments.weights
    out = arguments.work / f"{name.replace(':', '-')}.npz"
    command = [arguments.peer_python, str(Path(__file__).with_name("peers.py"))]
    command += [name, str(arguments.folder), str(out), "--weights", str(weights)]
    command += ["--backbone", backbone]
    if arguments.peer_source:
        command += ["--source", str(arguments.peer_source)]
    if arguments.epochs:
        command += ["--epochs", str(arguments.epochs)]
    _, peak = _measured(command)
    found = np.load(out)
    fit_s, score_s = found["seconds"]
    metrics = _metrics(arguments.folder, found)
    return [
        Row(
            name,
            backbone,
            *metrics,
            seg_f1=None,
            fit_s=float(fit_s),
            images_per_s=len(found["scores"]) / float(score_s),
            model_mib=None,
            peak_mib=peak,
        )
    ]


def _metrics(
    folder: Path, found: Mapping[str, np.ndarray]
) -> tuple[float | None, float | None, float | None, float | None]:
    """Return image AUROC, pixel AUROC, and AUPRO to 30 and to 5 %, of a peer's scores and maps."""
    from patchlake.pipeline.evaluation.pixels import PixelCurves
    from patchlake.pipeline.evaluation.roc import auroc
    from patchlake.pipeline.images.formats import Limits
    from patchlake.pipeline.images.masks import decode_mask
    from patchlake.pipeline.maths.resampling import bilinear_matrix
    from patchlake.pipeline.stages.compare import FRAME

    curves, is_anomalous = PixelCurves(), []
    for path, grid in zip(map(Path, found["paths"]), found["maps"], strict=True):
        is_good = path.parent.name == "good"
        is_anomalous.append(not is_good)
        mask = np.zeros(FRAME, bool)
        if not is_good:
            file = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            mask = decode_mask(file.read_bytes(), FRAME, Limits()).is_defect
        rows, columns = (bilinear_matrix(n, m) for n, m in zip(FRAME, grid.shape, strict=True))
        curves.add((rows @ grid @ columns.T).astype(np.float32), mask)
    image = auroc(found["scores"].astype(np.float64), np.array(is_anomalous))
    return image, curves.auroc(), curves.aupro(), curves.aupro(0.05)


def _run_child(task: dict[str, object]) -> tuple[float, float]:
    """Return the seconds of one job, without its imports, and its peak memory in MiB."""
    return _measured([sys.executable, __file__, "-", "-", "--child", json.dumps(task)])


def _measured(command: list[str]) -> tuple[float, float]:
    """Return the seconds that a process prints last, if any, and its peak memory in MiB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read().split()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command} ended with {os.waitstatus_to_exitcode(status)}")
    last = printed[-1] if printed else ""
    return float(last) if last.replace(".", "", 1).isdigit() else 0.0, usage.ru_maxrss / 1024


def _child(task: dict[str, object]) -> None:
    """Do one job in this process, and print its seconds last."""
    from patchlake.pipeline.config import load_settings
    from patchlake.pipeline.driver import fit, ingest, score
    from patchlake.pipeline.driver.execution import Execution
    from patchlake.pipeline.sources.sources import Arrangement

    local = Execution("local", None)
    given = task.get("settings", {})
    assert isinstance(given, dict)
    settings = load_settings(flags=given)
    begin = time.perf_counter()
    if task["verb"] == "ingest":
        ingest.run(
            str(task["source"]),
            str(task["images"]),
            Arrangement("mvtec", str(task["group"])),
            settings,
            local,
        )
    elif task["verb"] == "fit":
        fit.run(str(task["images"]), str(task["model"]), settings, local)
    else:
        models = task["models"]
        assert isinstance(models, list)
        score.run(str(task["images"]), models, str(task["scores"]), settings, local)
    print(f"\n{time.perf_counter() - begin:.3f}", flush=True)


def _print(rows: list[Row]) -> None:
    for row in rows:
        name, backbone, *values = asdict(row).values()
        told = (
            "-" if value is None else f"{value:.{decimals}f}"
            for value, decimals in zip(values, (3, 3, 3, 3, 3, 1, 1, 1, 0), strict=True)
        )
        print(f"| {name} | {backbone} | {' | '.join(told)} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="one product in MVTec layout")
    parser.add_argument("work", type=Path, help="where lakes, models and scores go")
    parser.add_argument("--weights", type=Path, help="of ResNet-18")
    parser.add_argument("--last-block", type=Path, help="of DenseNet-169")
    named = "detail, or any of theirs and of these"
    parser.add_argument("--methods", nargs="*", default=[*OURS, "ensemble"], help=named)
    parser.add_argument("--every", type=int, default=1, help="one photo of so many")
    parser.add_argument("--peers", nargs="*", default=[], help="PEER:METHOD, see peers.py")
    parser.add_argument("--peer-python", default=sys.executable, help="an interpreter")
    parser.add_argument("--peer-source", type=Path, help="checkout of ind_knn_ad")
    parser.add_argument("--epochs", type=int, help="of CFA, ours and the peer's")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
