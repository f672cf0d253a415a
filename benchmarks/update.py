r"""A model that new images joined, beside one that was fitted on all of them.

    python benchmarks/update.py FOLDER WORK --weights resnet18.safetensors \
        --last-block densenet169.safetensors --methods patchcore padim mahalanobis

FOLDER has one product in MVTec layout; WORK is for lakes, models and scores. Every second good
image to train on is in the lake when the first model is fitted; the others are ingested, and join
it with `fit --update`. Another model is fitted on all. Both score the test images, as does the
first model as it was. Every job is a process of its own, timed from after its imports, one after
the other; seconds on a shared machine are worth little, their ratios more.

The radius of both banks is measured over all patches (PatchCore).
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RESNET, DENSENET = "resnet18.tv_in1k", "densenet169.tv_in1k"
BACKBONES = {"patchcore": RESNET, "padim": RESNET, "dn2": DENSENET, "mahalanobis": DENSENET}


@dataclass(frozen=True)
class Models:
    """Folders of the three models of one method."""

    half: Path
    updated: Path
    refitted: Path


def main() -> None:
    """Ingest, fit, update, score, and print the table."""
    arguments = _arguments()
    if arguments.child:
        _child(json.loads(arguments.child))
        return
    half, whole, test = _lakes(arguments.folder, arguments.work)
    print("| | | image AUROC | pixel AUROC | AUPRO | Spearman | Pearson | radius | seconds |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for method in arguments.methods:
        _compare(method, (half, whole, test), arguments)


def _lakes(folder: Path, work: Path) -> tuple[Path, Path, Path]:
    """Return the lake of half of the images, that of all, and that of the test images."""
    half, whole, test, source = (work / name for name in ("half", "whole", "test", "source"))
    if not test.exists():
        trained = sorted(path.relative_to(folder) for path in folder.glob("train/good/*"))
        named = {"verb": "ingest", "source": str(source), "group": folder.name}
        for paths, lakes in ((trained[::2], (half, whole)), (trained, (whole,))):
            for path in paths:
                (source / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(folder / path, source / path)
            for lake in lakes:
                _run(named | {"images": str(lake)})
        only = work / "only"
        for part in ("test", "ground_truth"):
            shutil.copytree(folder / part, only / part, dirs_exist_ok=True)
        _run(named | {"source": str(only), "images": str(test)})
    return half, whole, test


def _compare(method: str, lakes: tuple[Path, Path, Path], arguments: argparse.Namespace) -> None:
    half, whole, test = lakes
    backbone = BACKBONES[method]
    weights = arguments.weights if backbone == RESNET else arguments.last_block
    settings = {
        "backbone": {"name": backbone, "weights": str(weights)},
        "method": {"name": method},
        "score": {"heatmaps": "none"},
    }
    names = ("half", "updated", "refitted")
    models = Models(*(arguments.work / f"{method}-{name}" for name in names))
    for folder in vars(models).values():
        shutil.rmtree(folder, ignore_errors=True)
    seconds = {}
    task = {"verb": "fit", "settings": settings}
    seconds["half"] = _run(task | {"images": str(half), "model": str(models.half)})
    shutil.copytree(models.half, models.updated)
    changed = task | {"verb": "update", "images": str(whole), "model": str(models.updated)}
    seconds["updated"] = _run(changed)
    seconds["refitted"] = _run(task | {"images": str(whole), "model": str(models.refitted)})
    scores = {}
    for name, model in vars(models).items():
        out = arguments.work / f"scores-{method}-{name}"
        shutil.rmtree(out, ignore_errors=True)
        scoring = {"verb": "score", "images": str(test), "model": str(model), "scores": str(out)}
        _run(scoring | {"settings": {"score": settings["score"]}})
        scores[name] = out
    for name, out in scores.items():
        values = _metrics(test, out) + _correlations(out, scores["refitted"])
        radius = _radius(vars(models)[name], whole, settings) if method == "patchcore" else None
        shown = " | ".join("-" if v is None else f"{v:.4f}" for v in (*values, radius))
        ratio = seconds[name] / seconds["refitted"]
        print(f"| {method} | {name} | {shown} | {seconds[name]:.0f} ({ratio:.2f}) |", flush=True)
    _print_differences(scores["updated"], scores["refitted"])


def _metrics(test: Path, scores: Path) -> tuple[float | None, ...]:
    from patchlake.pipeline.driver import evaluate

    (values,) = evaluate.run(str(test), str(scores)).values()
    return values["image_auroc"], values["pixel_auroc"], values["aupro"]


def _image_scores(scores: Path) -> np.ndarray:
    import pyarrow.parquet as pq

    files = sorted(scores.glob("version=*/**/*.parquet"))
    rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    rows.sort(key=lambda row: (row["source_path"], row["source_row"]))
    return np.array([row["image_score"] for row in rows], np.float64)


def _correlations(scores: Path, others: Path) -> tuple[float, float]:
    from scipy.stats import pearsonr, spearmanr

    left, right = _image_scores(scores), _image_scores(others)
    return float(spearmanr(left, right).statistic), float(pearsonr(left, right).statistic)


def _print_differences(scores: Path, others: Path) -> None:
    left, right = _image_scores(scores), _image_scores(others)
    relative = np.abs(left - right) / right
    print(
        f"<!-- scores differ by {np.median(relative):.2e} in the median, {relative.max():.2e} at "
        "most, relative -->",
        flush=True,
    )


def _radius(model: Path, images: Path, settings: dict[str, object]) -> float:
    """Return the covering radius of a model's bank over all patches of a lake's good images."""
    task = {"verb": "radius", "images": str(images), "model": str(model), "settings": settings}
    return _run(task)


def _run(task: dict[str, object]) -> float:
    """Return the number that a job in a process of its own prints last: mostly its seconds."""
    command = [sys.executable, __file__, "-", "-", "--child", json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-1])


def _child(task: dict[str, object]) -> None:
    """Do one job in this process, and print its seconds last."""
    from patchlake.pipeline.config import load_settings
    from patchlake.pipeline.driver import fit, ingest, score, update
    from patchlake.pipeline.driver.execution import Execution
    from patchlake.pipeline.sources.sources import Arrangement

    local = Execution("local", None)
    given = task.get("settings", {})
    assert isinstance(given, dict)
    settings = load_settings(flags=given)
    images, model = str(task["images"]), str(task.get("model"))
    begin = time.perf_counter()
    if task["verb"] == "ingest":
        ingest.run(
            str(task["source"]), images, Arrangement("mvtec", str(task["group"])), settings, local
        )
    elif task["verb"] == "fit":
        fit.run(images, model, settings, local)
    elif task["verb"] == "update":
        update.run(images, model, settings, local)
    elif task["verb"] == "radius":
        print(f"\n{_measured_radius(images, model):.6f}", flush=True)
        return
    else:
        score.run(images, model, str(task["scores"]), settings, local)
    print(f"\n{time.perf_counter() - begin:.3f}", flush=True)


def _measured_radius(images: str, model: str) -> float:
    """Embed a lake's good images once more, and find the patch that is farthest from the bank."""
    from patchlake.pipeline.config import Settings
    from patchlake.pipeline.driver.lineage import open_base
    from patchlake.pipeline.features.extractor import Extractor
    from patchlake.pipeline.groups.loading import load_bank_rows
    from patchlake.pipeline.groups.member import Member
    from patchlake.pipeline.lake.source import Source
    from patchlake.pipeline.maths.shard import Shard
    from patchlake.pipeline.reading.planning import plan
    from patchlake.pipeline.stages.batch import FragmentBatch
    from patchlake.pipeline.stages.decode import Decode
    from patchlake.pipeline.storage.folder import Folder

    base = open_base(Folder.at(model), Settings())
    ((group, record),) = base.manifest.groups.items()
    bank = load_bank_rows(base.target, record)
    assert bank is not None
    member = Member(base.target, base.manifest, base.settings.backbone.weights)
    seed = base.settings.seed
    extract = Extractor(member.checked_backbone(), lambda maps: base.method.embed(maps, seed=seed))
    settings = base.settings
    source = Source(Folder.at(images), settings.columns, settings.image, base.geometry)
    decode = Decode(source, {group: "good"}, 2)
    farthest = 0.0
    fragments = plan(source.images, settings.model_copy(update={"fragment_images": 64})).every
    for number in range(len(fragments)):
        row = decode(fragments[number : number + 1].table)
        patches = extract(FragmentBatch.from_arrow(row).array)["patches"]
        shard = Shard(patches.reshape(-1, patches.shape[-1]), pool=1, threads=2)
        farthest = max(farthest, shard.farthest(bank, -1.0).reach)
    return float(np.sqrt(farthest))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="one product in MVTec layout")
    parser.add_argument("work", type=Path, help="where lakes, models and scores go")
    parser.add_argument("--weights", type=Path, help="of ResNet-18")
    parser.add_argument("--last-block", type=Path, help="of DenseNet-169")
    parser.add_argument("--methods", nargs="*", default=list(BACKBONES))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
