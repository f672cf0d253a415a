"""status tells from the files alone what is done, failed and pending, running or dead."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import score, status
from tests.conftest import LOCAL, TINY_FLAGS, output_files
from tests.jobs.test_bad_input import JPEG


def test_a_finished_run_is_all_done(scores: Path, model: Path, patchlake):
    result = patchlake("status", scores, "--json")
    assert result.code == 0
    (run,) = json.loads(result.out)
    assert run["verb"] == "score"
    assert run["state"] == "finished"
    assert (run["fragments"], run["done"], run["failed"], run["pending"]) == (6, 6, 0, 0)
    assert run["images"] == run["images_done"] == 44
    assert (run["where"], run["exit_code"]) == (None, 0)
    assert run["run"] in patchlake("status", scores).out
    (run,) = json.loads(patchlake("status", model, "--json").out)
    assert (run["verb"], run["state"], run["done"]) == ("fit", "finished", 6)


def test_what_a_dead_run_left_is_pending(images: Path, model: Path, tmp_path: Path, tiny: Settings):
    summary = score.run(str(images), str(model), str(tmp_path), tiny, LOCAL)
    # What a killed driver leaves: parts missing, and no summary.
    for part in summary.parts[:2]:
        (tmp_path / part).unlink()
    next(tmp_path.glob("_runs/*/summary.json")).unlink()
    (run,) = status.read(str(tmp_path))
    assert (run.state, run.exit_code, run.done, run.pending) == ("dead", None, 4, 2)
    here = {socket.gethostname(): 6}
    assert summary.nodes == {"decode": here, "infer": here, "publish": here}


def test_a_failed_fragment_is_listed_with_its_error_and_tried_again(
    images: Path, model: Path, tmp_path: Path, patchlake
):
    # A file in the place of a folder: the heatmaps of one fragment cannot be written.
    lake = tmp_path / "images"
    lake.mkdir()
    for name in ("a", "b"):
        rows = {"image_id": [name], "image": [JPEG], "group": ["woven_cloth"]}
        pq.write_table(pa.table(rows), lake / f"{name}.parquet")
    scores = tmp_path / "scores"
    command = ("score", lake, model, scores, *TINY_FLAGS)
    assert patchlake(*command).code == 0
    lost = next(scores.glob("version=*/*.parquet"))
    key = lost.stem.rpartition("-")[2]
    lost.unlink()
    for picture in (scores / "_heatmaps" / key).iterdir():
        picture.unlink()
    (scores / "_heatmaps" / key).rmdir()
    (scores / "_heatmaps" / key).write_text("in the way")
    result = patchlake(*command)
    assert result.code == 3
    assert key in result.err
    (run,) = json.loads(patchlake("status", scores, "--json").out)
    assert (run["done"], run["failed"], run["pending"]) == (1, 1, 0)
    assert run["exit_code"] == 3
    assert "publish" in run["failures"][key]
    (scores / "_heatmaps" / key).unlink()
    assert patchlake(*command).code == 0
    assert json.loads(patchlake("status", scores, "--json").out)[0]["failed"] == 0


@pytest.mark.slow
def test_sigterm_stops_with_exit_code_4_and_the_same_command_goes_on(
    images: Path, model: Path, scores: Path, tmp_path: Path
):
    command = [
        *(sys.executable, "-m", "patchlake", "score", str(images), str(model), str(tmp_path)),
        *TINY_FLAGS,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("version=*/**/*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 4), err
    if process.returncode == 4:
        assert "goes on from here" in err
    subprocess.run(command, check=True, capture_output=True)
    assert output_files(tmp_path) == output_files(scores)


def test_the_exit_code_does_not_depend_on_when_the_job_was_stopped(
    images: Path, model: Path, tmp_path: Path, patchlake
):
    lake = tmp_path / "images"
    lake.mkdir()
    for name, content in (("a", b"no image"), ("b", JPEG)):
        rows = {"image_id": [name], "image": [content], "group": ["woven_cloth"]}
        pq.write_table(pa.table(rows), lake / f"{name}.parquet")
    scores = tmp_path / "scores"
    command = ("score", lake, model, scores, *TINY_FLAGS)
    assert patchlake(*command).code == 3
    # Nothing is left to do, and one of two images is still an error row.
    again = patchlake(*command)
    assert (again.code, "1 of 2 images are error rows" in again.err) == (3, True)
    # As if killed after the first part, whose row is the error.
    rows = {path: pq.ParquetFile(path).read() for path in scores.glob("version=*/*.parquet")}
    [good] = [path for path, table in rows.items() if table.column("status")[0].as_py() == "ok"]
    good.unlink()
    next(scores.glob("_runs/*/summary.json")).unlink()
    resumed = patchlake(*command)
    assert resumed.code == 3
    summary = json.loads(next(scores.glob("_runs/*/summary.json")).read_text())
    assert (summary["statuses"], summary["earlier_statuses"]) == ({"ok": 1}, {"unreadable": 1})
