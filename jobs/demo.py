"""demo: the whole way on synthetic products, from a folder of pictures to metrics and a page."""

import os
from pathlib import Path
from typing import Annotated

import typer

from patchlake.jobs import evaluate, fit, ingest, options, report, score
from patchlake.jobs.console import log, say
from patchlake.pipeline.errors import ConfigError

# 2 products of 60 + 20 + 3 x 12 images: what `write_products` draws.
_IMAGES = 232
# Each imports scipy first, which takes as long as some ten images.
_MOST_PROCESSES = 8
# Of 60 images the default, a hundredth of all patches, is a bank of 470 rows. With it the plate has
# an image AUROC of 0.949 in float32, and with this 0.961.
_BANK = "method.coreset_fraction=0.05"


def demo(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where everything goes.")] = Path(
        "demo"
    ),
    runner: options.RunnerChoice = "auto",
    address: options.Address = None,
) -> None:
    """Make synthetic product images, then ingest, fit, score, evaluate and report on them."""
    from patchlake.pipeline.images.synthetic import write_products

    execution = options.execution(runner, address).chosen(_IMAGES)
    pictures, images, model, scores = (
        str(folder / name) for name in ("pictures", "images", "model", "scores")
    )
    if not Path(pictures).exists():
        log.info("drawing two synthetic products into %s", pictures)
        processes = min(_MOST_PROCESSES, os.cpu_count() or 1)
        write_products(Path(pictures), seed=0, processes=processes)
    # One Ray for all of them, if it is Ray.
    with execution.start(None):
        ingest.ingest(pictures, images, runner=execution.runner, address=address)
        fit.fit(
            *(images, model),
            overwrite=True,
            assignments=[_BANK],
            runner=execution.runner,
            address=address,
        )
        # Pictures of the good ones, too, to compare with.
        score.score(
            *(images, model, scores),
            heatmaps="all",
            runner=execution.runner,
            address=address,
        )
        evaluate.evaluate(images, scores)
    _show_paths(folder, scores)
    # Its path is the last line.
    report.report(scores, str(folder / "report.html"))


def _show_paths(folder: Path, scores: str) -> None:
    import pyarrow.parquet as pq

    say(f"images:   {folder / 'images'}/**/*.parquet")
    say(f"scores:   {scores}/version=*/**/*.parquet")
    found = sorted(Path(scores).glob("version=*/**/*.parquet"))
    if not found:
        raise ConfigError(f"{scores} holds no part")
    columns = ["image_id", "image_score", "p_value", "heatmap_path"]
    rows = [row for path in found for row in pq.ParquetFile(path).read(columns=columns).to_pylist()]
    # The worst image of each folder: of each defect of each product, and of the good ones if one of
    # them is anomalous.
    drawn = [row for row in rows if row["heatmap_path"]]
    worst = {str(Path(row["image_id"]).parent): row for row in sorted(drawn, key=_image_score)}
    say("heatmaps worth opening:")
    for _, row in sorted(worst.items()):
        judged = f"score {row['image_score']:.2f}  p {row['p_value']:.3f}"
        say(f"  {scores}/{row['heatmap_path']}  {row['image_id']}  {judged}")


def _image_score(row: dict[str, float | None]) -> float:
    return row["image_score"] or 0
