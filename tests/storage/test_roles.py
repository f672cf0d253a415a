"""A folder has one role: another one is refused in one line, and nothing in it changes."""

import os
import shutil
from pathlib import Path

import pytest

from patchlake.pipeline.driver import compact
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.roles import Use, require
from tests.conftest import TINY_FLAGS

ROLES = {
    "model": ["model.json", "g=a/state-0.safetensors", "_runs/1/run.json"],
    "scores": ["_source.json", "version=1/part-0.parquet", "_runs/1/run.json"],
    "compacted": ["_source.json", "version=1/scores-00000.parquet", "_tables/00000001.arrow"],
    "images": ["g=a/images-0.parquet", "_notes/x.txt"],
    "reviews": ["reviews-1.parquet", "reviews-2.parquet", "notes.txt"],
    "images beside reviews": ["reviews-1.parquet", "images-0.parquet"],
    "model that is being fitted": ["_runs/1/run.json"],
    "scores whose heatmaps alone are left": ["_source.json", "_heatmaps/0/0.jpg"],
    "files of somebody else": ["tables/x.parquet"],
    "one file in capitals": ["X.PARQUET"],
}


@pytest.mark.parametrize("scheme", ["disk", "memory"])
@pytest.mark.parametrize("held", ROLES)
def test_a_folder_is_known_by_what_only_it_has(held, scheme, tmp_path):
    folder = Folder.at(str(tmp_path) if scheme == "disk" else "memory://roles")
    folder.remove("", recursive=True)
    for name in ROLES[held]:
        folder.write(name, b"")
    own = {name: name for name in ("model", "scores", "compacted", "reviews")}
    role = own.get(held.split()[0], "images")
    for other in ("images", "scores", "compacted", "model", "reviews"):
        use = [Use(folder, other, is_written=True)]
        if other == role:
            require(use)
            continue
        with pytest.raises(ConfigError, match=r"is an? .*, and cannot be an? .* as well"):
            require(use)


@pytest.mark.parametrize("held", ["model", "scores", "compacted", "scores whose heatmaps"])
def test_a_table_of_too_many_files_to_look_at_is_known_as_well(held, tmp_path, monkeypatch):
    monkeypatch.setattr("patchlake.pipeline.storage.roles._LOOKED_AT", 1)
    folder = Folder.at(str(tmp_path))
    for name in next(names for role, names in ROLES.items() if role.startswith(held)):
        folder.write(name, b"")
    require([Use(folder, held.split()[0], is_written=True)])
    with pytest.raises(ConfigError, match="cannot be an images table as well"):
        require([Use(folder, "images", is_written=True)])


def test_an_empty_folder_and_one_with_notes_may_become_anything(tmp_path):
    (tmp_path / "README.txt").write_text("ours")
    for role in ("images", "scores", "compacted", "model"):
        require([Use(Folder.at(str(tmp_path / "new")), role, is_written=True)])
        require([Use(Folder.at(str(tmp_path)), role, is_written=True)])


def test_folders_of_one_command_lie_apart(tmp_path):
    images, model = Folder.at(str(tmp_path)), Folder.at(str(tmp_path / "model"))
    with pytest.raises(ConfigError, match="lies inside the images table"):
        require([Use(images, "images"), Use(model, "model", is_written=True)])
    hidden = Folder.at(str(tmp_path / "_models" / "model"))
    require([Use(images, "images"), Use(hidden, "model", is_written=True)])
    with pytest.raises(ConfigError, match="name two folders"):
        require([Use(images, "images"), Use(images, "scores", is_written=True)])
    for inner in ("version=1/x", "_heatmaps", "inner"):
        dest = Folder.at(str(tmp_path / inner))
        with pytest.raises(ConfigError, match=f"{inner} lies inside {tmp_path}, which is a score"):
            require([Use(images, "scores"), Use(dest, "compacted", is_written=True)])


def _held(root: Path) -> dict[str, tuple[int, int]]:
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_no_verb_takes_one_table_for_another(images, model, scores, tmp_path, patchlake, pictures):
    compacted = tmp_path / "compacted"
    compact.run(str(scores), str(compacted))
    # Copies: what is refused must not change a byte.
    i, m, s, c = (
        Path(shutil.copytree(one, tmp_path / name))
        for one, name in ((images, "i"), (model, "m"), (scores, "s"), (compacted, "c"))
    )
    before = _held(tmp_path)
    commands = [
        *(("score", i, m, target, *TINY_FLAGS) for target in (i, m, c)),
        *(("fit", i, target, *TINY_FLAGS) for target in (i, s, c)),
        *(("ingest", pictures, target, "--runner", "local") for target in (m, s, c)),
        *(("compact", s, target) for target in (i, m, s)),
        ("evaluate", s, i),
        ("score", s, m, tmp_path / "new", *TINY_FLAGS),
        ("score", i, s, tmp_path / "new", *TINY_FLAGS),
    ]
    for command in commands:
        result = patchlake(*command)
        assert result.code == 2, (command, result.err)
        said = [line for line in result.err.strip().splitlines() if "reading what" not in line]
        assert len(said) == 1, result.err
        assert "name " in result.err
    assert _held(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["a file", "below a file", "a link to nothing"])
def test_a_target_that_cannot_be_a_folder_is_one_line(place, images, tmp_path, patchlake):
    target = tmp_path / "file"
    target.write_text("")
    if place == "below a file":
        target = target / "below"
    if place == "a link to nothing":
        target = tmp_path / "link"
        os.symlink(tmp_path / "nothing", target)
    for command in (
        ("fit", images, target, *TINY_FLAGS),
        ("ingest", images.parent, target, "--runner", "local"),
    ):
        result = patchlake(*command)
        assert result.code == 2, result.err
        said = [line for line in result.err.strip().splitlines() if "reading what" not in line]
        assert len(said) == 1, result.err
        assert str(target) in result.err
