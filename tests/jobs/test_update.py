"""Images join a model and leave it: every method that can, and the one that cannot."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import fit, ingest, lineage, score, update, withdraw
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.withdraw import Withdrawal
from patchlake.pipeline.errors import ConfigError, FragmentsFailed
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.model_store.models import Manifest, read_manifest
from patchlake.pipeline.sources.sources import Arrangement
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import TRAINING_IMAGES
from tests.conftest import LOCAL, TINY, TINY_FLAGS, by_place, soak
from tests.jobs.test_methods import settings_of
from tests.small import UPDATABLE

# As a refit but for rounding; a coreset that goes on from its centres is another one.
AS_REFIT = ("dn2", "mahalanobis", "padim", "spade")
GROUPS = ("brushed_plate", "woven_cloth")
# It was in the earlier lake.
GONE = "woven_cloth/train/good/004.png"


@dataclass(frozen=True)
class Lakes:
    """A lake, and the same one earlier, with half of the good images to train on."""

    earlier: Path
    whole: Path
    # The whole one with GONE labelled as a defect.
    without: Path


@pytest.fixture(scope="module")
def lakes(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Lakes:
    root, tiny = tmp_path_factory.mktemp("lakes"), load_settings(flags=TINY)
    source = root / "source"
    shutil.copytree(pictures, source)
    for path in sorted(source.glob("*/train/good/*.png"))[1::2]:
        path.unlink()
    ingest.run(str(source), str(root / "whole"), Arrangement(), tiny, LOCAL)
    # With their times, which tell versions of a file.
    shutil.copytree(root / "whole", root / "earlier")
    shutil.copytree(pictures, source, dirs_exist_ok=True)
    ingest.run(str(source), str(root / "whole"), Arrangement(), tiny, LOCAL)
    shutil.copytree(root / "whole", root / "without")
    for path in (root / "without").rglob("*.parquet"):
        table = pq.read_table(path)
        ids, labels = (table.column(name).to_pylist() for name in ("image_id", "label"))
        labels = ["scratch" if i == GONE else label for i, label in zip(ids, labels, strict=True)]
        column = table.column_names.index("label")
        pq.write_table(table.set_column(column, "label", pa.array(labels, pa.string())), path)
    return Lakes(root / "earlier", root / "whole", root / "without")


@dataclass(frozen=True)
class Grown:
    """A model of the earlier lake that the images of the whole one have joined."""

    method: str
    model: Path
    before: Manifest
    after: Manifest


# One with a bank and one with statistics; the others take half a minute more.
DEFAULT = ("mahalanobis", "patchcore")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow) for name in UPDATABLE
    ],
)
def grown(
    request: pytest.FixtureRequest, lakes: Lakes, tmp_path_factory: pytest.TempPathFactory
) -> Grown:
    model, settings = tmp_path_factory.mktemp(request.param), settings_of(request.param)
    before = fit.run(str(lakes.earlier), str(model), settings, LOCAL)
    after = update.run(str(lakes.whole), str(model), settings, LOCAL)
    return Grown(request.param, model, before, after)


def scores_of(images: Path, model: Path, out: Path, settings: Settings) -> np.ndarray:
    quick = settings.model_copy(
        update={"score": settings.score.model_copy(update={"heatmaps": "none"})}
    )
    score.run(str(images), str(model), str(out), quick, LOCAL)
    return np.array([row["image_score"] for _, row in sorted(by_place(out).items())])


def images_of(model: Path, group: str) -> list[dict[str, object]]:
    """The group's images, from the file that model.json names."""
    records = read_manifest(Folder(str(model))).groups[group].files
    name = next(file.name for file in records if file.role == "images.parquet")
    table = pq.read_table(model / name, partitioning=None)
    assert table.schema == TRAINING_IMAGES
    return table.to_pylist()


def copy_of(grown: Grown, folder: Path) -> Path:
    return Path(shutil.copytree(grown.model, folder / "model"))


def test_new_images_join_and_the_lineage_says_so(grown: Grown, lakes: Lakes):
    fitted, joined = grown.after.lineage
    assert (fitted.verb, joined.verb) == ("fit", "update")
    assert (fitted.images, joined.images) == (str(lakes.earlier), str(lakes.whole))
    assert joined.run == grown.after.run
    for group in GROUPS:
        before, after = grown.before.groups[group], grown.after.groups[group]
        assert (before.images, after.images) == (6, 12)
        change = joined.groups[group]
        assert (change.parent, change.digest) == (before.digest, after.digest)
        assert (change.added, change.withdrawn) == (6, 0)
        assert [row["joined"] for row in images_of(grown.model, group)] == [0] * 6 + [1] * 6
        assert all(row["score"] is not None for row in images_of(grown.model, group))


def test_only_new_images_were_embedded(grown: Grown):
    run = json.loads((grown.model / f"_runs/{grown.after.run}/summary.json").read_text())
    assert run["statuses"] == {"ok": 12}
    assert not (grown.model / f"_runs/{grown.after.run}/partials").exists()


def test_without_new_images_nothing_happens(grown: Grown, lakes: Lakes):
    content = (grown.model / "model.json").read_bytes()
    settings = settings_of(grown.method)
    assert update.run(str(lakes.whole), str(grown.model), settings, LOCAL) == grown.after
    assert (grown.model / "model.json").read_bytes() == content


def test_scores_are_those_of_a_refit(grown: Grown, lakes: Lakes, tmp_path: Path):
    settings = settings_of(grown.method)
    fit.run(str(lakes.whole), str(tmp_path / "refit"), settings, LOCAL)
    expected = scores_of(lakes.whole, tmp_path / "refit", tmp_path / "a", settings)
    found = scores_of(lakes.whole, grown.model, tmp_path / "b", settings)
    if grown.method in AS_REFIT:
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    else:
        assert np.corrcoef(found, expected)[0, 1] > 0.9


def test_a_withdrawn_image_is_as_if_it_had_never_been_there(
    grown: Grown, lakes: Lakes, tmp_path: Path
):
    model, settings = copy_of(grown, tmp_path), settings_of(grown.method)
    manifest = withdraw.run(
        str(model), Withdrawal((GONE,), images=str(lakes.whole)), settings, LOCAL
    )
    step = manifest.lineage[-1]
    assert (step.verb, list(step.groups)) == ("withdraw", ["woven_cloth"])
    assert (step.groups["woven_cloth"].added, step.groups["woven_cloth"].withdrawn) == (0, 1)
    assert step.groups["woven_cloth"].parent == grown.after.groups["woven_cloth"].digest
    group = manifest.groups["woven_cloth"]
    assert group.images == 11
    assert group.digest != grown.after.groups["woven_cloth"].digest
    assert manifest.groups["brushed_plate"] == grown.after.groups["brushed_plate"]
    assert [row["image_id"] for row in images_of(model, "woven_cloth") if row["left"] == 2] == [
        GONE
    ]
    for file in group.files:
        if file.role == "provenance.parquet":
            assert GONE not in pq.read_table(model / file.name)["image_id"].to_pylist()
    if grown.method in AS_REFIT:
        fit.run(str(lakes.without), str(tmp_path / "refit"), settings, LOCAL)
        expected = scores_of(lakes.whole, tmp_path / "refit", tmp_path / "a", settings)
        found = scores_of(lakes.whole, model, tmp_path / "b", settings)
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_withdrawn_image_does_not_come_back(grown: Grown, lakes: Lakes, tmp_path: Path):
    model, settings = copy_of(grown, tmp_path), settings_of(grown.method)
    wanted = Withdrawal((GONE,), images=str(lakes.whole))
    manifest = withdraw.run(str(model), wanted, settings, LOCAL)
    assert withdraw.run(str(model), wanted, settings, LOCAL) == manifest
    assert update.run(str(lakes.whole), str(model), settings, LOCAL) == manifest
    # And images can still join a model that others have left.
    left = withdraw.run(
        str(model),
        Withdrawal(("woven_cloth/train/good/001.png",), images=str(lakes.whole)),
        settings,
        LOCAL,
    )
    assert left.groups["woven_cloth"].images == 10


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("method", ["patchcore", soak("padim")])
def test_ray_and_local_write_the_same_model(
    method: str, lakes: Lakes, tmp_path: Path, one_actor: None
):
    found = []
    for name, execution in (("a", LOCAL), ("b", Execution("ray", None))):
        model, settings = tmp_path / name, settings_of(method, fragment_images=4)
        fit.run(str(lakes.earlier), str(model), settings, LOCAL)
        update.run(str(lakes.whole), str(model), settings, execution)
        wanted = Withdrawal((GONE,), images=str(lakes.whole))
        found.append(withdraw.run(str(model), wanted, settings, execution).groups)
    assert found[0] == found[1]


def test_it_goes_on_where_it_was_stopped(
    lakes: Lakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings, model = settings_of("patchcore"), tmp_path / "model"
    fit.run(str(lakes.earlier), str(model), settings, LOCAL)
    before = (model / "model.json").read_bytes()
    expected = update.run(
        str(lakes.whole), str(shutil.copytree(model, tmp_path / "other")), settings, LOCAL
    )

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # The last moment before the step happens.
        patched.setattr("patchlake.pipeline.model_store.models.write_manifest", stop)
        with pytest.raises(KeyboardInterrupt):
            update.run(str(lakes.whole), str(model), settings, LOCAL)
    assert (model / "model.json").read_bytes() == before
    with monkeypatch.context() as patched:
        # Everything is embedded: no network is loaded.
        patched.setattr(lineage.Embedder, "start", stop)
        found = update.run(str(lakes.whole), str(model), settings, LOCAL)
    assert found.groups == expected.groups


def test_a_failed_fragment_leaves_its_group_as_it_was(
    lakes: Lakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings, model = settings_of("dn2"), tmp_path / "model"
    before = fit.run(str(lakes.earlier), str(model), settings, LOCAL)
    opened = Source.read_image

    def broken(source: Source, row: dict[str, object]):
        if str(row["image_id"]).startswith("woven_cloth/"):
            raise RuntimeError("the disk is on fire")
        return opened(source, row)

    with monkeypatch.context() as patched:
        patched.setattr(Source, "read_image", broken)
        with pytest.raises(FragmentsFailed, match="woven_cloth"):
            update.run(str(lakes.whole), str(model), settings, LOCAL)
    half = read_manifest(Folder(str(model)))
    assert half.groups["woven_cloth"] == before.groups["woven_cloth"]
    assert half.groups["brushed_plate"].images == 12
    again = update.run(str(lakes.whole), str(model), settings, LOCAL)
    assert [group.images for group in again.groups.values()] == [12, 12]
    assert [sorted(step.groups) for step in again.lineage[1:]] == [[GROUPS[0]], [GROUPS[1]]]


def test_a_model_that_was_changed_meanwhile_is_not_overwritten(
    lakes: Lakes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings, model = settings_of("dn2"), tmp_path / "model"
    fit.run(str(lakes.earlier), str(model), settings, LOCAL)
    real = update.update_group
    changed: list[Manifest] = []

    def another_first(*arguments: object):
        if not changed:
            changed.append(withdraw.run(str(model), Withdrawal((GONE,)), settings, LOCAL))
        return real(*arguments)

    monkeypatch.setattr(update, "update_group", another_first)
    with pytest.raises(ConfigError, match="was changed by run"):
        update.run(str(lakes.whole), str(model), settings, LOCAL)
    assert read_manifest(Folder(str(model))) == changed[0]


def test_status_shows_the_lineage(lakes: Lakes, tmp_path: Path, patchlake):
    model = tmp_path / "model"
    assert patchlake("fit", lakes.earlier, model, *TINY_FLAGS).code == 0
    assert patchlake("fit", lakes.whole, model, "--update", *TINY_FLAGS).code == 0
    gone = patchlake("withdraw", model, "--image", GONE, "--runner", "local")
    assert gone.code == 0, gone.err
    shown = json.loads(patchlake("status", model, "--json").out)
    steps = [(run["verb"], run["state"], run["changes"]["woven_cloth"]) for run in shown]
    assert [verb for verb, _, _ in steps] == ["fit", "update", "withdraw"]
    assert {state for _, state, _ in steps} == {"finished"}
    assert [(c["added"], c["withdrawn"]) for _, _, c in steps] == [(6, 0), (6, 0), (0, 1)]
    assert [c["parent"] for _, _, c in steps[1:]] == [c["digest"] for _, _, c in steps[:-1]]
    assert steps[2][2]["digest"][:12] in patchlake("status", model).out


def test_what_cannot_be_is_said(lakes: Lakes, tmp_path: Path, patchlake):
    settings, model = settings_of("mahalanobis"), tmp_path / "model"
    fit.run(str(lakes.earlier), str(model), settings, LOCAL)
    whole = str(lakes.whole)
    with pytest.raises(ConfigError, match=r"no image 'nobody' was ever in"):
        withdraw.run(str(model), Withdrawal(("nobody",)), settings, LOCAL)
    with pytest.raises(ConfigError, match=r"no group 'tile', but \['brushed_plate'"):
        withdraw.run(str(model), Withdrawal((GONE,), group="tile"), settings, LOCAL)
    changed = settings_of("mahalanobis", image={"resize": [32, 32]})
    with pytest.raises(ConfigError, match=r"image\.resize is \(32, 32\), the model was fitted"):
        update.run(whole, str(model), changed, LOCAL)
    both = patchlake("fit", whole, model, "--update", "--overwrite", "--runner", "local")
    assert (both.code, "name one" in both.err) == (2, True)
    moved = shutil.move(lakes.earlier, tmp_path / "moved")
    try:
        with pytest.raises(ConfigError, match="is gone"):
            withdraw.run(str(model), Withdrawal((GONE,)), settings, LOCAL)
        wanted = Withdrawal((GONE,), images=str(moved))
        assert withdraw.run(str(model), wanted, settings, LOCAL).lineage[-1].verb == "withdraw"
    finally:
        shutil.move(moved, lakes.earlier)


def test_a_file_that_changed_does_not_withdraw_others(lakes: Lakes, tmp_path: Path):
    settings, model, lake = settings_of("padim"), tmp_path / "model", tmp_path / "lake"
    shutil.copytree(lakes.earlier, lake)
    before = fit.run(str(lake), str(model), settings, LOCAL)
    for path in lake.rglob("*.parquet"):
        pq.write_table(pq.read_table(path, partitioning=None).slice(1), path)
    with pytest.raises(ConfigError, match="they may be others"):
        withdraw.run(str(model), Withdrawal((GONE,)), settings, LOCAL)
    assert read_manifest(Folder(str(model))) == before


def test_what_is_trained_cannot_be_updated(lakes: Lakes, tmp_path: Path):
    settings, model = settings_of("cfa"), tmp_path
    fit.run(str(lakes.earlier), str(model), settings, LOCAL)
    with pytest.raises(ConfigError, match="method 'cfa' is trained on all images together"):
        update.run(str(lakes.whole), str(model), settings, LOCAL)
    with pytest.raises(ConfigError, match="fit again"):
        withdraw.run(str(model), Withdrawal((GONE,)), settings, LOCAL)
