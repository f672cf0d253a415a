r"""What an image costs in small and in large tables: `patchlake score` of 1,000 to 50,000 images.

    python benchmarks/scale.py IMAGES MODEL WORK --sizes 1000 10000 50000

IMAGES is a table that `patchlake ingest` has written. Tables of each size are made in WORK: its
rows again and again under new ids, in Parquet files of `--file-images`; 50,000 magnetic tiles take
2 GB. Each score is the whole command, its start included. Printed are images a second of each size,
those of what a size has beyond the one before (without start and end), MiB (`processes.py`), and
processor milliseconds an image, which other work on the machine hardly changes.
The curve is flat if the last size costs as much an image as the first.
"""

import argparse
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from processes import Ran, environment, in_turns, medians

_SOURCE = Path(__file__).resolve().parents[1] / "src"
# Rows of a row group: one fragment of a job.
_ROW_GROUP = 256


def main() -> None:
    """Make the tables, score them in turns, and print the curve."""
    arguments = _arguments()
    shutil.rmtree(arguments.work, ignore_errors=True)
    sizes = sorted(arguments.sizes)
    for size in sizes:
        _write_table(arguments, size)
    commands = {str(size): (_command(arguments, size), environment(_SOURCE)) for size in sizes}
    found = in_turns(
        commands, arguments.rounds, check=lambda name: shutil.rmtree(_scores(arguments, int(name)))
    )
    _show({size: found[str(size)] for size in sizes})


def _write_table(arguments: argparse.Namespace, size: int) -> None:
    """Write a table of so many rows, one hive folder for each that the original has."""
    written = 0
    for number, rows in enumerate(_repeated(arguments.images, arguments.file_images)):
        name, table = rows
        folder = _images(arguments, size) / name
        folder.mkdir(parents=True, exist_ok=True)
        some = table.slice(0, size - written)
        pq.write_table(some, folder / f"images-{number:06}.parquet", row_group_size=_ROW_GROUP)
        written += some.num_rows
        if written == size:
            return


def _repeated(images: Path, count: int) -> Iterator[tuple[Path, pa.Table]]:
    """Yield a hive folder and at most so many rows, the table over and over, under new ids."""
    files = sorted(images.glob("**/*.parquet"))
    turn = 0
    while True:
        for file in files:
            # Without the hive columns, which are in the path.
            table = pq.read_table(file, partitioning=None)
            column = table.column_names.index("image_id")
            ids = pa.array([f"{turn}/{one}" for one in table["image_id"].to_pylist()])
            renamed = table.set_column(column, table.schema.field(column), ids)
            for begin in range(0, len(renamed), count):
                yield file.parent.relative_to(images), renamed.slice(begin, count)
        turn += 1


def _show(found: dict[int, Sequence[Ran]]) -> None:
    print(
        f"{'images':>8} {'s':>8} {'images/s':>9} {'beyond the last':>16} {'MiB':>7} {'CPU ms':>7}"
    )
    before = (0, 0.0)
    per_image = []
    for size, runs in found.items():
        seconds, peak = medians(runs)
        beyond = (size - before[0]) / (seconds - before[1])
        used = statistics.median(one.processor_seconds for one in runs) / size * 1000
        told = (
            f"{size:8} {seconds:8.1f} {size / seconds:9.1f} {beyond:16.1f} {peak:7.0f} {used:7.1f}"
        )
        print(told)
        per_image.append(seconds / size)
        before = (size, seconds)
    print(f"an image of the last size costs {per_image[-1] / per_image[0]:.2f} of one of the first")


def _command(arguments: argparse.Namespace, size: int) -> list[str]:
    words = [_images(arguments, size), arguments.model, _scores(arguments, size)]
    words += ["--heatmaps", arguments.heatmaps, "--runner", arguments.runner]
    if arguments.weights:
        words += ["--weights", arguments.weights]
    return [sys.executable, "-m", "patchlake", "score", *map(str, words)]


def _images(arguments: argparse.Namespace, size: int) -> Path:
    folder: Path = arguments.work / f"images-{size}"
    return folder


def _scores(arguments: argparse.Namespace, size: int) -> Path:
    folder: Path = arguments.work / f"scores-{size}"
    return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path, help="is emptied")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 50_000])
    parser.add_argument("--file-images", type=int, default=1000)
    parser.add_argument("--weights", help="of the model's backbone, where they are not at hand")
    parser.add_argument("--heatmaps", choices=["all", "none"], default="all")
    parser.add_argument("--runner", choices=["local", "ray"], default="local")
    parser.add_argument("--rounds", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
