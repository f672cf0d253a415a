"""`import patchlake`: the verbs as functions, a table as a dataset, and a model in memory."""

import doctest
import inspect
import io
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

import patchlake
from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import library
from patchlake.pipeline.driver.library import models, scores, verdicts
from patchlake.pipeline.scores.heatmap import to_jpeg
from tests.conftest import TINY, by_place, read_scores

GROUP = "woven_cloth"


@pytest.fixture(scope="session")
def chosen() -> Settings:
    return patchlake.settings(**TINY)


def test_the_names_are_these():
    assert patchlake.__all__ == [
        *("Comparison", "ConfigError", "Detection", "Detector", "DiskFull", "FileDamaged"),
        *(
            "FragmentsFailed",
            "Ingested",
            "InputChanged",
            "Manifest",
            "Metrics",
            "ModelError",
            "Observer",
        ),
        *("PatchlakeError", "Report", "Reviewed", "RunStatus", "ScoredImage", "Settings"),
        *("StorageError", "StorageRefused", "Summary", "TableError", "WorkersLost", "Worst"),
        *("choose", "compact", "drift", "evaluate", "fit", "ingest", "load", "load_settings"),
        *("mutual", "open_scores", "parts", "picture", "report", "review", "score", "settings"),
        *("status", "update", "withdraw", "worst"),
    ]
    assert dir(patchlake) == patchlake.__all__
    for name in patchlake.__all__:
        found = getattr(patchlake, name)
        assert inspect.getdoc(found), name
    with pytest.raises(AttributeError, match="no attribute 'scor'"):
        _ = patchlake.scor


def test_an_import_loads_nothing_and_says_nothing(tmp_path: Path):
    code = (
        "import sys, logging, patchlake; "
        "print([m for m in ('numpy', 'torch', 'pyarrow', 'ray') if m in sys.modules]); "
        "print(logging.getLogger().handlers)\n"
        f"try: patchlake.status({str(tmp_path)!r})\n"
        "except patchlake.ConfigError as error: print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]", "refused"]
    assert done.stderr == ""


def by_image(table: Path) -> dict[str, dict[str, object]]:
    """Rows but for what names files and models, which differ with their times."""
    rows = read_scores(table).drop_columns(["source_path", "heatmap_path"]).to_pylist()
    return {str(row["image_id"]): row for row in rows}


class Watching:
    """An observer of a caller's own."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}

    def task(self, what, total, unit, note=None):
        del unit, note
        watching = self

        class Task:
            def __enter__(self):
                watching.seen[what] = [0, total]
                return self

            def __call__(self, more: int) -> None:
                watching.seen[what][0] += more

            def __exit__(self, *_):
                return None

        return Task()


def test_the_whole_way_is_that_of_the_commands(
    pictures: Path, scores: Path, tmp_path: Path, chosen: Settings, capfd, caplog
):
    watching = Watching()
    lake, model, table = tmp_path / "images", tmp_path / "model", tmp_path / "scores"
    with caplog.at_level(logging.INFO):
        handlers = list(logging.getLogger("patchlake").handlers)
        came = patchlake.ingest(pictures, lake, settings=chosen, observer=watching)
        manifest = patchlake.fit(lake, model, settings=chosen, observer=watching)
        summary = patchlake.score(lake, model, table, settings=chosen, observer=watching)
        metrics = patchlake.evaluate(lake, table, observer=watching)
        assert logging.getLogger("patchlake").handlers == handlers
    assert capfd.readouterr() == ("", "")
    assert (came.images, came.skipped) == (44, ())
    assert list(manifest.groups) == list(metrics)
    assert (summary.images, summary.exit_code) == (44, 0)
    done = {what: counted[0] for what, counted in watching.seen.items()}
    assert done["ingest"] == done["score"] == 44
    assert all(reached == total for reached, total in watching.seen.values())
    own, theirs = by_image(table), by_image(scores)
    assert own == theirs
    assert [run.state for run in patchlake.status(table)] == ["finished"]
    files = patchlake.compact(table, tmp_path / "compacted")
    assert patchlake.open_scores(tmp_path / "compacted").count_rows() == 44
    assert files


def test_what_a_job_did_goes_with_its_error(images: Path, tmp_path: Path, chosen: Settings):
    lake = tmp_path / "images"
    for file in images.rglob("*.parquet"):
        table = pq.read_table(file)
        broken = pa.array([b"no image", *table.column("image").to_pylist()[1:]], pa.large_binary())
        at = table.schema.get_field_index("image")
        broken = broken.cast(table.schema.field(at).type)
        (lake / file.relative_to(images)).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            table.set_column(at, table.schema.field(at), broken), lake / file.relative_to(images)
        )
    model = tmp_path / "model"
    patchlake.fit(images, model, settings=chosen)
    with pytest.raises(patchlake.FragmentsFailed, match="error rows") as failed:
        patchlake.score(lake, model, tmp_path / "scores", settings=chosen)
    assert isinstance(failed.value.result, patchlake.Summary)
    assert failed.value.result.statuses["unreadable"] == 2


def test_scores_are_a_dataset(scores: Path, model: Path):
    dataset = patchlake.open_scores(scores)
    expected = read_scores(scores)
    assert dataset.count_rows() == len(expected)
    rows = dataset.to_table(
        columns=["image_id", "image_score", "g", "version"], filter=pc.field("group") == GROUP
    )
    assert len(rows) == 22
    frame = rows.to_pandas()
    assert frame.image_score.notna().all()
    version = next(scores.glob("version=*")).name.partition("=")[2]
    assert set(frame.version) == {version}
    assert patchlake.open_scores(scores, version=version).count_rows() == len(expected)
    with pytest.raises(patchlake.ConfigError, match="has no version 'abc'"):
        patchlake.open_scores(scores, version="abc")
    with pytest.raises(patchlake.ConfigError, match="holds no part"):
        patchlake.open_scores(model)


@pytest.fixture(scope="session")
def detector(model: Path) -> patchlake.Detector:
    return patchlake.load(model, threads=1)


@pytest.fixture(scope="session")
def rows_of(pictures: Path, scores: Path) -> list[tuple[Path, dict[str, object]]]:
    """Each picture of a group, and its row."""
    named = {str(row["image_id"]): row for row in by_place(scores).values()}
    found = [(pictures / f"{image_id}", row) for image_id, row in sorted(named.items())]
    return [(path, row) for path, row in found if row["group"] == GROUP]


def test_a_model_in_memory_says_what_the_job_says(
    detector: patchlake.Detector, rows_of, scores: Path
):
    paths = [path for path, _ in rows_of]
    assert detector.groups == sorted({"woven_cloth", *detector.groups})
    found = detector.score(paths, group=GROUP)
    for one, (_, row) in zip(found, rows_of, strict=True):
        assert one.status == "ok"
        assert one.image_score == row["image_score"]
        assert (one.width, one.height) == (row["width"], row["height"])
        assert one.anomaly_map.shape == (row["map_height"], row["map_width"])
        assert one.anomaly_map.ravel().tolist() == row["anomaly_map"]
        assert (one.threshold, one.is_anomalous) == (row["threshold"], row["is_anomalous"])
        drawn = (scores / row["heatmap_path"]).read_bytes()
        assert to_jpeg(np.asarray(one.heatmap())) == drawn


def test_pictures_pixels_and_bytes_are_the_same_image(detector: patchlake.Detector, rows_of):
    path, row = rows_of[0]
    picture = Image.open(path)
    images = [path, str(path), path.read_bytes(), picture, np.asarray(picture.convert("RGB"))]
    found = detector.score(images, group=GROUP)
    assert {one.image_score for one in found} == {row["image_score"]}
    # A generator of one is enough.
    (alone,) = detector.score((image for image in images[-1:]), group=GROUP)
    assert alone.image_score == row["image_score"]
    assert detector.score([], group=GROUP) == []


@pytest.mark.parametrize(
    ("image", "status", "message"),
    [
        (b"no image", "unreadable", ""),
        ("/nonexistent/a.png", "missing", "there is no file"),
        (np.zeros((4, 4), np.float32), "unsupported", "float32"),
        (np.zeros((4, 4, 2), np.uint8), "unsupported", r"\(4, 4, 2\)"),
        (np.zeros((0, 4), np.uint8), "unsupported", r"\(0, 4\)"),
    ],
)
def test_one_bad_image_is_a_row(detector: patchlake.Detector, rows_of, image, status, message):
    path, row = rows_of[0]
    bad, good = detector.score([image, path], group=GROUP)
    assert bad.status == status
    assert bad.image_score is bad.anomaly_map is bad.is_anomalous is None
    with pytest.raises(patchlake.ConfigError, match="no heatmap"):
        bad.heatmap()
    assert good.image_score == row["image_score"]
    assert re.search(message, bad.error)


def test_a_group_has_to_be_known(detector: patchlake.Detector, rows_of):
    path, _ = rows_of[0]
    with pytest.raises(patchlake.ConfigError, match="name one of them"):
        detector.score([path])
    with pytest.raises(patchlake.ConfigError, match="'tile' is none of them"):
        detector.score([path], group="tile")


@pytest.fixture
def here(pictures: Path, tmp_path: Path, chosen: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the examples find, at work in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pictures, "pictures")
    patchlake.ingest("pictures", "images")
    patchlake.fit("images", "model", settings=chosen)
    patchlake.score("images", "model", "scores")
    return tmp_path


def examples() -> list[doctest.DocTest]:
    """Of the functions."""
    finder, names = doctest.DocTestFinder(), {"patchlake": patchlake}
    found = [one for home in (models, scores, verdicts) for one in finder.find(home, globs=names)]
    return [one for one in found if one.examples]


def test_the_examples_are_true(here: Path):
    (quick,) = re.findall(r">>> (quick = .*?\n    \.\.\. \})", library.__doc__, re.DOTALL)
    names: dict[str, object] = {}
    exec(quick.replace("    ... ", ""), names)
    # A withdrawal changes the model that others load.
    for example in sorted(examples(), key=lambda one: one.name.endswith("withdraw")):
        example.globs.update(quick=names["quick"])
        report = io.StringIO()
        failed, _ = doctest.DocTestRunner().run(example, out=report.write)
        assert not failed, report.getvalue()


def test_every_function_has_an_example():
    functions = {n for n in patchlake.__all__ if inspect.isfunction(getattr(patchlake, n))}
    named = {one.name.rpartition(".")[2] for one in examples()}
    assert named == functions - {"load_settings"}
    assert len(named) == 19


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its cells one after the other, as a kernel would; it draws, fits and scores for itself."""
    notebook = Path(__file__).parents[1] / "examples" / "from_pictures_to_defects.ipynb"
    cells = json.loads(notebook.read_text())["cells"]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            # Outputs are made by whoever runs it, and are not kept.
            assert not cell["outputs"]
    found = names["found"]
    assert isinstance(found, patchlake.Detection)
    # The photo, and its strip of one to four lines.
    assert found.heatmap().width == 256
    assert found.heatmap().height - 256 in (20, 40, 60, 80)
    # Of an untrained network: how good they are says nothing.
    assert set(names["metrics"]) == {"brushed_plate", "woven_cloth"}
