"""Whatever splits, labels and ids are called: what is trained on is said, and never evaluated."""

import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchlake.pipeline.driver import evaluate, fit, score, update
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.model_store.models import read_manifest
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY_FLAGS, by_place

Row = dict[str, object]
NAMES = ("image_id", "image", "group", "split", "label", "sha256")


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def row(seed: int, split: str | None, label: str | None, **other: object) -> Row:
    image = {"image_id": f"{seed}.png", "image": picture(seed), "group": "p"}
    return {**image, "split": split, "label": label, "sha256": None} | other


def write(path: Path, rows: Sequence[Row], without: Sequence[str] = ("sha256",)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {name: pa.binary() if name == "image" else pa.string() for name in NAMES}
    columns = {n: pa.array([r[n] for r in rows], kind) for n, kind in kinds.items()}
    pq.write_table(pa.table(columns).drop_columns(list(without)), path)
    return path.parent


def lake_of(folder: Path, train: str | None, test: str | None, good: str = "good") -> Path:
    rows = [row(n, train, good) for n in range(4)]
    rows += [row(10 + n, test, good) for n in range(2)] + [
        row(20 + n, test, "hole") for n in (0, 1)
    ]
    return write(folder / "a.parquet", rows)


def images_in(model: Path) -> int:
    return read_manifest(Folder(str(model))).groups["p"].images


@pytest.mark.parametrize(
    ("train", "test", "compared", "trained_on"),
    [
        ("Train", "Test", 4, 4),
        ("train", "validation", 4, 4),
        # All good ones are trained on: there is nothing to compare the defective ones with.
        (None, None, 2, 6),
    ],
)
def test_no_image_is_evaluated_that_was_trained_on(
    train, test, compared, trained_on, tmp_path: Path, tiny, patchlake
):
    lake, model, out = lake_of(tmp_path / "lake", train, test), tmp_path / "model", tmp_path / "out"
    fitted = patchlake("fit", lake, model, *TINY_FLAGS)
    assert fitted.code == 0, fitted.err
    assert f"group 'p': {trained_on} good images (label 'good')" in fitted.err
    score.run(str(lake), str(model), str(out), tiny, LOCAL)
    done = patchlake("evaluate", lake, out, "--json")
    found = json.loads(done.out)["groups"]["p"]
    assert (found["images"], found["trained_on"]) == (compared, trained_on)
    assert (found["image_auroc"] is None) == (compared == 2)
    assert ("no image AUROC" in done.err) == (compared == 2)
    assert f"{trained_on} that the model was trained on" in done.err


def test_a_copy_of_the_lake_and_a_model_that_is_gone_change_nothing(tmp_path: Path, tiny):
    lake, model = lake_of(tmp_path / "lake", None, "test"), tmp_path / "model"
    fit.run(str(lake), str(model), tiny, LOCAL)
    # Other files, other versions, other ids and splits: the same pictures.
    rows = pq.read_table(lake / "a.parquet").to_pylist()
    rows = [r | {"image_id": f"x{r['image_id']}", "split": "test", "sha256": None} for r in rows]
    copy = write(tmp_path / "copy/b.parquet", rows[:5])
    write(tmp_path / "copy/c.parquet", rows[5:])
    for name, some in (("out", lake), ("out-copy", copy)):
        score.run(str(some), str(model), str(tmp_path / name), tiny, LOCAL)
    shutil.rmtree(model)
    for name, some in (("out", lake), ("out-copy", copy)):
        found = evaluate.run(str(some), str(tmp_path / name))["p"]
        assert (found["images"], found["trained_on"]) == (4, 4)
    # Scores of before the lists were kept: the split decides, and that is said.
    shutil.rmtree(tmp_path / "out-copy/_models")
    found = evaluate.run(str(copy), str(tmp_path / "out-copy"))["p"]
    assert (found["images"], found["trained_on"]) == (8, 0)
    # Scoring again writes them, and scores nothing anew.
    summary = score.run(str(copy), str(model_again(tmp_path, lake, tiny)), *again(tmp_path, tiny))
    assert (summary.statuses, summary.already_done) == ({}, 2)
    assert evaluate.run(str(copy), str(tmp_path / "out-copy"))["p"]["trained_on"] == 4


def model_again(tmp_path: Path, lake: Path, tiny) -> Path:
    fit.run(str(lake), str(tmp_path / "model"), tiny, LOCAL)
    return tmp_path / "model"


def again(tmp_path: Path, tiny) -> tuple[str, object, object]:
    return str(tmp_path / "out-copy"), tiny, LOCAL


def test_what_has_no_meaning_is_refused_before_any_work(tmp_path: Path, patchlake):
    def refused(name: str, *splits_and_labels: tuple[str | None, str | None], flags=()):
        rows = [row(n, *one) for n, one in enumerate(splits_and_labels)]
        lake = write(tmp_path / name / "a.parquet", rows)
        done = patchlake("fit", lake, tmp_path / "model", *TINY_FLAGS, *flags)
        assert done.code == 2, done.err
        assert not (tmp_path / "model").exists()
        return done.err.strip().splitlines()[-1]

    said = refused("a", ("train", "good"), ("cal", "good"), ("cal", "hole"))
    assert "column 'split' says 'cal' in 2 rows" in said
    assert "columns.test_splits" in said
    said = refused("b", ("train", "0"), ("train", "0"), ("test", "1"))
    assert "'0' in 2 rows, '1' in 1 rows" in said
    assert "columns.good_labels=[0]" in said
    said = refused("c", ("train", "fine"), ("test", "crack"))
    assert "none means good: 'crack' in 1 rows, 'fine' in 1 rows" in said


def test_numbers_beside_words_are_no_defects(tmp_path: Path, tiny, patchlake):
    """A file that lost the names of its classes: its `0` is not a type of defect."""
    lake, model, out = tmp_path / "lake", tmp_path / "model", tmp_path / "out"
    lake_of(lake, "train", "test")
    assert patchlake("fit", lake, model, *TINY_FLAGS).code == 0
    write(lake / "b.parquet", [row(30 + n, "test", str(n)) for n in range(2)])
    table = pq.read_table(lake / "b.parquet")
    numbers = table.column("label").cast(pa.int64())
    pq.write_table(table.set_column(4, "label", numbers), lake / "b.parquet")
    score.run(str(lake), str(model), str(out), tiny, LOCAL)
    for command in (("evaluate", lake, out), ("fit", lake, tmp_path / "other", *TINY_FLAGS)):
        refused = patchlake(*command)
        assert refused.code == 2, refused.err
        assert "holds numbers in some files ('0' in 1 rows, '1' in 1 rows)" in refused.err
    said = ("--set", "columns.good_labels=[good,0]")
    found = json.loads(patchlake("evaluate", lake, out, "--json", *said).out)["groups"]["p"]
    assert (found["images"], found["anomalous"]) == (6, 3)


def test_a_meaning_that_is_set_travels(tmp_path: Path, tiny, patchlake):
    lake, model = lake_of(tmp_path / "lake", "train", "test", good="0"), tmp_path / "model"
    flags = ("--set", "columns.good_labels=[0]")
    assert patchlake("fit", lake, model, *TINY_FLAGS, *flags).code == 0
    assert images_in(model) == 4
    out = tmp_path / "out"
    score.run(str(lake), str(model), str(out), tiny, LOCAL)
    assert evaluate.run(str(lake), str(out))["p"]["anomalous"] == 2
    # Another meaning: the model is another one, the scores are not.
    done = patchlake("fit", lake, model, *TINY_FLAGS, "--set", "columns.good_labels=[0, x]")
    assert (done.code, "holds a different model" in done.err) == (2, True)
    done = patchlake("evaluate", lake, out, "--json", "--set", "columns.good_labels=[hole]")
    assert json.loads(done.out)["groups"]["p"]["anomalous"] == 2
    assert "compared are good images ('hole' in 2 rows)" in done.err
    # Scored without the model's words: an evaluation of numbers asks for them.
    unsaid = patchlake("evaluate", lake, out, "--set", "columns.good_labels=[good]")
    assert unsaid.code == 0, unsaid.err  # 'hole' and '0': words, of which none is good
    assert "has no image AUROC" in unsaid.err


def test_ids_that_come_again_every_day(tmp_path: Path, tiny, patchlake):
    lake, model = tmp_path / "lake", tmp_path / "model"
    daily = [row(n, "train", "good", image_id=f"{n:04}.png") for n in range(6)]
    write(lake / "dt=1/a.parquet", daily)
    fit.run(str(lake), str(model), tiny, LOCAL)
    # A day with six new pictures, and one of yesterday's.
    second = [r | {"image": picture(100 + n)} for n, r in enumerate(daily)]
    write(lake / "dt=2/a.parquet", [*second, daily[0]])
    done = patchlake("fit", lake, model, "--update", *TINY_FLAGS)
    assert done.code == 0, done.err
    assert "6 new images join 6 in" in done.err
    assert "7 known ones are passed over (6 by place, 1 by content)" in done.err
    assert images_in(model) == 12
    # A lake that is written anew brings nothing, and neither does a file without labels.
    os.utime(lake / "dt=1/a.parquet", ns=(1, 1))
    write(lake / "dt=3/a.parquet", [row(7, "train", None)], without=("sha256", "label"))
    done = patchlake("fit", lake, model, "--update", *TINY_FLAGS)
    assert done.code == 0, done.err
    assert "13 known ones are passed over (6 by place, 7 by content)" in done.err
    assert images_in(model) == 12
    # An id withdraws all that have it, and says so; none of them comes back.
    done = patchlake("withdraw", model, "--image", "0001.png", "--runner", "local")
    assert (done.code, "2 images of group 'p' have these 1 image_ids" in done.err) == (0, True)
    update.run(str(lake), str(model), tiny, LOCAL)
    assert images_in(model) == 10


def test_what_the_lake_would_not_train_on_any_more(tmp_path: Path, tiny, patchlake):
    lake, model = lake_of(tmp_path / "lake", "train", "test"), tmp_path / "model"
    fit.run(str(lake), str(model), tiny, LOCAL)
    assert "trained on" not in patchlake("status", model).err
    rows = [r | {"sha256": None} for r in pq.read_table(lake / "a.parquet").to_pylist()]
    rows[1]["label"], rows[2]["split"] = "crack", "Test"
    write(lake / "a.parquet", [*rows[:3], *rows[4:]])
    done = patchlake("status", model, "--json")
    assert done.code == 0, done.err
    changed = json.loads(done.out)[-1]["changed"]
    assert changed == {
        "p": {
            "1.png": "its label is now 'crack'",
            "2.png": "its split is now 'Test'",
            "3.png": "gone, or replaced by another picture",
        }
    }
    command = f"patchlake withdraw {model} --image 1.png --image 2.png --image 3.png --group p"
    assert f"`{command}` takes them out" in done.err
    for more, code in (((), 2), (("--update",), 0)):
        fitted = patchlake("fit", lake, model, *more, *TINY_FLAGS)
        assert (fitted.code, f"`{command}` takes them out" in fitted.err) == (code, True)
    assert patchlake(*command.split()[1:], "--runner", "local").code == 0
    assert images_in(model) == 1
    assert "trained on" not in patchlake("status", model).err
    shutil.rmtree(lake)
    done = patchlake("status", model)
    assert (done.code, "cannot be read" in done.err) == (0, True)


def test_groups_of_the_same_pictures_have_one_list(tmp_path: Path, tiny):
    rows = [row(n, "train", "good", group=group) for group in "pq" for n in range(3)]
    lake, out = write(tmp_path / "lake/a.parquet", rows), tmp_path / "out"
    fit.run(str(lake), str(tmp_path / "model"), tiny, LOCAL)
    score.run(str(lake), str(tmp_path / "model"), str(out), tiny, LOCAL)
    (listed,) = (out / "_models").iterdir()
    assert pa.ipc.open_file(listed).read_all().column("source_row").to_pylist() == list(range(6))


def test_the_list_beside_the_scores_is_of_the_model_that_made_them(tmp_path: Path, tiny):
    lake, model = lake_of(tmp_path / "lake", "train", "test"), tmp_path / "model"
    fit.run(str(lake), str(model), tiny, LOCAL)
    score.run(str(lake), str(model), str(tmp_path / "out"), tiny, LOCAL)
    (model_id,) = {str(found["model_id"]) for found in by_place(tmp_path / "out").values()}
    assert os.listdir(tmp_path / "out/_models") == [f"{model_id}.arrow"]
    (tmp_path / "out/_models" / f"{model_id}.arrow").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"is damaged .*; remove it"):
        evaluate.run(str(lake), str(tmp_path / "out"))


def test_a_file_of_another_name_brings_no_image_twice(images: Path, tmp_path: Path, tiny):
    """Of a lake without ids and checksums, whose files were renamed by a compaction."""
    lake, model = tmp_path / "lake", tmp_path / "model"
    lake.mkdir()
    for number, file in enumerate(sorted(images.rglob("*.parquet"))):
        table = pq.ParquetFile(file).read().drop_columns(["image_id", "sha256"])
        pq.write_table(table, lake / f"{number}.parquet")
    before = fit.run(str(lake), str(model), tiny, LOCAL)
    for file in lake.glob("*.parquet"):
        file.rename(file.with_name(f"compacted-{file.name}"))
    after = update.run(str(lake), str(model), tiny, LOCAL)
    assert after == before
