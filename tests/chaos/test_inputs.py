"""What is wrong with the input or with a stage: one image, one fragment, once or always."""

import hashlib
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import score, status
from patchlake.pipeline.errors import FragmentsFailed
from patchlake.pipeline.model_store.models import read_manifest
from patchlake.pipeline.storage.folder import Folder
from tests.chaos.checking import check_scores, check_what_is_there
from tests.chaos.conftest import FLAGS, PARTS, SCORED_AT, wait_for
from tests.conftest import LOCAL, by_place, output_files, soak


@pytest.mark.parametrize("what", ["image", "fragment"])
@pytest.mark.parametrize("times", [soak(2), None], ids=["twice", "always"])
def test_a_stage_that_raises(
    what: str,
    times: int | None,
    images: Path,
    model: Path,
    oracle: Path,
    tmp_path: Path,
    start,
    faults,
):
    [file] = (images / "g=woven_cloth").glob("*.parquet")
    if what == "image":
        content = pq.ParquetFile(file).read(columns=["image"]).column("image")[4].as_py()
        faults.plan(image=hashlib.sha256(content).hexdigest(), times=times)
    else:
        place = (str(file.relative_to(images)), 3)
        faults.plan(stage="infer", place=place, do="raise", times=times)
    command = ("score", images, model, tmp_path, *FLAGS, *SCORED_AT, "--runner", "local")
    code, said = start(*command).end()
    if times is None:
        assert code == 3, said
        [run] = status.read(str(tmp_path))
        assert (run.state, run.failed, run.done) == ("finished", 1, run.fragments - 1)
        assert "RuntimeError: injected" in next(iter(run.failures.values()))
        check_what_is_there(tmp_path, oracle)
        faults.plan()
        code, said = start(*command).end()
    assert code == 0, said
    check_scores(tmp_path, images, oracle)


@pytest.mark.parametrize("vanishes", [False, soak(True)], ids=["changes", "vanishes"])
def test_an_input_between_plan_and_read(
    vanishes: bool,
    images: Path,
    model: Path,
    oracle: Path,
    tmp_path: Path,
    start,
    faults,
    cut: Settings,
):
    """Its fragments fail, whole; none is read from the new file under the name of the old."""
    lake, scores = tmp_path / "images", tmp_path / "scores"
    shutil.copytree(images, lake)
    [other] = (lake / "g=woven_cloth").glob("*.parquet")
    faults.plan(slow={"infer": 0.3})
    command = ("score", lake, model, scores, *FLAGS, *SCORED_AT, "--runner", "local")
    job = start(*command)
    # The other group is first; at its second part this file is planned, and not read.
    wait_for(scores, PARTS, 2)
    if vanishes:
        other.unlink()
    else:
        # The same rows the other way round: nothing but the version tells.
        table = pq.ParquetFile(other).read()
        pq.write_table(table.take(list(reversed(range(len(table))))), other, row_group_size=5)
    code, said = job.end()
    assert code == 3, said
    assert ("vanished" if vanishes else "changed") + " since it was planned" in said
    [run] = status.read(str(scores))
    groups = {row["group"] for row in by_place(scores).values()}
    assert (run.state, groups) == ("finished", {"brushed_plate"})
    assert (run.failed, run.pending) == (run.fragments - run.done, 0)
    faults.plan()
    code, said = start(*command).end()
    assert code == 0, said
    expected = tmp_path / "expected"
    score.run(str(lake), str(model), str(expected), cut, LOCAL)
    found, wanted = output_files(scores), output_files(expected)
    # What a model was trained on stays, though its group has left the lake.
    assert wanted.items() <= found.items()
    others = [name for name in found if name not in wanted]
    assert len(others) == vanishes
    assert all(name.startswith("_models/") for name in others)


def test_an_input_that_changes_during_a_fit_leaves_its_group_out(
    images: Path, model: Path, tmp_path: Path, start, faults, cut: Settings
):
    lake, fitted = tmp_path / "images", tmp_path / "model"
    shutil.copytree(images, lake)
    [other] = (lake / "g=woven_cloth").glob("*.parquet")
    faults.plan(slow={"embed": 0.3})
    command = ("fit", lake, fitted, *FLAGS, *SCORED_AT, "--runner", "local")
    job = start(*command)
    wait_for(fitted, "_runs/*/partials/*.embeddings.arrow", 1)
    other.touch()
    code, said = job.end()
    assert code == 3, said
    assert list(read_manifest(Folder(str(fitted))).groups) == ["brushed_plate"]


def test_a_file_that_is_replaced_while_it_is_read_is_noticed(
    images: Path, model: Path, tmp_path: Path, cut: Settings, monkeypatch, read_here
):
    """In this process, so that the moment is exact: between the last byte and the check."""
    from patchlake.pipeline.lake import source

    lake = tmp_path / "images"
    shutil.copytree(images, lake)
    [other] = (lake / "g=woven_cloth").glob("*.parquet")
    original = source.group_rows

    def touching(file, fragment, columns, names):
        yield from original(file, fragment, columns, names)
        if fragment.path.endswith(other.name) and fragment.start == 0:
            other.touch()

    monkeypatch.setattr(source, "group_rows", touching)
    with pytest.raises(FragmentsFailed, match="changed since it was planned"):
        score.run(str(lake), str(model), str(tmp_path / "scores"), cut, LOCAL)
