r"""On a GPU: the infer stage beside the bare network, and the search of GPUs beside the exact one.

    python benchmarks/gpu.py IMAGES WORK \
        --weights wide_resnet50_2=wide_resnet50_2.safetensors resnet18=resnet18.safetensors

`--device cpu` with a few small images is a test of the script, and its speeds say nothing.

PatchCore is fitted on the normal images of IMAGES (an images table of one group), with a memory
bank of `--rows`. Then, with each network, in turns:

* stage: `Infer.score` of patchlake: pixels of bytes in memory to scores and anomaly maps, with all
  copies to the device and back, the patch embeddings and the search;
* bare: the forward pass of the same layers in bfloat16, of a batch of the same size that lies on
  the device. Nothing that computes these layers there is faster; the aim is 0.9 of it.

The search: `AcceleratedSearch` must give the rows and the distances of `ExactSearch` to the bit, of
patches of images that are not in the bank. Device memory is torch's peak of allocated bytes.
"""

import argparse
import copy
import os
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import torch
from features import extractor_of

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import fit
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.members import read_members
from patchlake.pipeline.features.extractor import gpu_batch
from patchlake.pipeline.groups.loading import load_bank_rows
from patchlake.pipeline.groups.member import Member
from patchlake.pipeline.headway import Passed
from patchlake.pipeline.images.files import decode_image
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.index.accelerated import AcceleratedSearch
from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.methods.patchcore import PatchCore
from patchlake.pipeline.stages.infer import Scorer
from patchlake.pipeline.storage.folder import Folder

# Different images in memory; more are the same again.
_DIFFERENT = 256
# Images whose patches are searched.
_SEARCHED = 16
_BUDGET = 2**33


@dataclass(frozen=True)
class Fitted:
    """A model, and pixels of its group's images that it was not fitted with."""

    member: Member
    group: str
    pixels: np.ndarray


def main(words: Sequence[str] | None = None) -> None:
    """Fit, measure and print, for each network."""
    arguments = _arguments(words)
    if arguments.device == "cpu":
        # patchlake takes a GPU wherever it sees one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device; --device cpu is a test of this script")
    for named in arguments.weights:
        name, _, weights = named.partition("=")
        fitted = _fit(arguments, name, weights)
        _show_speed(arguments, name, fitted)
        _show_search(arguments, name, fitted)


def _fit(arguments: argparse.Namespace, name: str, weights: str) -> Fitted:
    folder = arguments.work / name
    shutil.rmtree(folder, ignore_errors=True)
    settings = _settings(arguments, name, weights)
    fit.run(str(arguments.images), str(folder), settings, Execution("local"))
    member = read_members([Folder.at(str(folder), settings.storage)], settings)[0]
    group = next(iter(member.manifest.groups))
    rows = ds.dataset(arguments.images, partitioning=None).to_table(
        columns=["image"], filter=(ds.field("split") == "test") & (ds.field("group") == group)
    )
    encoded = rows["image"].slice(0, min(_DIFFERENT, arguments.count)).to_pylist()
    pixels = [member.geometry.apply(decode_image(one, Limits())) for one in encoded]
    return Fitted(member, group, np.stack(pixels))


def _settings(arguments: argparse.Namespace, name: str, weights: str) -> Settings:
    side = arguments.side
    flags = {
        "backbone": {"name": name, "weights": weights},
        "image": {"resize": [side, side]},
        # All patches, but for the cap.
        "method": {"coreset_fraction": 1.0, "max_bank_rows": arguments.rows},
    }
    return load_settings(flags=flags)


def _show_speed(arguments: argparse.Namespace, name: str, fitted: Fitted) -> None:
    repeated = np.resize(fitted.pixels, (arguments.count, *fitted.pixels.shape[1:]))
    geometries = (fitted.member.geometry,)
    scorer = Scorer([fitted.member], geometries, _BUDGET)
    infer = scorer.start(os.cpu_count() or 1)
    infer.score(repeated, fitted.group, Passed("infer", ""))
    memory = _device_memory(arguments)
    batch = gpu_batch((arguments.side, arguments.side))
    layers = fitted.member.manifest.backbone.layers
    network = copy.deepcopy(fitted.member.backbone(layers).network).to(torch.bfloat16)
    seconds = _in_turns(
        arguments,
        {
            "stage": lambda: infer.score(repeated, fitted.group, Passed("infer", "")),
            "bare": lambda: _forward(network, batch, arguments),
        },
    )
    stage, bare = (arguments.count / statistics.median(seconds[one]) for one in ("stage", "bare"))
    print(
        f"{name}: stage {stage:.1f} images/s, bare network {bare:.1f}, {stage / bare:.2f} of it, "
        f"{memory}"
    )


def _forward(network: torch.nn.Module, batch: int, arguments: argparse.Namespace) -> None:
    """Send as many images through the network as the stage is given, in full batches."""
    shape = (batch, 3, arguments.side, arguments.side)
    images = torch.zeros(shape, dtype=torch.bfloat16, device=arguments.device)
    images = images.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(-(-arguments.count // batch)):
            network(images)


def _in_turns(
    arguments: argparse.Namespace, calls: dict[str, Callable[[], object]]
) -> dict[str, list[float]]:
    """Return the seconds of each call in each round, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(arguments.rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if arguments.device != "cpu":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def _show_search(arguments: argparse.Namespace, name: str, fitted: Fitted) -> None:
    member = fitted.member
    layers = member.manifest.backbone.layers
    extractor = extractor_of(PatchCore(), name, member.weights, layers=layers)
    patches = extractor(fitted.pixels[:_SEARCHED])["patches"]
    queries = patches.reshape(-1, patches.shape[-1])
    bank = load_bank_rows(member.model, member.manifest.groups[fitted.group])
    assert bank is not None, "PatchCore has one"
    accelerated = AcceleratedSearch.over(bank, torch.device(arguments.device))
    exact = ExactSearch.over(bank)
    accelerated.nearest(queries, 1)
    begin = time.perf_counter()
    distances, rows = accelerated.nearest(queries, 1)
    between = time.perf_counter()
    expected, expected_rows = exact.nearest(queries, 1)
    end = time.perf_counter()
    milliseconds = [1e3 * took / len(patches) for took in (between - begin, end - between)]
    print(
        f"{name}: {len(queries)} queries in {len(bank)} rows: "
        f"{(rows != expected_rows).sum()} rows differ, {(distances != expected).sum()} distances, "
        f"by at most {np.abs(distances - expected).max():.1e}; accelerated "
        f"{milliseconds[0]:.2f} ms an image, exact {milliseconds[1]:.2f} ms on the CPU, "
        f"{_device_memory(arguments)}"
    )


def _device_memory(arguments: argparse.Namespace) -> str:
    if arguments.device == "cpu":
        return "no device memory"
    peak = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return f"{peak:.0f} MiB of the device at most"


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path, help="models of the same names in it are removed")
    parser.add_argument("--weights", nargs="+", required=True, metavar="NAME=FILE")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=int, default=10_000, help="of the memory bank")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--count", type=int, default=2048, help="images that are scored")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
