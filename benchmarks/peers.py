r"""One method of a peer, fitted and scored on a folder of images; `benchmarks/methods.py` runs it.

    PYTHON benchmarks/peers.py anomalib:padim FOLDER OUT.npz --weights resnet18.safetensors

PYTHON is an interpreter that has the peer's requirements; nothing of patchlake is imported. The
peers' own models do the work: anomalib's torch models (without Lightning, whose loop would only
cost them time), and ind_knn_ad's, from a checkout that `--source` names. All see the whole image,
squashed bilinearly to `--side` pixels, and the weights of one file.

OUT.npz has for each test image its path, score and anomaly map, and the seconds of fit and scoring.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

# Images of a batch, as anomalib has them by default; CFA's authors train with 4.
_BATCH = 32
_CFA_BATCH = 4
_MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
_STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]

Scores = tuple[Tensor, Tensor]


class Images(torch.utils.data.Dataset[Tensor]):
    """The images, as the networks take them."""

    def __init__(self, paths: list[Path], side: int) -> None:
        self.paths = paths
        self.side = side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        with Image.open(self.paths[number]) as image:
            resized = image.convert("RGB").resize((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
        return (pixels - _MEAN) / _STD

    def batches(self, size: int, *, shuffled: bool = False) -> Iterator[Tensor]:
        """Yield batches of at most that many images."""
        yield from torch.utils.data.DataLoader(self, size, shuffle=shuffled)


def main() -> None:
    """Fit, score, and write what came out."""
    arguments = _arguments()
    torch.manual_seed(0)
    use_local_weights(arguments.weights)
    folder = arguments.folder
    train = sorted(folder.glob("train/good/*"))[: arguments.images]
    test = sorted(folder.glob("test/*/*"))
    peer, _, method = arguments.method.partition(":")
    begin = time.perf_counter()
    with torch.no_grad():
        fit = {"anomalib": fit_anomalib, "ind_knn_ad": fit_ind_knn}[peer]
        score = fit(method, Images(train, arguments.side), arguments)
    fitted = time.perf_counter()
    with torch.no_grad():
        found = [score(batch) for batch in Images(test, arguments.side).batches(arguments.at_once)]
    done = time.perf_counter()
    np.savez(
        arguments.out,
        paths=[str(path.relative_to(folder)) for path in test],
        scores=torch.cat([scores.flatten() for scores, _ in found]).numpy(),
        maps=torch.cat([maps.reshape(-1, *maps.shape[-2:]) for _, maps in found]).numpy(),
        seconds=[fitted - begin, done - fitted],
    )


def fit_anomalib(
    method: str, images: Images, arguments: argparse.Namespace
) -> Callable[[Tensor], Scores]:
    """Return what scores a batch, by anomalib's torch models."""
    model: Any
    if method == "cfa":
        model = _fit_anomalib_cfa(images, arguments)
    elif method == "mh_patchcore":
        model = _fit_mh_patchcore(images, arguments.backbone)
    else:
        model = _anomalib_model(method, arguments.backbone)
        for batch in images.batches(_BATCH):
            model(batch)
        if method == "padim":
            model.fit()
        else:
            model.subsample_embedding(0.01)
    model.eval()

    def score(batch: Tensor) -> Scores:
        found = model(batch)
        return found.pred_score, found.anomaly_map

    return score


def _anomalib_model(method: str, backbone: str) -> Any:  # noqa: ANN401 - of an untyped peer
    if method == "padim":
        from anomalib.models.image.padim.torch_model import PadimModel

        return PadimModel(backbone, n_features=100).train()
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    return PatchcoreModel(["layer2", "layer3"], backbone).train()


def _fit_anomalib_cfa(images: Images, arguments: argparse.Namespace) -> Any:  # noqa: ANN401
    from anomalib.models.image.cfa import torch_model
    from anomalib.models.image.cfa.loss import CfaLoss

    model = torch_model.CfaModel("resnet18", 1, 1, 3, 3, 1e-5)
    loader = [SimpleNamespace(image=batch) for batch in images.batches(_CFA_BATCH)]
    model.initialize_centroid(loader)
    loss = CfaLoss(3, 3, 1e-5)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=5e-4, amsgrad=True)
    model.train()
    with torch.enable_grad():
        for _ in range(arguments.epochs):
            for batch in images.batches(_CFA_BATCH, shuffled=True):
                optimizer.zero_grad()
                loss(model(batch)).backward(retain_graph=True)
                optimizer.step()
    return model


def _fit_mh_patchcore(images: Images, backbone: str) -> Any:  # noqa: ANN401
    from anomalib.models.image.mh_patchcore.torch_model import MHPatchcoreModel

    model = MHPatchcoreModel(backbone).train()
    # Its three passes over the images, as its Lightning module makes them.
    for batch in images.batches(_BATCH):
        model.pca.update(model(batch))
    model.pca.finalize()
    for batch in images.batches(_BATCH):
        model.covariance.update(model.pca(model(batch)))
    model.covariance.finalize()
    for batch in images.batches(_BATCH):
        model.memory_bank.update(model.covariance(model.pca(model(batch))))
    model.memory_bank.finalize()
    return model


def fit_ind_knn(
    method: str, images: Images, arguments: argparse.Namespace
) -> Callable[[Tensor], Scores]:
    """Return what scores one image, by ind_knn_ad's models."""
    sys.path.insert(0, str(arguments.source))
    # Its modules make a folder for exports wherever they are imported.
    os.chdir(arguments.out.parent)
    from indad import models

    made = {
        "spade": lambda: models.SPADE(50, arguments.backbone),
        "padim": lambda: models.PaDiM(100, arguments.backbone),
        "patchcore": lambda: models.PatchCore(0.01, arguments.backbone),
    }[method]()
    made.fit([(batch, 0) for batch in images.batches(1)])
    score: Callable[[Tensor], Scores] = made.forward
    return score


def use_local_weights(weights: Path) -> None:
    """Have timm and torchvision read the file wherever a peer asks for pretrained weights."""
    create = timm.create_model

    def create_local(name: str, *given: object, **options: Any) -> Any:  # noqa: ANN401
        if options.get("pretrained"):
            options["pretrained_cfg_overlay"] = {"file": str(weights)}
        return create(name, *given, **options)

    timm.create_model = create_local
    import torchvision.models
    from safetensors.torch import load_file

    build = torchvision.models.resnet18

    def build_local(**_: object) -> Any:  # noqa: ANN401
        model = build()
        # The file may have only the layers that are used.
        model.load_state_dict(load_file(weights), strict=False)
        return model

    torchvision.models.resnet18 = build_local


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", help="anomalib:padim, anomalib:cfa, ind_knn_ad:spade, ...")
    parser.add_argument("folder", type=Path, help="MVTec layout")
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--source", type=Path, help="checkout of ind_knn_ad")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--images", type=int, help="training images at most")
    parser.add_argument("--epochs", type=int, default=30, help="of CFA")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    arguments.at_once = 1 if arguments.method.startswith("ind_knn_ad") else _BATCH
    return arguments


if __name__ == "__main__":
    main()
