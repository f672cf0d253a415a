"""drift: which nights are not as the training images, from a score table alone."""

import csv
import shutil
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import patchlake as library
from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import compact, fit, ingest, score, update, withdraw
from patchlake.pipeline.driver import drift as drifting
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.withdraw import Withdrawal
from patchlake.pipeline.errors import ConfigError, TableError
from patchlake.pipeline.images.synthetic import write_products
from patchlake.pipeline.model_store.models import read_manifest
from patchlake.pipeline.sources.sources import Arrangement
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import DRIFT
from tests.conftest import LOCAL, TINY, output_files, read_scores, write_part

NIGHTS = ("2026-11-21", "2026-11-22", "2026-11-23")
DARK = ("woven_cloth", "2026-11-22")
LOOKS = ("brightness", "sharpness", "embedding", "thumbnail")


def _settings(**others: object) -> Settings:
    output = {"heatmaps": "none", "scored_at": "2026-01-01T00:00:00Z"}
    return load_settings(flags=TINY | {"score": output} | others)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two products: 20 images to train on, and three nights of 12; one of the cloth's is dark."""
    root = tmp_path_factory.mktemp("drift")
    write_products(root / "pictures", seed=5, train=20, good=36, defects=1)
    lines = []
    for path in sorted((root / "pictures").glob("*/*/good/*.png")):
        group, split, _, name = path.relative_to(root / "pictures").parts
        night = NIGHTS[int(Path(name).stem) % 3] if split == "test" else "2026-11-01"
        if (group, night) == DARK:
            pixels = np.asarray(Image.open(path))
            Image.fromarray((0.8 * pixels).round().astype(np.uint8)).save(path)
        lines.append((path, group, split, "good", night))
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("uri", "group", "split", "label", "dt"), *lines])
    arrangement = Arrangement(partitions=("dt",))
    ingest.run(str(root / "manifest.csv"), str(root / "images"), arrangement, _settings(), LOCAL)
    return root / "images"


def _scored(lake: Path, root: Path, settings: Settings, execution: Execution = LOCAL) -> Path:
    fit.run(str(lake), str(root / "model"), settings, execution)
    target = root / "scores"
    where = "dt >= '2026-11-21'"
    score.run(str(lake), str(root / "model"), str(target), settings, execution, where=where)
    return target


@pytest.fixture(scope="module")
def table(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _scored(lake, tmp_path_factory.mktemp("table"), _settings())


def _drifting(table: pa.Table) -> list[tuple[str, str]]:
    return [(row["group"], row["night"]) for row in table.to_pylist() if row["is_drift"]]


def test_a_darkened_night_is_found_and_the_others_are_not(table: Path, patchlake):
    result = patchlake("drift", table)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    # The first of the rows, and the only one that is said in words.
    first = next(line for line in lines if "2026-11-" in line)
    assert "woven_cloth" in first
    assert DARK[1] in first
    said = [line for line in lines if line.startswith("group ")]
    assert len(said) == 1
    assert said[0].startswith("group woven_cloth, night 2026-11-22: brightness ")
    assert "grey levels lower" in said[0]
    assert "standard deviations from training" in said[0]

    found = library.drift(table)
    assert found.schema == DRIFT
    assert found.num_rows == 6
    assert _drifting(found) == [DARK]
    (dark,) = [row for row in found.to_pylist() if row["is_drift"]]
    assert (dark["images"], dark["parts"], dark["trained_parts"]) == (12, 12, 20)
    assert dark["signals"]
    still = [row for row in found.to_pylist() if not row["is_drift"]]
    assert all(row["signals"] == [] for row in still)
    assert dark["shift"] > max(row["shift"] for row in still)


def test_the_figures_of_a_night_are_those_of_its_rows(table: Path):
    rows = library.open_scores(table).to_table().to_pylist()
    for night in library.drift(table).to_pylist():
        own = [r for r in rows if (r["group"], r["dt"]) == (night["group"], night["night"])]
        scores = np.sort([row["image_score"] for row in own])
        assert night["images"] == night["scored"] == night["tested"] == len(own) == 12
        assert night["q50"] == pytest.approx(scores[5])
        assert night["q95"] == pytest.approx(scores[11])
        assert night["alarms"] == sum(row["is_anomalous"] for row in own)
        assert night["alarm_rate"] == pytest.approx(night["alarms"] / 12)
        assert night["alarm_rate_low"] <= night["alarm_rate"] <= night["alarm_rate_high"]
    grey = {night: [r["brightness"] for r in rows if r["dt"] == night] for night in NIGHTS}
    pixels = {
        night: [r["brightness"] for r in rows if (r["group"], r["dt"]) == ("woven_cloth", night)]
        for night in NIGHTS
    }
    assert 0 < min(map(min, grey.values())) < max(map(max, grey.values())) < 255
    assert np.mean(pixels[DARK[1]]) == pytest.approx(0.8 * np.mean(pixels[NIGHTS[0]]), rel=0.05)


def test_the_same_from_a_compacted_table_and_by_another_key(table: Path, tmp_path: Path):
    dest = tmp_path / "compacted"
    compact.run(str(table), str(dest))
    assert library.drift(dest).equals(library.drift(table))
    # All were scored at one time: one night of each group.
    by_time = library.drift(table, night="scored_at")
    assert by_time.column("night").to_pylist() == ["2026-01-01"] * 2
    with pytest.raises(ConfigError, match="no column 'line'"):
        library.drift(table, night="line")


def test_it_is_written_where_it_is_asked_for(table: Path, tmp_path: Path, patchlake):
    out = tmp_path / "drift.parquet"
    result = patchlake("drift", table, out)
    assert result.code == 0, result.err
    assert pq.read_table(out).equals(library.drift(table))
    first = out.read_bytes()
    library.drift(table, out)
    assert out.read_bytes() == first
    assert patchlake("drift", table, tmp_path / "drift.csv").code == 2
    assert patchlake("drift", table, table / "version=abc" / "drift.parquet").code == 2


def test_a_table_of_before_is_compared_by_nothing(table: Path, tmp_path: Path):
    """Counts and quantiles are there; of a model of before, scores alone are compared."""
    old = tmp_path / "scores"
    shutil.copytree(table, old)
    for path in old.glob("version=*/**/*.parquet"):
        pq.write_table(pq.ParquetFile(path).read().drop_columns(list(LOOKS)), path)
    rows = library.drift(old).to_pylist()
    assert [row["shift"] for row in rows] == [None] * 6
    assert [row["brightness"] for row in rows] == [None] * 6
    assert all(row["p_value"] is not None for row in rows)
    now = library.drift(table)
    assert [row["q50"] for row in rows] == now.column("q50").to_pylist()
    shutil.rmtree(old / "_models")
    rows = library.drift(old).to_pylist()
    assert [(row["p_value"], row["is_drift"], row["signals"]) for row in rows] == [(None,) * 3] * 6


def test_a_list_of_before_is_read_and_says_nothing(table: Path, tmp_path: Path):
    old = tmp_path / "scores"
    shutil.copytree(table, old)
    for path in old.glob("_models/*.arrow"):
        with pa.OSFile(str(path)) as source:
            kept = pa.ipc.open_file(source).read_all()
        kept = kept.drop_columns([*LOOKS, "part", "part_score"])
        with pa.ipc.new_file(str(path), kept.schema) as writer:
            writer.write_table(kept)
    assert library.drift(old).column("p_value").null_count == 6


def test_rows_without_a_score_are_counted(tmp_path: Path):
    status = ["ok", "ok", "unreadable", "missing"]
    score = [1.0, 3.0, None, None]
    write_part(tmp_path, "dt=2026-11-22/g=tile", status=status, image_score=score)
    write_part(
        *(tmp_path, "dt=2026-11-22/g=other"),
        group=["other"],
        status=["no_model"],
        image_score=[None],
        model_id=[""],
    )
    write_part(tmp_path, "g=tile", image_score=[2.0], scored_at=[datetime(2026, 1, 3, tzinfo=UTC)])
    found = library.drift(tmp_path).to_pylist()
    kept = ("group", "night", "images", "unreadable", "unreadable_rate", "scored", "alarms", "q50")
    assert [tuple(row[name] for name in kept) for row in found] == [
        ("other", "2026-11-22", 1, 0, 0.0, 0, None, None),
        ("tile", "", 1, 0, 0.0, 1, None, 2.0),
        ("tile", "2026-11-22", 4, 2, 0.5, 2, None, 1.0),
    ]


def test_shots_of_one_part_count_once(table: Path, tmp_path: Path):
    """Each image twenty times does not make twenty parts, with a part_id or without."""
    for part_id in (None, "part"):
        many = tmp_path / f"scores-{part_id}"
        shutil.copytree(table, many)
        for path in many.glob("version=*/**/*.parquet"):
            rows = pq.ParquetFile(path).read()
            shots = rows.take(pa.array(np.repeat(np.arange(len(rows)), 20)))
            at, numbers = rows.schema.get_field_index("source_row"), np.arange(len(shots))
            shots = shots.set_column(at, "source_row", pa.array(numbers))
            if part_id:
                names = pa.array([f"{path.name}{number // 20}" for number in numbers])
                shots = shots.set_column(rows.schema.get_field_index("part_id"), "part_id", names)
            pq.write_table(shots, path)
        found = library.drift(many)
        assert found.column("images").to_pylist() == [240] * 6
        assert found.column("parts").to_pylist() == [12] * 6
        assert _drifting(found) == [DARK]


def test_embeddings_that_are_not_ours_are_named(table: Path, tmp_path: Path):
    odd = tmp_path / "scores"
    shutil.copytree(table, odd)
    path = sorted(odd.glob("version=*/**/*.parquet"))[0]
    rows = pq.ParquetFile(path).read()
    lists = [[1.0], *rows.column("embedding").to_pylist()[1:]]
    at = rows.schema.get_field_index("embedding")
    pq.write_table(rows.set_column(at, "embedding", pa.array(lists, pa.list_(pa.float32()))), path)
    with pytest.raises(TableError, match="embeddings of one group have 1 and 32 numbers"):
        library.drift(odd)


@pytest.mark.slow
def test_an_update_keeps_what_nights_are_compared_with(lake: Path, tmp_path: Path):
    settings, model = _settings(), tmp_path / "model"
    ids = sorted(
        name
        for path in lake.glob("dt=2026-11-01/**/*.parquet")
        for name in pq.ParquetFile(path).read(["image_id"]).column("image_id").to_pylist()
    )
    # Five of the plates, of which one leaves, and five of the cloths; and then all.
    chosen = ", ".join(f"'{name}'" for name in [*ids[:5], *ids[20:25]])
    fit.run(str(lake), str(model), settings, LOCAL, where=f"image_id in ({chosen})")
    update.run(str(lake), str(model), settings, LOCAL, where="dt = '2026-11-01'")
    withdraw.run(str(model), Withdrawal((ids[0],)), settings, LOCAL)
    for record in read_manifest(Folder.at(str(model))).groups.values():
        (name,) = (file.name for file in record.files if "images-" in file.name)
        images = pq.ParquetFile(model / name).read()
        assert [images.column(one).null_count for one in LOOKS] == [0] * len(LOOKS)
        assert len(images) == 20
    score.run(str(lake), str(model), str(tmp_path / "scores"), settings, LOCAL)
    found = library.drift(tmp_path / "scores")
    assert DARK in _drifting(found)
    counts = {row["group"]: row["trained_parts"] for row in found.to_pylist()}
    assert sorted(counts.values()) == [19, 20]


@pytest.mark.slow
def test_an_ensemble_is_compared_by_its_first_member(lake: Path, tmp_path: Path):
    """Members of other networks and sizes: embeddings are the first's, scores are not compared."""
    members = []
    for number, side in enumerate((64, 96)):
        settings = _settings(image={"resize": [side, side]})
        members.append(str(tmp_path / f"model-{number}"))
        fit.run(str(lake), members[-1], settings, LOCAL)
    for order in (members, members[::-1]):
        target = tmp_path / "scores"
        score.run(str(lake), order, str(target), load_settings(), LOCAL, where="dt > '2026-11-20'")
        found = library.drift(target)
        assert _drifting(found) == [DARK]
        assert set(found.column("trained_parts").to_pylist()) == {20}
        assert all("scores" not in row for row in found.column("signals").to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dn2", "spade"])
def test_methods_that_score_otherwise_are_compared_as_well(lake: Path, tmp_path: Path, method: str):
    """DN2 has no maps, and SPADE scores many images together."""
    table = _scored(lake, tmp_path, _settings(method={"name": method}))
    assert DARK in _drifting(library.drift(table))


@pytest.mark.slow
@pytest.mark.ray
def test_ray_and_local_write_the_same_bytes(
    lake: Path, table: Path, tmp_path: Path, one_actor: None
):
    again = _scored(lake, tmp_path, _settings(), Execution("ray", None))
    assert output_files(again) == output_files(table)
    assert library.drift(again).equals(library.drift(table))


@pytest.mark.slow
def test_what_is_measured_of_an_image_hangs_on_it_alone(lake: Path, table: Path, tmp_path: Path):
    """Other fragments, and so other images beside it, and more threads change no bit."""
    settings = _settings(fragment_images=7, workers=3)
    other = _scored(lake, tmp_path, settings)

    def seen(scores: Path) -> dict[object, tuple[object, ...]]:
        return {
            (row["source_path"], row["source_row"]): tuple(map(str, (row[n] for n in LOOKS)))
            for row in read_scores(scores).to_pylist()
        }

    assert seen(other) == seen(table)


def test_the_query_of_the_page_runs_on_it(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    page = (Path(__file__).parents[2] / "docs" / "drift.md").read_text()
    query = page.partition("```sql")[2].partition("```")[0]
    (tmp_path / "scores").symlink_to(table)
    monkeypatch.chdir(tmp_path)
    rows = duckdb.sql(query).fetchall()
    found = library.drift(table).to_pylist()
    assert [(row[0], str(row[1])) for row in rows] == [(r["group"], r["night"]) for r in found]
    assert [row[3] for row in rows] == pytest.approx([row["q50"] for row in found])
    (dark,) = [number for number, row in enumerate(found) if row["is_drift"]]
    # Since the night before; of the first night of a group there is none.
    assert [row[6] is None for row in rows] == [True, False, False] * 2
    assert rows[dark][6] == max(row[6] for row in rows if row[6] is not None)


def test_the_words_say_what_has_changed():
    row = dict.fromkeys(DRIFT.names) | {
        **dict.fromkeys(("images", "unreadable", "scored", "tested", "parts", "trained_parts"), 1),
        "group": "tile",
        "night": "2026-11-22",
        "model_id": "m",
        "unreadable_rate": 0.0,
        "brightness": -14.2,
        "sharpness": 0.8,
        "shift": 3.14,
        "is_drift": True,
        "signals": ["brightness", "scores"],
    }
    assert drifting.DriftRow(**row).words() == (
        "group tile, night 2026-11-22: brightness 14 grey levels lower, 20% less sharp, images 3.1 "
        "standard deviations from training, scores higher than in training"
    )
