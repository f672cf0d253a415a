r"""The loop: three mornings of 50 reviews, and what the model has learnt of them.

    python benchmarks/loop.py IMAGES WORK --draws 3

IMAGES is an images table of one group, with labels. Its look-alike parts are dealt at random: from
some come `--good` training images, three of a part at the most; a third of the others is fresh,
never reviewed and never trained on; the rest are three nights of good images with one defective
image in ten. Each night is scored, the 50 images with the highest scores are reviewed as their
labels say, and the model learns: `fit --update --reviews`.

Printed is, after each morning, on the fresh images: the rate that is promised, the share of good
ones that are called anomalous (each part counts once), the share of defective ones that are, and
image AUROC. So it is for the model that learns nothing, for an update with the same images as
labelled good ones, which judges the model by them as well, and for a fit of all of them.
"""

import argparse
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from PIL import Image

import patchlake
from patchlake.pipeline.evaluation.roc import auroc
from patchlake.pipeline.images.thumbnails import thumbnail
from patchlake.pipeline.maths.likeness import look_alikes

_NIGHTS, _REVIEWS, _SHOTS = 3, 50, 3
_COLUMNS = ("image_id", "source_path", "source_row", "image_score", "is_anomalous")


def main(words: Sequence[str] | None = None) -> None:
    """Print a line for each draw, morning and model, and then the means over the draws."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--good", type=int, default=60)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--method", default="patchcore")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--models", nargs="+", default=["loop", "update", "refit"])
    arguments = parser.parse_args(words)
    flags = {"method": {"name": arguments.method}, "score": {"heatmaps": "none"}}
    flags["verdict"] = {"false_alarm_rate": arguments.rate}
    settings = patchlake.load_settings(flags=flags)
    table = ds.dataset(arguments.images, partitioning=None).to_table().sort_by("image_id")
    parts = _parts(table)
    every: dict[tuple[int, str], list[dict[str, float]]] = {}
    for draw in range(arguments.draws):
        dealt = _deal(table, parts, arguments.good, draw)
        loop = Loop(table, parts, dealt, arguments.work.resolve() / f"draw-{draw}", settings)
        for (morning, name), found in loop.run(arguments.models):
            print(f"draw {draw}, {_line(morning, name, [found])}", flush=True)
            every.setdefault((morning, name), []).append(found)
    for (morning, name), some in every.items():
        print(f"mean,   {_line(morning, name, some)}")


def _line(morning: int, name: str, found: Sequence[Mapping[str, float]]) -> str:
    mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
    return (
        f"morning {morning}, {name:<7}: {mean['learnt']:>3.0f} learnt, promised "
        f"{mean['promised']:.3f}, good ones called {mean['false_alarms']:.3f}, defective ones "
        f"{mean['recall']:.3f}, image AUROC {mean['auroc']:.4f}"
    )


def _parts(table: pa.Table) -> np.ndarray:
    """Return of each image the number of its look-alike part."""
    seen = []
    for content in table.column("image"):
        with Image.open(io.BytesIO(content.as_py())) as image:
            pixels = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        seen.append(thumbnail(np.asarray(pixels)).ravel())
    return np.asarray(look_alikes(np.stack(seen)))


def _deal(table: pa.Table, parts: np.ndarray, good: int, draw: int) -> dict[str, np.ndarray]:
    """Return the rows of each set: `train`, `fresh`, and the nights, which have few defects."""
    random = np.random.default_rng(draw)
    is_good = np.array(table.column("label").to_pylist(), object) == "good"
    names, train = list(random.permutation(np.unique(parts))), list[int]()
    while len(train) < good:
        shots = np.flatnonzero((parts == names.pop()) & is_good)
        train += shots[:_SHOTS].tolist()[: good - len(train)]
    fresh, others = np.split(np.array(names), [len(names) // 3])
    dealt = {"train": np.array(train), "fresh": np.flatnonzero(np.isin(parts, fresh))}
    for number, some in enumerate(np.array_split(others, _NIGHTS), 1):
        night = np.flatnonzero(np.isin(parts, some))
        goods, defects = night[is_good[night]], night[~is_good[night]]
        few = random.permutation(defects)[: len(goods) // 10]
        dealt[f"night{number}"] = np.sort(np.concatenate([goods, few]))
    return dealt


@dataclass
class Loop:
    """One draw: its lake, and the models that learn from its nights."""

    table: pa.Table
    parts: np.ndarray
    dealt: Mapping[str, np.ndarray]
    work: Path
    settings: patchlake.Settings
    reviews: list[dict[str, object]] = field(default_factory=list)
    # Rows of the table that are confirmed false alarms.
    learnt: set[str] = field(default_factory=set)

    def run(self, models: Sequence[str]) -> Iterable[tuple[tuple[int, str], dict[str, float]]]:
        """Yield what each model is worth after each morning."""
        lake, model = self.work / "images", self.work / "model"
        self._write(lake, frozenset())
        fitted = patchlake.fit(lake, model, settings=self.settings)
        if "update" in models:
            patchlake.fit(lake, self.work / "update", settings=self.settings)
        yield (0, "no loop"), self._worth(lake, model, fitted)
        for morning in range(1, _NIGHTS + 1):
            self._review(lake, model, f"night{morning}")
            learnt = patchlake.update(lake, model, reviews=self._csv(), settings=self.settings)
            yield (morning, "loop"), self._worth(lake, model, learnt)
            labelled = self.work / f"labelled-{morning}"
            self._write(labelled, frozenset(self.learnt))
            if "update" in models:
                updated = patchlake.update(labelled, self.work / "update", settings=self.settings)
                yield (morning, "update"), self._worth(labelled, self.work / "update", updated)
            if "refit" in models:
                refit = self.work / f"refit-{morning}"
                again = patchlake.fit(labelled, refit, settings=self.settings)
                yield (morning, "refit"), self._worth(labelled, refit, again)

    def _write(self, lake: Path, training: frozenset[str]) -> None:
        """Write the lake, in which some images of the nights are good ones to train on."""
        for name, rows in self.dealt.items():
            some = self.table.take(pa.array(rows))
            ids = some.column("image_id").to_pylist()
            trained = [name == "train" or image_id in training for image_id in ids]
            split = pa.array(["train" if one else "test" for one in trained])
            some = some.set_column(some.column_names.index("split"), "split", split)
            folder = lake / f"set={name}"
            folder.mkdir(parents=True, exist_ok=True)
            pq.write_table(some, folder / "images.parquet")

    def _scored(self, lake: Path, model: Path, name: str) -> list[dict[str, object]]:
        scores = self.work / f"scores-{model.name}-{lake.name}"
        where = f"set = '{name}'"
        patchlake.score(lake, model, scores, where=where, settings=self.settings)
        chosen = pc.starts_with(pc.field("source_path"), f"set={name}/")
        rows = patchlake.open_scores(scores).to_table(columns=list(_COLUMNS), filter=chosen)
        found: list[dict[str, object]] = rows.to_pylist()
        return found

    def _is_good(self) -> dict[str, bool]:
        columns = (self.table.column(name).to_pylist() for name in ("image_id", "label"))
        return {image_id: label == "good" for image_id, label in zip(*columns, strict=True)}

    def _review(self, lake: Path, model: Path, night: str) -> None:
        """Review the worst of a night, as their labels say."""
        is_good = self._is_good()
        rows = self._scored(lake, model, night)
        rows.sort(key=lambda row: (-float(str(row["image_score"])), str(row["image_id"])))
        for row in rows[:_REVIEWS]:
            image_id = str(row["image_id"])
            verdict = "good" if is_good[image_id] else "defective"
            self.reviews.append({"root": str(lake), "verdict": verdict, **row})
            if is_good[image_id] and row["is_anomalous"]:
                self.learnt.add(image_id)

    def _csv(self) -> Path:
        path = self.work / "reviews.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.reviews[0]))
            writer.writeheader()
            writer.writerows(self.reviews)
        return path

    def _worth(self, lake: Path, model: Path, manifest: patchlake.Manifest) -> dict[str, float]:
        rows = self._scored(lake, model, "fresh")
        is_good = self._is_good()
        part = dict(zip(self.table.column("image_id").to_pylist(), self.parts, strict=True))
        alarms: dict[int, list[bool]] = {}
        for row in rows:
            if is_good[str(row["image_id"])]:
                alarms.setdefault(part[row["image_id"]], []).append(bool(row["is_anomalous"]))
        defects = [bool(row["is_anomalous"]) for row in rows if not is_good[str(row["image_id"])]]
        values = np.array([row["image_score"] for row in rows], np.float64)
        labels = np.array([not is_good[str(row["image_id"])] for row in rows])
        (group,) = manifest.groups.values()
        smallest = float(group.facts["smallest_false_alarm_rate"])
        return {
            "learnt": group.images - len(self.dealt["train"]),
            "promised": max(smallest, self.settings.verdict.false_alarm_rate),
            "false_alarms": float(np.mean([np.mean(some) for some in alarms.values()])),
            "recall": float(np.mean(defects)),
            "auroc": auroc(values, labels) or 0.0,
        }


if __name__ == "__main__":
    main()
