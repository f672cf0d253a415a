"""Old parts expire, are remembered, and are not scored again, whatever is killed in between."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import score, status
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.score_table import expiry, ledger, parts
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, TINY_FLAGS, output_files, read_scores
from tests.reading.noise import ROWS, VERSION, fragment_of, put

DATES = ("2026-08-01", "2026-11-22")


@pytest.fixture(scope="module")
def nights(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny lake, a product a night: 22 images, three fragments each."""
    root = tmp_path_factory.mktemp("nights")
    for date, product in zip(DATES, ("brushed_plate", "woven_cloth"), strict=True):
        (file,) = images.glob(f"g={product}/*.parquet")
        (root / f"dt={date}").mkdir()
        shutil.copy(file, root / f"dt={date}" / "images.parquet")
    return root


@pytest.fixture(scope="module")
def scored(
    nights: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, tiny: Settings
) -> Path:
    root = tmp_path_factory.mktemp("scored")
    score.run(str(nights), str(model), str(root), tiny, LOCAL)
    return root


@pytest.fixture
def again(nights: Path, model: Path, scored: Path, tmp_path: Path, tiny: Settings) -> Callable:
    """Score the same lake again into a copy of its table, with a rule."""
    shutil.copytree(scored, tmp_path / "scores")

    def run(expire: str | None = None):
        table = str(tmp_path / "scores")
        return score.run(str(nights), str(model), table, tiny, LOCAL, expire=expire)

    return run


def _dates(table: Path) -> set[str]:
    return {path.parent.name for path in table.glob("version=*/**/*.parquet")}


def test_expired_parts_go_with_their_heatmaps_and_are_not_scored_again(again, tmp_path: Path):
    table = tmp_path / "scores"
    summary = again("dt < '2026-11-01'")
    assert _dates(table) == {f"dt={DATES[1]}"}
    assert len(summary.removed_parts) == 3
    assert len(summary.parts) == 3
    rows = read_scores(table).to_pylist()
    pictures = {path.relative_to(table) for path in table.rglob("*.jpg")}
    assert pictures == {Path(row["heatmap_path"]) for row in rows}
    before = output_files(table)
    for rule in (None, "dt < '2026-11-01'"):
        summary = again(rule)
        assert summary.statuses == {}
        assert summary.already_done == summary.fragments == 6
        assert output_files(table) == before
    (run,) = status.read(str(table))
    assert (run.done, run.expired, run.pending, run.images_done) == (3, 3, 0, 22)


def test_an_age_counts_from_when_the_rows_were_scored(scored: Path):
    table = Folder.at(str(scored))
    names = [entry.name for entry in parts.every_part(table)]
    assert len(names) == 6
    for now, expired in (
        (datetime(2026, 4, 1, tzinfo=UTC), 0),
        (datetime(2026, 4, 2, tzinfo=UTC), 6),
    ):
        # Scored at 2026-01-01: 90 days and no more, then 91.
        assert len(expiry.parse_rule("90d", now)(table, names)) == expired
    rule = expiry.parse_rule("dt < '2026-09-01' and scored_at < '2027'", now)
    assert len(rule(table, names)) == 3


def test_what_a_kill_left_between_ledger_and_removal_goes_with_the_next_run(
    again, tmp_path: Path, scored: Path
):
    table = Folder.at(str(tmp_path / "scores"))
    names = [entry.name for entry in parts.every_part(table)]
    first = [name for name in names if DATES[0] in name]
    ledger.record(table, first, "dt < '2026-11-01'", datetime(2026, 11, 25, tzinfo=UTC))
    parts.remove(table, first[:1])
    table.remove(f"_heatmaps/{parts.key_of(first[1])}", recursive=True)
    assert _dates(tmp_path / "scores") == {f"dt={date}" for date in DATES}
    assert again().statuses == {}
    assert _dates(tmp_path / "scores") == {f"dt={DATES[1]}"}
    assert {path.name for path in (tmp_path / "scores" / "_heatmaps").iterdir()} == {
        parts.key_of(name) for name in names if name not in first
    }


def test_without_its_ledger_entry_an_expired_image_is_scored_again(
    again, tmp_path: Path, scored: Path
):
    again("dt < '2026-11-01'")
    shutil.rmtree(tmp_path / "scores" / "_ledger")
    assert again().statuses == {"ok": 22}
    assert output_files(tmp_path / "scores") == output_files(scored)


@pytest.mark.parametrize("rule", ["90", "dt <", "exit()"])
def test_a_rule_that_is_none_is_told_before_any_work(rule: str, again, tmp_path: Path):
    before = output_files(tmp_path / "scores")
    with pytest.raises(ConfigError, match="--expire takes an age as 90d, or an expression"):
        again(rule)
    assert output_files(tmp_path / "scores") == before


def test_a_rule_of_an_unknown_key_removes_nothing(again, tmp_path: Path):
    before = output_files(tmp_path / "scores")
    with pytest.raises(ConfigError, match="'date' is no hive key of a part"):
        again("date < '2026-11-01'")
    assert output_files(tmp_path / "scores") == before


def test_a_rule_of_an_unknown_name_is_told_where_nothing_is_scored_yet(
    nights: Path, model: Path, tmp_path: Path, tiny: Settings
):
    with pytest.raises(ConfigError, match=r"'grup' is no .*; did you mean 'group'"):
        score.run(
            *(str(nights), str(model), str(tmp_path / "s"), tiny, LOCAL), expire="grup = 'tile'"
        )
    assert not list(tmp_path.glob("s/version=*"))


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        ("\"group\" = 'brushed_plate'", {f"dt={DATES[1]}"}),
        ("group <> 'brushed_plate' AND dt IS NOT NULL", {f"dt={DATES[0]}"}),
        ("scored_at < TIMESTAMP '2026-01-01 00:00:00'", {f"dt={date}" for date in DATES}),
        ("scored_at < '2026-01-02' AND dt = '2026-08-01'", {f"dt={DATES[1]}"}),
    ],
)
def test_a_rule_may_name_the_group_and_the_time_of_the_rows(again, tmp_path: Path, rule, left):
    again(rule)
    assert _dates(tmp_path / "scores") == left


def test_what_would_expire_is_listed_and_what_expires_is_said(
    nights: Path, model: Path, scored: Path, tmp_path: Path, patchlake
):
    table = tmp_path / "scores"
    shutil.copytree(scored, table)
    before = output_files(table)
    command = ("score", nights, model, table, *TINY_FLAGS, "--expire", "dt < '2026-11-01'")
    shown = patchlake(*command, "--dry-run")
    assert shown.code == 0
    assert "3 parts" in shown.out
    found = json.loads(patchlake(*command, "--dry-run", "--json").out)
    assert (len(found["expiring_parts"]), found["expiring_images"]) == (3, 22)
    assert all(f"dt={DATES[0]}" in name for name in found["expiring_parts"])
    assert output_files(table) == before
    real = patchlake(*command)
    assert real.code == 0
    assert "--expire dt < '2026-11-01': 3 of 6 parts are removed: version=" in real.err
    assert _dates(table) == {f"dt={DATES[1]}"}


@pytest.mark.parametrize("which", ["all", "dt = '2026-08-01'"])
def test_what_has_expired_is_brought_back(
    again, nights: Path, model: Path, scored: Path, tmp_path: Path, patchlake, which: str
):
    table = tmp_path / "scores"
    again("dt < '2026-11-01'")
    command = ("score", nights, model, table, *TINY_FLAGS, "--restore")
    refused = patchlake(*command, which, "--dry-run")
    assert (refused.code, "--restore changes the ledger" in refused.err) == (2, True)
    unknown = patchlake(*command, "day = 1")
    assert (unknown.code, "'day' is no" in unknown.err) == (2, True)
    back = patchlake(*command, which)
    assert (back.code, "3 expired parts may be scored again" in back.err) == (0, True)
    assert output_files(table) == output_files(scored)


@pytest.mark.parametrize(("answer", "code"), [(True, 0), (False, 2)])
def test_on_a_terminal_nobody_loses_all_parts_unasked(
    nights: Path, model: Path, scored: Path, tmp_path: Path, patchlake, monkeypatch, answer, code
):
    table = tmp_path / "scores"
    shutil.copytree(scored, table)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    asked = []
    monkeypatch.setattr("typer.confirm", lambda text: asked.append(text) or answer)
    result = patchlake("score", nights, model, table, *TINY_FLAGS, "--expire", "dt IS NOT NULL")
    assert result.code == code
    assert len(asked) == 1
    assert (_dates(table) == set()) is answer


def test_parts_have_statistics_that_prune_and_no_others(scored: Path):
    for part in scored.glob("version=*/**/*.parquet"):
        group = pq.ParquetFile(part).metadata.row_group(0)
        columns = [group.column(i) for i in range(group.num_columns)]
        pruning = {c.path_in_schema for c in columns if c.is_stats_set}
        assert pruning >= {"image_id", "group", "status", "image_score", "scored_at", "model_id"}
        assert not pruning & {"anomaly_map.list.element", "heatmap_path", "error"}
        assert {c.compression for c in columns} == {"ZSTD"}
        assert [s.column_index for s in group.sorting_columns] == [3, 1, 2]
        rows = pq.ParquetFile(part).read(columns=["source_row"]).column(0).to_pylist()
        assert rows == sorted(rows)


def test_where_parts_are_published_is_not_in_their_names():
    with_table = load_settings(flags=TINY | {"score": TINY["score"] | {"iceberg_table": "a.b.c"}})
    from patchlake.pipeline.lake.plan import output_digest

    assert output_digest(with_table) == output_digest(load_settings(flags=TINY))


def _published(tmp_path: Path) -> list[tuple[str, int]]:
    """The identities of all rows of the Iceberg table."""
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog("lake", uri=f"sqlite:///{tmp_path}/catalog.db")
    rows = catalog.load_table("plant.scores").scan().to_arrow()
    catalog.close()
    return list(
        zip(*(rows.column(name).to_pylist() for name in ("source_path", "source_row")), strict=True)
    )


def _environment(tmp_path: Path) -> dict[str, str]:
    return dict(os.environ) | {
        "PYICEBERG_CATALOG__LAKE__TYPE": "sql",
        "PYICEBERG_CATALOG__LAKE__URI": f"sqlite:///{tmp_path}/catalog.db",
        "PYICEBERG_CATALOG__LAKE__WAREHOUSE": f"file://{tmp_path}/warehouse",
    }


# The end of a scoring run, without the scoring: all new contents of night 22 are committed, and
# night 21 is to expire. Says when it begins: most of its life goes into starting Python.
_RETIRE = """import sys
from functools import partial
from patchlake.pipeline.driver.retirement import Retirement
from patchlake.pipeline.config import Settings
from patchlake.pipeline.record import runs
from patchlake.pipeline.score_table import parts
from patchlake.pipeline.score_table.ledger import expired_keys
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.reading.fragments import Fragments
from tests.reading.noise import VERSION, fragment_of
fragments = Fragments.of(fragment_of(22, file, version=sys.argv[2]) for file in range(10))
record = runs.RunRecord(run="r", verb="score", images="i", where=None, version=VERSION,
                        started_at=runs.now(), settings=Settings())
scores = Folder(sys.argv[1])
retire = Retirement.checked("dt < '2026-11-22'", "lake.plant.scores")
print("begin", flush=True)
superseded = partial(parts.superseded, fragments)
retire(scores, runs.Run(scores, record), superseded, expired_keys(scores, VERSION))
"""


def _retire(tmp_path: Path, contents: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _RETIRE, str(tmp_path / "scores"), str(contents)]
    process = subprocess.Popen(
        command,
        env=_environment(tmp_path),
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begin\n"
    return process


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_killed_while_expiring_replacing_and_publishing_every_row_is_there_once(tmp_path: Path):
    (tmp_path / "warehouse").mkdir()
    scores, draw = tmp_path / "scores", random.Random(7)
    killed, seconds = 0, 0.0
    for contents in range(4):
        for file in range(10):
            put(scores, fragment_of(21, file, version=str(contents)))
            put(scores, fragment_of(22, file, version=str(contents)))
        for _ in range(4 if seconds else 0):
            with _retire(tmp_path, contents) as process:
                time.sleep(1.2 * seconds * draw.random())
                process.send_signal(signal.SIGKILL)
                killed += process.wait() == -signal.SIGKILL
        with _retire(tmp_path, contents) as process:
            started = time.monotonic()
            assert process.wait() == 0
            seconds = time.monotonic() - started
        rows = read_scores(scores)
        columns = (rows.column(name).to_pylist() for name in ("source_path", "source_row"))
        assert sorted(_published(tmp_path)) == sorted(zip(*columns, strict=True))
        assert _dates(scores) == {"dt=2026-11-22"}
        assert len(rows) == 10 * ROWS
        kept = ledger.expired_keys(Folder(str(scores)), VERSION)
        assert set(kept.to_pylist()) == {
            fragment_of(21, file, version=str(earlier)).key
            for earlier in range(contents + 1)
            for file in range(10)
        }
    assert killed > 5


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("store", ["files", "packed"])
def test_a_run_publishes_what_it_committed_and_withdraws_what_expires(
    again, nights: Path, model: Path, tmp_path: Path, patchlake, monkeypatch, store: str
):
    from pyiceberg.utils.config import Config

    (tmp_path / "warehouse").mkdir()
    for name, value in _environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())
    # Beside the parts of another version, where the store is the other one.
    command = ("score", nights, model, tmp_path / "scores", *TINY_FLAGS)
    command += ("--set", f"score.heatmap_store={store}", "--iceberg", "lake.plant.scores")
    assert patchlake(*command).code == 0
    assert len(set(_published(tmp_path))) == len(_published(tmp_path)) == 44
    result = patchlake(*command, "--expire", f"dt < '{DATES[1]}'")
    assert result.code == 0
    assert "0 parts added, 3 removed" in result.err
    assert len(_published(tmp_path)) == 22
    files = {
        str(p.relative_to(tmp_path / "scores")) for p in tmp_path.glob("scores/_heatmaps/**/*.*")
    }
    rows = read_scores(tmp_path / "scores").column("heatmap_path").to_pylist()
    assert files == {path.partition("#")[0] for path in rows}
    assert patchlake(*command[:-1], "nowhere.plant.scores").code == 2
