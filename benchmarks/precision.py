r"""What features in bfloat16 cost in accuracy, beside what a seed does.

    python benchmarks/precision.py WORK tile=FOLDER hazelnut=FOLDER --backbone lite0 \
        --methods patchcore padim mahalanobis spade dn2 cfa --seeds 0 1 2

FOLDERs are in MVTec layout; BACKBONE may be NAME=WEIGHTS. Of each product and method: image AUROC,
pixel AUROC and AUPRO (to 30 %) in float32 and in bfloat16, for each seed. A seed decides where the
greedy selection of PatchCore begins, which dimensions PaDiM keeps, and where CFA's descent begins;
the other methods have none, and one is enough for them. `bank` is a model that was fitted in
float32 and scored with features in bfloat16, so that the bank is the same.
"""

import argparse
from pathlib import Path
from typing import Literal

import patchlake
from patchlake.pipeline.model_store.identity import Identity
from patchlake.pipeline.model_store.models import MANIFEST, read_manifest
from patchlake.pipeline.storage.folder import Folder

Precision = Literal["float32", "bfloat16"]
# Methods on which the seed has an influence.
_SEEDED = ("patchcore", "padim", "cfa")


def main() -> None:
    """Print a line for each product, method, precision and seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("products", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--backbone", default="lite0", metavar="NAME[=WEIGHTS]")
    parser.add_argument("--methods", nargs="+", default=["patchcore"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    print("product    method       seed  features  image  pixel  AUPRO")
    for product in arguments.products:
        name, _, source = product.partition("=")
        lake = arguments.work / name
        patchlake.ingest(source, lake)
        for method in arguments.methods:
            for seed in arguments.seeds if method in _SEEDED else arguments.seeds[:1]:
                work = arguments.work / f"{name}-{method}-{seed}"
                for features, metrics in _trial(lake, work, arguments.backbone, method, seed):
                    print(f"{name:<10} {method:<12} {seed:<5} {features:<9} {metrics}", flush=True)


def _trial(lake: Path, work: Path, backbone: str, method: str, seed: int) -> list[tuple[str, str]]:
    found = []
    for precision in ("float32", "bfloat16"):
        model = Path(f"{work}-{precision}")
        patchlake.fit(lake, model, settings=_settings(backbone, method, seed, precision))
        found.append((precision, _metrics(lake, model)))
    switched = Path(f"{work}-bank")
    _switch(Path(f"{work}-float32"), switched)
    return [*found, ("bank", _metrics(lake, switched))]


def _settings(backbone: str, method: str, seed: int, precision: str) -> patchlake.Settings:
    name, _, weights = backbone.partition("=")
    network = {"name": name, "weights": weights or None, "precision": precision}
    return patchlake.settings(backbone=network, method={"name": method}, seed=seed)


def _metrics(lake: Path, model: Path) -> str:
    scores = Path(f"{model}-scores")
    patchlake.score(lake, model, scores, settings=patchlake.settings(score={"heatmaps": "none"}))
    (metrics,) = patchlake.evaluate(lake, scores).values()
    return "  ".join(
        f"{metrics[name]:.3f}" if metrics.get(name) is not None else "  -  "
        for name in ("image_auroc", "pixel_auroc", "aupro")
    )


def _switch(model: Path, switched: Path) -> None:
    """Copy a model, and let it be scored with features in bfloat16."""
    if not switched.exists():
        # Not its runs.
        switched.mkdir(parents=True)
        for path in model.rglob("*"):
            if path.is_file() and "_runs" not in path.parts:
                copy = switched / path.relative_to(model)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    manifest = read_manifest(Folder.at(str(model)))
    network = manifest.backbone.model_copy(update={"precision": "bfloat16"})
    manifest = manifest.model_copy(update={"backbone": network})
    identity = Identity.of(manifest)
    groups = {
        name: record.model_copy(update={"digest": identity.group_digest(record.files)})
        for name, record in manifest.groups.items()
    }
    manifest = manifest.model_copy(update={"groups": groups})
    (switched / MANIFEST).write_text(manifest.model_dump_json())


if __name__ == "__main__":
    main()
