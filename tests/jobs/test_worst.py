"""worst: the images that a person looks at first, as a table and a sheet."""

import io
import json
import logging
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patchlake as library
from patchlake.pipeline.config import Settings, StorageSettings, load_settings
from patchlake.pipeline.driver import compact, fit, score, worst
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.images.sheet import SIDE
from tests.conftest import LOCAL, TINY, Store, output_files, read_scores, write_part


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two groups with verdicts, one without, over two nights."""
    root = tmp_path / "scores"
    box = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 9, "peak": 1.0}
    region = box | {"centre_x": 2.0, "centre_y": 3.0}
    write_part(
        *(root, "dt=2026-11-21/g=tile"),
        image_score=[9.0, 2.0, 3.0, None],
        threshold=[2.5] * 3 + [None],
        p_value=[0.005, 0.6, 0.005, None],
        is_anomalous=[True, False, True, None],
        regions=[[region, region], [], [region], None],
        status=["ok"] * 3 + ["unreadable"],
    )
    write_part(
        *(root, "dt=2026-11-22/g=plate"),
        group=["plate"] * 2,
        image_score=[500.0, 90.0],
        threshold=[100.0] * 2,
        p_value=[0.002, 0.2],
        is_anomalous=[True, False],
        regions=[[region], []],
    )
    write_part(
        *(root, "dt=2026-11-22/g=cap"),
        group=["cap"] * 3,
        image_score=[7.0, 8000.0, 6.0],
    )
    return root


def _names(found: worst.Worst) -> list[str]:
    return [image.image_id.removeprefix("dt=2026-11-") for image in found.images]


ORDERED = [
    *("22/g=plate/0.png", "21/g=tile/0.png", "21/g=tile/2.png"),
    *("22/g=plate/1.png", "21/g=tile/1.png"),
    *("22/g=cap/1.png", "22/g=cap/0.png", "22/g=cap/2.png"),
]


def test_anomalous_images_come_first_and_those_without_verdict_last(
    table: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "patchlake"):
        found = worst.run(str(table))
    assert _names(found) == ORDERED
    assert (found.scored, found.without_score, found.version) == (8, 1, "abc")
    assert "no verdicts in 1 group, as ['cap']" in caplog.text
    assert _names(worst.run(str(table), 2)) == ORDERED[:2]
    first = found.images[1]
    assert (first.night, first.group, first.threshold) == ("2026-11-21", "tile", 2.5)
    assert [(b.x, b.y, b.width, b.height) for b in first.regions or ()] == [(1, 2, 3, 4)] * 2


def test_a_group_and_a_night_are_told_apart(table: Path) -> None:
    assert _names(worst.run(str(table), group="plate")) == ["22/g=plate/0.png", "22/g=plate/1.png"]
    assert _names(worst.run(str(table), night="2026-11-21")) == [
        *("21/g=tile/0.png", "21/g=tile/2.png", "21/g=tile/1.png")
    ]
    with pytest.raises(ConfigError, match="no row of group 'tiel' and of night '2026-11-21'"):
        worst.run(str(table), group="tiel", night="2026-11-21")
    with pytest.raises(ConfigError, match=r"of night '2026-11-23' \(dt\)"):
        worst.run(str(table), night="2026-11-23")
    with pytest.raises(ConfigError, match="0 images"):
        worst.run(str(table), 0)


def test_without_a_key_a_night_is_a_day_of_scoring(tmp_path: Path) -> None:
    days = [datetime(2026, 1, day, 23, tzinfo=UTC) for day in (1, 2)]
    write_part(tmp_path, image_score=[1.0, 2.0], scored_at=days)
    assert [i.image_score for i in worst.run(str(tmp_path), night="2026-01-02").images] == [2.0]


def test_the_command_prints_a_table_or_json_and_changes_nothing(
    patchlake, scores: Path, tmp_path: Path
) -> None:
    shutil.copytree(scores, tmp_path / "scores")
    before = output_files(tmp_path / "scores")
    done = patchlake("worst", tmp_path / "scores", "-n", 3)
    assert done.code == 0, done.err
    assert "3 images of 44 with a score" in done.out
    printed = patchlake("worst", tmp_path / "scores", tmp_path / "w.png", "-n", 3, "--json")
    told = json.loads(printed.out)
    assert told["sheet"] == str(tmp_path / "w.png")
    ids = [image["image_id"] for image in told["images"]]
    assert ids == [i.image_id for i in library.worst(scores, count=3).images]
    assert output_files(tmp_path / "scores") == before
    assert patchlake("worst", tmp_path / "scores", tmp_path / "w.jpg").code == 2
    inside = tmp_path / "scores" / "version=a" / "w.png"
    assert "among the rows" in patchlake("worst", tmp_path / "scores", inside).err
    assert "room for 200" in patchlake("worst", scores, tmp_path / "w.png", "-n", 201).err
    assert patchlake("worst", tmp_path / "none").code == 2


def _size(sheet: Path) -> tuple[int, int]:
    with Image.open(sheet) as image:
        image.load()
        return image.size


def test_the_sheet_shows_photo_and_heatmap_whatever_keeps_them(
    images: Path, model: Path, scores: Path, tmp_path: Path
) -> None:
    packed = load_settings(flags=TINY | {"score": TINY["score"] | {"heatmap_store": "packed"}})
    score.run(str(images), str(model), str(tmp_path / "packed"), packed, LOCAL)
    compact.run(str(scores), str(tmp_path / "compacted"))
    written = []
    for number, table in enumerate((scores, tmp_path / "packed", tmp_path / "compacted")):
        out = tmp_path / f"{number}.png"
        found = library.worst(table, out, count=4)
        assert len(found.images) == 4
        written.append(out.read_bytes())
    assert written[0] == written[1] == written[2]
    library.worst(scores, tmp_path / "again.png", count=4)
    assert (tmp_path / "again.png").read_bytes() == written[0]
    # Two by two, of two pictures each.
    width, height = _size(tmp_path / "0.png")
    assert width > 4 * SIDE
    assert height > 2 * SIDE


def test_images_that_are_gone_leave_the_heatmaps_and_the_other_way_round(
    images: Path, model: Path, tiny: Settings, tmp_path: Path
) -> None:
    lake, table = tmp_path / "images", tmp_path / "scores"
    shutil.copytree(images, lake)
    score.run(str(lake), str(model), str(table), tiny, LOCAL)
    library.worst(table, tmp_path / "both.png", count=1)
    shutil.rmtree(lake)
    library.worst(table, tmp_path / "heatmap.png", count=1)
    shutil.rmtree(table / "_heatmaps")
    library.worst(table, tmp_path / "nothing.png", count=1)
    both, heatmap, nothing = (
        _size(tmp_path / f"{n}.png")[0] for n in ("both", "heatmap", "nothing")
    )
    assert both == heatmap + SIDE
    assert nothing == heatmap
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "heatmap.png").read_bytes())))
    assert pixels[20:SIDE].std() > 10


def test_a_method_without_maps_has_photos_only(images: Path, tmp_path: Path) -> None:
    settings = load_settings(flags=TINY | {"method": {"name": "dn2"}})
    fit.run(str(images), str(tmp_path / "model"), settings, LOCAL)
    score.run(str(images), str(tmp_path / "model"), str(tmp_path / "scores"), settings, LOCAL)
    found = library.worst(tmp_path / "scores", tmp_path / "w.png", count=2)
    assert all(image.heatmap_path is None and not image.regions for image in found.images)
    assert _size(tmp_path / "w.png")[0] < 3 * SIDE


def test_a_heatmap_that_somebody_replaced_is_not_decoded_here(scores: Path, tmp_path: Path) -> None:
    shutil.copytree(scores, tmp_path / "scores")
    found = worst.run(str(tmp_path / "scores"), 2)
    (tmp_path / "scores" / str(found.images[0].heatmap_path)).write_bytes(b"\xff\xd8\xff" * 999)
    path = worst.write(found, str(tmp_path / "scores"), str(tmp_path / "w.png"))
    assert _size(Path(path))[0] > 2 * SIDE


def test_hostile_names_are_printed_escaped(patchlake, tmp_path: Path) -> None:
    hostile = "\x1b[2J<script>alert(1)</script>\u202e.png"
    write_part(tmp_path / "scores", image_id=[hostile], group=["\x1b]0;x\x07"])
    done = patchlake("worst", tmp_path / "scores", tmp_path / "w.png")
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    assert "\\x1b" in done.out
    assert _size(tmp_path / "w.png")


@pytest.mark.s3
@pytest.mark.slow
def test_a_table_in_s3(store: Store, images: Path, model: Path) -> None:
    settings = store.settings()
    score.run(str(images), str(model), store.uri("scores"), settings, LOCAL)
    found = worst.run(store.uri("scores"), 3, settings=settings)
    written = worst.write(found, store.uri("scores"), store.uri("w.png"), settings)
    assert written == store.uri("w.png")
    assert len(store.files()["w.png"]) > 10_000


def test_storage_is_all_that_counts_of_the_settings(scores: Path) -> None:
    settings = Settings(storage=StorageSettings(retries=1))
    assert worst.run(str(scores), 1, settings=settings) == worst.run(str(scores), 1)
    assert len(read_scores(scores)) == 44
