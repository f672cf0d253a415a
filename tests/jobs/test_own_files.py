"""Every file of our own, damaged: right results, or one line that names it; never a traceback."""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver import compact, score
from tests.conftest import LOCAL, TINY_FLAGS, read_scores
from tests.jobs.conftest import GROUP, WHERE, FittedBy

Damage = Callable[[bytes], bytes | None]

FLAGS = ("--runner", "local")


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


DAMAGES: dict[str, Damage] = {
    "empty": lambda _: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "a bit": _flipped,
    "not UTF-8": lambda content: b"\xff\xfe" + content,
    "deep JSON": lambda _: b"[" * 100_000,
    "another type": lambda _: b'{"run": 5, "groups": []}',
    "huge header": lambda content: (2**62).to_bytes(8, "little") + content[8:],
    "a folder": lambda _: None,
}
# Bytes that flip in a text may still be what somebody could have written.
QUICK = ("cut off",)


def damaged(path: Path, damage: Damage) -> None:
    content = damage(path.read_bytes())
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


@pytest.fixture
def lake_model(fitted_by: FittedBy, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted_by("patchcore"), tmp_path / "model"))


@pytest.fixture(scope="module")
def scored_once(
    images: Path, fitted_by: FittedBy, tmp_path_factory: pytest.TempPathFactory, tiny: Settings
) -> Path:
    """Scores of one group, compacted beside them, and a part of it expired."""
    root = tmp_path_factory.mktemp("own") / "scores"
    model = fitted_by("patchcore")
    score.run(str(images), str(model), str(root), tiny, LOCAL, where=WHERE)
    compact.run(str(root), str(root.with_name("compacted")))
    ledger = root / "_ledger" / next(root.glob("version=*")).name
    ledger.mkdir(parents=True)
    content = {"rule": "1d", "expired_at": "2026-01-01T00:00:00Z", "parts": []}
    (ledger / f"{0:020}.json").write_text(json.dumps(content))
    [run] = root.glob("_runs/*")
    (run / "failed").mkdir()
    failed = {"key": "0" * 20, "error": "no"}
    (run / "failed" / f"{0:020}.json").write_text(json.dumps(failed))
    pulse = {"host": "h", "pid": 1, "at": "2026-01-01T00:00:00Z", "stopped": None, "speed": None}
    (run / "pulse.json").write_text(json.dumps(pulse))
    return root


def own_files(root: Path) -> Iterator[Path]:
    """Yield the files of a table that a run reads again: parts are results, not records."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix not in (".png", ".parquet"):
            yield path


def _require_one_line(result, path: Path) -> None:
    told = result.err.strip().splitlines()
    assert "Traceback" not in result.err, result.err
    assert result.code in (0, 2, 3), result.err
    if result.code:
        assert path.name in told[-1], told


@pytest.mark.slow
@pytest.mark.parametrize("damage", QUICK)
def test_a_damaged_record_of_a_score_table_is_named_or_made_again(
    damage, scored_once, images, fitted_by, tmp_path, patchlake
):
    model, before = fitted_by("patchcore"), read_scores(scored_once)
    for number, name in enumerate(p.relative_to(scored_once) for p in own_files(scored_once)):
        scores = tmp_path / f"scores-{number}"
        shutil.copytree(scored_once, scores)
        damaged(scores / name, DAMAGES[damage])
        _require_one_line(patchlake("status", scores), scores / name)
        _require_one_line(patchlake("evaluate", images, scores), scores / name)
        command = ("score", images, model, scores, *TINY_FLAGS, "--where", WHERE)
        _require_one_line(patchlake(*command), scores / name)
        assert read_scores(scores).num_rows == before.num_rows, "no part is removed by a record"


@pytest.mark.parametrize("damage", QUICK)
def test_a_damaged_file_of_a_model_is_named(damage, lake_model, images, tmp_path, patchlake):
    for name in [path.relative_to(lake_model) for path in own_files_of_model(lake_model)]:
        content = (lake_model / name).read_bytes()
        damaged(lake_model / name, DAMAGES[damage])
        command = ("score", images, lake_model, tmp_path / "scores", *TINY_FLAGS, "--where", WHERE)
        result = patchlake(*command)
        _require_one_line(result, lake_model / name)
        # A bit of the manifest may lie in a text that no score depends on, such as a path.
        if damage == "a bit" and name.name == "model.json" and result.code == 0:
            (lake_model / name).write_bytes(content)
            continue
        assert result.code == 2, "a score checks all of them"
        if name.name.startswith(("images", "provenance", "calibration", "model")):
            result = patchlake("withdraw", lake_model, "--image", "nobody", *FLAGS)
            _require_one_line(result, lake_model / name)
            assert result.code == 2
        if (lake_model / name).is_dir():
            (lake_model / name).rmdir()
        (lake_model / name).write_bytes(content)


def own_files_of_model(model: Path) -> list[Path]:
    return [model / "model.json", *sorted(model.glob(f"g={GROUP}/*"))]


def swap_in(model: Path, role: str, content: bytes, *, digest: bool) -> str:
    """Put other bytes in place of a file, with their SHA-256; return the file's name."""
    manifest = json.loads((model / "model.json").read_text())
    record = manifest["groups"][GROUP]
    [file] = [file for file in record["files"] if file["role"].startswith(role)]
    (model / file["name"]).write_bytes(content)
    file |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (model / "model.json").write_text(json.dumps(manifest))
    if digest:
        from patchlake.pipeline.model_store import models
        from patchlake.pipeline.model_store.identity import Identity
        from patchlake.pipeline.storage.folder import Folder

        read = models.read_manifest(Folder.at(str(model)))
        found = Identity.of(read).group_digest(read.groups[GROUP].files)
        record["digest"] = found
        (model / "model.json").write_text(json.dumps(manifest))
    return str(file["name"])


@pytest.mark.parametrize("role", ["index-", "calibration", "state", "provenance", "images"])
@pytest.mark.parametrize("damage", ["cut off", "huge header"])
def test_a_matching_checksum_does_not_make_a_file_believed(
    role, damage, lake_model, images, tmp_path, patchlake
):
    [path] = lake_model.glob(f"g={GROUP}/{role}*")
    swapped = DAMAGES[damage](path.read_bytes())
    assert swapped is not None
    name = swap_in(lake_model, role, swapped, digest=True)
    if role in ("provenance", "images"):
        result = patchlake("withdraw", lake_model, "--image", "nobody", *FLAGS)
    else:
        scores = tmp_path / "scores"
        result = patchlake("score", images, lake_model, scores, *TINY_FLAGS, "--where", WHERE)
    assert result.code == 2, result.err
    _require_one_line(result, Path(name))


def test_a_file_of_another_model_is_refused_by_the_digest_of_the_group(
    fitted_by, lake_model, images, tmp_path, patchlake
):
    [other] = fitted_by("dn2").glob(f"g={GROUP}/index-*")
    swap_in(lake_model, "index-", other.read_bytes(), digest=False)
    command = ("score", images, lake_model, tmp_path / "scores", *TINY_FLAGS, "--where", WHERE)
    result = patchlake(*command)
    assert result.code == 2
    assert f"group '{GROUP}' has digest" in result.err
    assert "model.json" in result.err
    # With that digest as well it is found by what it holds.
    swap_in(lake_model, "index-", other.read_bytes(), digest=True)
    result = patchlake(*command)
    assert result.code == 2, result.err
    assert "index-00000-of-00001" in result.err.strip().splitlines()[-1]


def test_a_memory_of_how_files_are_cut_decides_nothing(
    scored_once, images, fitted_by, tmp_path, patchlake
):
    """Damaged it is not believed; well sealed but wrong it removes no part."""
    from patchlake.pipeline.storage.seals import sealed, unsealed

    model, before = fitted_by("patchcore"), read_scores(scored_once)
    [cuts] = scored_once.glob("_cuts/*.arrow")
    table = pa.ipc.open_file(cuts.read_bytes()).read_all()
    of = f"_cuts/{cuts.name} of {_output_version()}"
    plain = unsealed(table, of)
    images_column = plain.schema.get_field_index("images")
    fewer = pa.array([n - 1 for n in plain.column("images").to_pylist()], pa.int64())
    variants = {
        "lacks a fragment": (plain.slice(0, len(plain) - 1), True),
        "other rows": (plain.set_column(images_column, plain.schema.field("images"), fewer), True),
        "lacks one, and has the seal of all": (plain.slice(1), False),
    }
    for name, (wrong, is_sealed) in variants.items():
        scores = tmp_path / name
        shutil.copytree(scored_once, scores)
        written = (
            sealed(wrong, of) if is_sealed else wrong.replace_schema_metadata(table.schema.metadata)
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, written.schema) as writer:
            writer.write_table(written)
        (scores / cuts.relative_to(scored_once)).write_bytes(sink.getvalue().to_pybytes())
        for _ in range(2):
            result = patchlake("score", images, model, scores, *TINY_FLAGS, "--where", WHERE)
            assert "Traceback" not in result.err
        assert result.code == 0, result.err
        rows = read_scores(scores).select(["source_path", "source_row"]).to_pylist()
        wanted = read_scores(scored_once).select(["source_path", "source_row"]).to_pylist()
        assert [row for row in wanted if row not in rows] == [], name
    assert before.num_rows == len(wanted)


def _output_version() -> int:
    from patchlake.pipeline.tables import OUTPUT_VERSION

    return OUTPUT_VERSION


@pytest.mark.parametrize("damage", ["cut off", "not UTF-8", "a folder", "a bit"])
def test_a_damaged_state_of_a_compacted_table_removes_no_file(
    damage, scored_once, tmp_path, patchlake
):
    target = tmp_path / "compacted"
    shutil.copytree(scored_once.with_name("compacted"), target)
    [state] = target.glob("_tables/*")
    damaged(state, DAMAGES[damage])
    before = sorted(target.glob("version=*/**/*.parquet"))
    result = patchlake("compact", scored_once, target)
    assert result.code == 2, result.err
    _require_one_line(result, state)
    assert sorted(target.glob("version=*/**/*.parquet")) == before


@pytest.mark.slow
@pytest.mark.parametrize("damage", sorted(set(DAMAGES) - set(QUICK)))
def test_every_other_damage_of_every_file(
    damage, scored_once, lake_model, images, fitted_by, tmp_path, patchlake
):
    args = (damage, scored_once, images, fitted_by, tmp_path, patchlake)
    test_a_damaged_record_of_a_score_table_is_named_or_made_again(*args)
    test_a_damaged_file_of_a_model_is_named(damage, lake_model, images, tmp_path, patchlake)


def test_partial_results_that_are_damaged_are_made_again(images, fitted_by, tmp_path, patchlake):
    """A fit that was stopped: what is left of it is looked at before it is believed."""
    model = tmp_path / "model"
    command = ("fit", images, model, *TINY_FLAGS, "--where", WHERE)
    assert patchlake(*command).code == 0
    wanted = {p.name: p.read_bytes() for p in model.glob(f"g={GROUP}/*")}
    (model / "model.json").unlink()
    [run] = model.glob("_runs/*")
    # As after a kill, with every kind of what can be left of a fragment.
    partials = run / "partials"
    partials.mkdir()
    keys = pa.ipc.open_file((run / "plan.arrow").read_bytes()).read_all().column("key").to_pylist()
    for number, key in enumerate(keys):
        (partials / f"{key}.json").write_bytes(b"{}" if number % 2 else b"\xff")
        (partials / f"{key}.embeddings.arrow").write_bytes(b"\0" * 7)
    result = patchlake(*command)
    assert result.code == 0, result.err
    assert {p.name: p.read_bytes() for p in model.glob(f"g={GROUP}/*")} == wanted


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run.json", lambda record: record | {"started_at": "2026-01-01T00:00:00"}),
        ("pulse.json", lambda record: record | {"at": "2026-01-01T00:00:00"}),
        ("pulse.json", lambda record: record | {"pid": 2**40, "host": socket.gethostname()}),
        ("pulse.json", os.mkfifo),
    ],
    ids=["a start without a zone", "a beat without a zone", "no process", "a pipe"],
)
def test_a_record_that_says_what_cannot_be_is_named(name, change, scored_once, tmp_path, patchlake):
    scores = Path(shutil.copytree(scored_once, tmp_path / "scores"))
    [record] = scores.glob(f"_runs/*/{name}")
    record.with_name("summary.json").unlink()
    if change is os.mkfifo:
        record.unlink()
        os.mkfifo(record)
    else:
        record.write_text(json.dumps(change(json.loads(record.read_text()))))
    result = patchlake("status", scores)
    assert result.code == 2
    _require_one_line(result, record)


def test_what_a_record_says_moves_no_cursor(scored_once, tmp_path, patchlake):
    scores = Path(shutil.copytree(scored_once, tmp_path / "scores"))
    [failed] = scores.glob("_runs/*/failed/*.json")
    error = "\u001b[31m\u001b]0;title\u0007 boo\nsecond" + "x" * 10_000
    failed.write_text(json.dumps({"key": "0" * 20, "error": error}))
    shown = patchlake("status", scores).out
    assert "boo" in shown
    assert "\x1b" not in shown.replace("\\x1b", "")
    assert max(map(len, shown.splitlines())) < 1000
