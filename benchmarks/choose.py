r"""Inputs chosen by synthetic defects, beside what the real ones say.

    python benchmarks/choose.py FOLDER WORK --every 3 --seeds 0 1 2

FOLDER has one product in MVTec layout. The candidates of `patchlake choose` are compared as it
does, on good training photos alone, once for each seed; then each is fitted on one photo of so many
of the training photos and scores one of so many of each label of the test photos. A line for each
candidate: image AUROC, pixel AUROC and AUPRO on synthetic defects (means over the seeds, and the
standard deviation of the mean of the three), then on the real ones, and milliseconds of processor
time an image. Then Spearman's correlation of the two orders, what is recommended, and what it gains
on the real defects beside the first candidate and lacks beside the best.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from shapes import share_of

import patchlake
from patchlake.pipeline.driver import choose
from patchlake.pipeline.driver.execution import Execution

METRICS = ("image_auroc", "pixel_auroc", "aupro")


def main(words: Sequence[str] | None = None) -> None:
    """Compare the candidates twice, and print both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--every", type=int, default=1, help="one photo of so many")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="settings of all candidates")
    arguments = parser.parse_args(words)
    shutil.rmtree(arguments.work, ignore_errors=True)
    lake = arguments.work / "lake"
    share_of(arguments.folder, arguments.work / "photos", arguments.every)
    patchlake.ingest(arguments.work / "photos", lake, group=arguments.folder.name)
    settings = patchlake.load_settings(assignments=arguments.set)
    repeated = [
        choose.run(str(lake), settings, Execution("local", None), seeds=[seed]).trials
        for seed in arguments.seeds
    ]
    print("| inputs | synthetic: | | | mean | real: | | | mean | ms |")
    print(f"|{'---|' * 10}", flush=True)
    synthetic, real = [], []
    for candidate in zip(*repeated, strict=True):
        found = np.array([[getattr(one, metric) for metric in METRICS] for one in candidate])
        merits = np.array([one.merit for one in candidate])
        synthetic.append(merits.mean())
        true = _real(candidate[0], lake, arguments.work, settings)
        real.append(true.mean())
        spread = merits.std(ddof=1) if len(merits) > 1 else 0.0
        spent = np.mean([one.seconds_per_image for one in candidate]) * 1000
        height, width = candidate[0].inputs
        print(
            f"| {candidate[0].name}, {width} x {height} | {_told(found.mean(axis=0))} "
            f"| {merits.mean():.3f} +- {spread:.3f} | {_told(true)} | {true.mean():.3f} "
            f"| {spent:.0f} |",
            flush=True,
        )
    names = [one.name for one in repeated[0]]
    print(f"Spearman's correlation of the means: {spearmanr(synthetic, real).statistic:.2f}")
    for seed, trials in zip(arguments.seeds, repeated, strict=True):
        chosen = names.index(choose.recommended(trials).name)
        print(
            f"seed {seed}: {names[chosen]}; on real defects {real[chosen] - real[0]:+.3f} beside "
            f"{names[0]}, {real[chosen] - max(real):+.3f} beside {names[int(np.argmax(real))]}",
            flush=True,
        )


def _real(trial: choose.Trial, lake: Path, work: Path, settings: patchlake.Settings) -> np.ndarray:
    model, scores = work / "model", work / "scores"
    for folder in (model, scores):
        shutil.rmtree(folder, ignore_errors=True)
    image = settings.image.model_validate(dict(trial.image))
    score = settings.score.model_copy(update={"heatmaps": "none"})
    settings = settings.model_copy(update={"image": image, "score": score})
    patchlake.fit(lake, model, settings=settings)
    patchlake.score(lake, model, scores, settings=settings, where="split = 'test'")
    (metrics,) = patchlake.evaluate(lake, scores, settings=settings).values()
    return np.array([metrics[metric] for metric in METRICS], np.float64)  # type: ignore[literal-required]


def _told(values: np.ndarray) -> str:
    return " | ".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    main()
