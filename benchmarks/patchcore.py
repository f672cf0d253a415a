r"""PatchCore by `patchlake score` and `fit`, and by anomalib, on the same images, in turns.

    python benchmarks/patchcore.py IMAGES MODEL WORK --weights resnet18.safetensors \
        --anomalib SITE --rounds 5

IMAGES is a table that `patchlake ingest` has written, MODEL its PatchCore with ResNet-18's layers 2
and 3 and this file of weights; WORK gets the images as files, and the rows of MODEL's memory bank,
which anomalib searches, too. SITE is a folder with anomalib and what it needs.

    patchlake   the commands, from start to end: `score` reads the table, and writes a score table
                and, unless told otherwise, heatmaps
    model       anomalib's torch model, without Lightning, which writes nothing
    engine      anomalib's Engine.predict, without and with pictures

The fit of anomalib stops after `--picks` of its coreset, each of which takes as long as the others;
the time of its selection is scaled up to all, which the table marks with "~". Seconds are of whole
processes, imports included; memory is of all processes together (`processes.py`).
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
from processes import Ran, environment, in_turns, medians

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.groups.loading import load_bank_rows
from patchlake.pipeline.model_store.models import read_manifest
from patchlake.pipeline.storage.folder import Folder

_HERE = Path(__file__).resolve().parent
_SOURCE = _HERE.parent / "src"

Commands = dict[str, tuple[Sequence[str], Mapping[str, str]]]


def main() -> None:
    """Write what anomalib reads, run all in turns, and print a line for each."""
    arguments = _arguments()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    images = _write_pictures(arguments.images, arguments.work)
    rows = _write_bank(arguments.model, arguments.work / "bank.npy")
    commands = _scores(arguments) | _fits(arguments)
    found = in_turns(commands, arguments.rounds, check=_removing(arguments.work / "out"))
    print(f"{images['all']} images, {rows} bank rows; fit of {images['train']} images")
    for name, runs in found.items():
        _show(name, runs, images["train" if name.endswith("fit") else "all"])


def _show(name: str, runs: Sequence[Ran], images: int) -> None:
    seconds, peak = medians(runs)
    mark, said = " ", ""
    if name.startswith("anomalib"):
        said = runs[-1].output.splitlines()[-1]
        took = json.loads(said)
        if "more_s" in took:
            mark = "~"
            seconds += took["more_s"]
    every = " ".join(f"{one.seconds:.1f}" for one in runs)
    print(
        f"{name:<28} {mark}{seconds:7.1f} s {mark}{images / seconds:6.1f} images/s {peak:6.0f} MiB"
        f"  (s: {every}) {said}"
    )


def _scores(arguments: argparse.Namespace) -> Commands:
    commands: Commands = {}
    for heatmaps in ("all", "none"):
        words = ["score", arguments.images, arguments.model, arguments.work / "out"]
        words += ["--weights", arguments.weights, "--heatmaps", heatmaps]
        commands[f"patchlake, heatmaps {heatmaps}"] = _patchlake(words)
    bank = ["--bank", arguments.work / "bank.npy"]
    return commands | {
        "anomalib model": _anomalib(arguments, "model", "all", bank),
        "anomalib engine": _anomalib(arguments, "engine", "all", bank),
        "anomalib engine, pictures": _anomalib(arguments, "engine", "all", [*bank, "--pictures"]),
    }


def _fits(arguments: argparse.Namespace) -> Commands:
    if arguments.no_fit:
        return {}
    words = ["fit", arguments.images, arguments.work / "out", "--weights", arguments.weights]
    words += ["--set", "backbone.name=resnet18"]
    picks = ["--picks", arguments.picks]
    return {
        "patchlake fit": _patchlake(words),
        "anomalib fit": _anomalib(arguments, "fit", "train", picks),
    }


def _patchlake(words: Sequence[object]) -> tuple[Sequence[str], Mapping[str, str]]:
    command = [sys.executable, "-m", "patchlake", *map(str, words), "--runner", "local"]
    return command, environment(_SOURCE)


def _anomalib(
    arguments: argparse.Namespace, way: str, pictures: str, options: Sequence[object]
) -> tuple[Sequence[str], Mapping[str, str]]:
    words = [_HERE / "patchcore_anomalib.py", way, arguments.work / pictures, *options]
    command = [sys.executable, *map(str, words), "--weights", str(arguments.weights)]
    return command, environment(arguments.anomalib)


def _write_pictures(images: Path, work: Path) -> dict[str, int]:
    """Write all images as files, and those of a fit once more; return how many there are."""
    rows = ds.dataset(images).to_table(columns=["image_id", "image", "split", "label"])
    count = {"all": 0, "train": 0}
    for folder in count:
        (work / folder).mkdir()
    for number, row in enumerate(rows.to_pylist()):
        is_trained = row["split"] == "train" and row["label"] == "good"
        for folder in ("all", "train") if is_trained else ("all",):
            ending = Path(row["image_id"]).suffix
            (work / folder / f"{number:06}{ending}").write_bytes(row["image"])
            count[folder] += 1
    return count


def _write_bank(model: Path, path: Path) -> int:
    """Write the rows of the one group's memory bank; return how many there are."""
    folder = Folder.at(str(model), StorageSettings())
    (record,) = read_manifest(folder).groups.values()
    rows = load_bank_rows(folder, record)
    if rows is None:
        raise SystemExit(f"{model} has no memory bank: it is not PatchCore")
    np.save(path, rows)
    return len(rows)


def _removing(out: Path) -> Callable[[str], None]:
    return lambda _: shutil.rmtree(out, ignore_errors=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path, help="is emptied")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--anomalib", type=Path, required=True, help="folder of the peer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--picks", type=int, default=100, help="of anomalib's coreset")
    parser.add_argument("--no-fit", action="store_true", help="only score")
    return parser.parse_args()


if __name__ == "__main__":
    main()
