"""A training image is stored with the score that it would have, had it not been fitted on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from patchlake.pipeline.config import load_settings
from patchlake.pipeline.driver import fit
from patchlake.pipeline.features.extractor import Extractor
from patchlake.pipeline.groups.files import Accounts, load_accounts
from patchlake.pipeline.groups.loading import load_group
from patchlake.pipeline.groups.member import Member
from patchlake.pipeline.images.files import decode_image
from patchlake.pipeline.images.formats import Limits
from patchlake.pipeline.methods import build
from patchlake.pipeline.methods.shared.bank import OwnPart
from patchlake.pipeline.methods.shared.contract import Scores
from patchlake.pipeline.model_store.models import GroupRecord, Manifest, read_manifest
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY
from tests.jobs.conftest import GROUP, TRAINING_IMAGES, WHERE, FittedBy
from tests.jobs.test_methods import settings_of
from tests.small import EVERY, SMALL

# In whose models an image has no part that can be left out: they are trained on all at once.
KNOWS_NO_IMAGE = {"cfa"}
# In whose models images have rows of their own.
HAS_ROWS_OF_IMAGES = {name for name in SMALL if not build(name, {}).exact_because}
# The number of an image that a model is fitted without.
LEFT_OUT = 7

Row = dict[str, object]


@dataclass(frozen=True)
class Model:
    """A fitted model of one group, whose scores are computed here image by image."""

    folder: Folder
    manifest: Manifest
    images: Path

    @classmethod
    def at(cls, root: Path, images: Path) -> "Model":
        folder = Folder(str(root))
        return cls(folder, read_manifest(folder), images)

    @property
    def record(self) -> GroupRecord:
        return self.manifest.groups[GROUP]

    @cached_property
    def accounts(self) -> Accounts:
        return load_accounts(self.folder, self.record)

    @property
    def training_images(self) -> list[Row]:
        return self.accounts.images.to_pylist()

    def own_part(self, number: int, image: Row) -> OwnPart:
        """What an image has in the model: the rows of the bank that are said to be of it."""
        table = self.accounts.provenance
        rows = [] if table is None else table.to_pylist()
        own = [row["bank_row"] for row in rows if row["image_id"] == image["image_id"]]
        return OwnPart(np.array([number]), np.array(own, np.int64))

    def scorer(self) -> Callable[[Row, OwnPart | None], Scores]:
        """What scores an image of the lake, compared with all of the model but its own part."""
        method = build(self.manifest.method, self.manifest.method_options)
        detector = method.prepare(load_group(self.folder, self.record, 1))
        member = Member(self.folder, self.manifest, self.manifest.backbone.weights)
        embed = partial(method.embed, seed=self.manifest.settings.seed)
        extract = Extractor(member.checked_backbone(), embed)

        def score(row: Row, own: OwnPart | None) -> Scores:
            pixels = member.geometry.apply(self._opened(row))
            return detector.score(extract(pixels[None]), own)

        return score

    def _opened(self, row: Row) -> Image.Image:
        file = pq.ParquetFile(self.images / str(row["source_path"]))
        content = file.read(["image"])["image"][row["source_row"]].as_py()
        return decode_image(content, Limits())


def assert_stored(row: Row, found: Scores) -> None:
    assert row["score"] == found.image_scores[0]
    if found.anomaly_maps is None:
        assert (row["peak"], row["patch_mean"], row["patch_std"]) == (None, None, None)
    else:
        exact = found.anomaly_maps[0].astype(np.float64)
        assert (row["patch_mean"], row["patch_std"]) == (exact.mean(), exact.std())


@pytest.mark.parametrize("method", EVERY)
def test_a_stored_score_is_that_of_the_image_without_its_own_part_in_the_model(
    method: str, images: Path, fitted_by: FittedBy
):
    model = Model.at(fitted_by(method), images)
    score, of_images, differences = model.scorer(), 0, []
    assert len(model.training_images) == TRAINING_IMAGES
    for number, row in enumerate(model.training_images):
        own = model.own_part(number, row)
        found = score(row, own)
        assert_stored(row, found)
        assert (row["peak"] is None) == (found.anomaly_maps is None)
        of_images += len(own.rows)
        differences.append(row["score"] - score(row, None).image_scores[0])
    # Each row of a bank is some image's; and without its own part an image scores higher, or the
    # same where what is farthest from the bank was compared with other images anyway.
    bank_rows = model.record.facts.get("bank_rows")
    assert of_images == (bank_rows if method in HAS_ROWS_OF_IMAGES else 0)
    assert min(differences) >= 0
    assert (max(differences) > 0) == (method not in KNOWS_NO_IMAGE)


@pytest.mark.parametrize("method", EVERY)
def test_the_unit_of_scores_is_the_spread_of_those_stored(
    method: str, images: Path, fitted_by: FittedBy
):
    model = Model.at(fitted_by(method), images)
    stored = np.array([row["score"] for row in model.training_images], np.float64)
    calibration = model.accounts.calibration
    assert calibration.images == TRAINING_IMAGES
    assert calibration.scores.mean == pytest.approx(stored.mean(), rel=1e-12)
    assert calibration.scores.std == pytest.approx(stored.std(), rel=1e-12)


def test_of_cfa_only_images_that_it_was_not_trained_on_have_a_score(images: Path, tmp_path: Path):
    options = {"name": "cfa", "held_out_fraction": 0.5} | SMALL["cfa"]
    settings = load_settings(flags=TINY | {"method": options})
    fit.run(str(images), str(tmp_path), settings, LOCAL, where=WHERE)
    model = Model.at(tmp_path, images)
    score = model.scorer()
    for number, row in enumerate(model.training_images):
        # Every other one, evenly spread: 6 of 12.
        if number % 2:
            assert_stored(row, score(row, None))
        else:
            assert [row[n] for n in ("score", "peak", "patch_mean", "patch_std")] == [None] * 4
    assert model.accounts.calibration.images == TRAINING_IMAGES / 2


# Bounds of how many times its stored score an image has by a model that was fitted without it.
Ratios = Callable[[Model, Model], tuple[float, float]]


def equal(with_it: Model, without_it: Model) -> tuple[float, float]:
    """Distances to the images that are left are the same ones."""
    return 1.0, 1.0


def as_regularised(with_it: Model, without_it: Model) -> tuple[float, float]:
    """Where an image is left out, epsilon is scaled with Sigma, by (N - 1) / (N - 2).

    So that Sigma <= Sigma' <= (N - 1) / (N - 2) Sigma, with Sigma that of the other images alone,
    and M' <= M <= sqrt((N - 1) / (N - 2)) M' at each location; so are means and largest ones of M.
    """
    images = with_it.record.images
    return 1.0, np.sqrt((images - 1) / (images - 2))


def as_shrunk(with_it: Model, without_it: Model) -> tuple[float, float]:
    """Where an image is left out, s and mu are those of all images.

    Both Sigmas of a level are a A + b I with one A: where a and b of one are between l and h times
    those of the other, its M are between 1 / sqrt(h) and 1 / sqrt(l) times the other's.
    """
    images, ratios = with_it.record.images, []
    for level in range(5):
        of_scatter, of_identity = shrunk(with_it, f"level{level}")
        alone = shrunk(without_it, f"level{level}")
        ratios.append(alone[0] / of_scatter)
        ratios.append(alone[1] / (of_identity * images / (images - 1)))
    return 1 / np.sqrt(max(ratios)), 1 / np.sqrt(min(ratios))


def shrunk(model: Model, level: str) -> tuple[float, float]:
    """1 - s, and s mu: of a level's Sigma = (1 - s) scatter / N + s mu I."""
    shrinkage, dim = (model.record.facts[f"{level}.{name}"] for name in ("shrinkage", "dimensions"))
    # The scatter's triangle, row by row: where rows end is the diagonal.
    ends = np.cumsum(np.arange(1, dim + 1, dtype=int)) - 1
    variances = model.accounts.statistics[f"{level}.scatter"][ends]
    return 1 - shrinkage, shrinkage * variances.sum() / (model.record.images * dim)


@pytest.mark.parametrize(
    ("method", "ratios"),
    [("dn2", equal), ("spade", equal), ("padim", as_regularised), ("mahalanobis", as_shrunk)],
)
def test_a_stored_score_is_close_to_that_by_a_model_fitted_without_the_image(
    method: str, ratios: Ratios, images: Path, fitted_by: FittedBy, tmp_path: Path
):
    model = Model.at(fitted_by(method), images)
    row = model.training_images[LEFT_OUT]
    where = f"{WHERE} and image_id != '{row['image_id']}'"
    fit.run(str(images), str(tmp_path), settings_of(method), LOCAL, where=where)
    alone = Model.at(tmp_path, images)
    assert alone.record.images == TRAINING_IMAGES - 1
    found = alone.scorer()(row, None)
    low, high = ratios(model, alone)
    # Else the bounds would say little.
    assert 0.95 < low <= high < 1.05
    # Whitenings are rounded to float32.
    assert low - 1e-4 <= found.image_scores[0] / row["score"] <= high + 1e-4
    if found.anomaly_maps is not None:
        mean = found.anomaly_maps.mean(dtype=np.float64)
        assert low - 1e-4 <= mean / row["patch_mean"] <= high + 1e-4


@pytest.mark.parametrize("method", EVERY)
def test_what_verdicts_go_by_is_measured_without_all_images_of_a_part(
    method: str, images: Path, fitted_by: FittedBy, tmp_path: Path
):
    """Each image as if it and its next one were shots of one part, in a model as it was fitted."""
    model = Model.at(fitted_by(method), images)
    rows, score = model.training_images, model.scorer()
    for row in rows:
        # The tiny images are of as many parts: each was measured without itself.
        if method in KNOWS_NO_IMAGE:
            # It was trained on all of them.
            assert (row["part_score"], row["part_peak"]) == (None, None)
        elif method in ("padim", "mahalanobis"):
            # Their Gaussians are those of one image fewer, not scaled: 12 / 11 is 1.091.
            assert 1 < row["part_score"] / row["score"] < np.sqrt(12 / 10)
        else:
            assert row["part_score"] == row["score"]
            assert row["part_peak"] == row["peak"]
        assert len(row["thumbnail"]) == 256
    assert len({row["part"] for row in rows}) == TRAINING_IMAGES
    facts = model.record.facts
    assert (facts["parts_told_by"], facts["parts"]) == ("look-alikes", TRAINING_IMAGES)
    known = None if method in KNOWS_NO_IMAGE else TRAINING_IMAGES
    assert facts.get("judged_parts") == known
    one, other = (model.own_part(number, rows[number]) for number in (2, 3))
    together = OwnPart(
        np.concatenate([one.images, other.images]), np.concatenate([one.rows, other.rows]), True
    )
    alone = score(rows[2], one).image_scores[0]
    if method in HAS_ROWS_OF_IMAGES:
        # An image's neighbours are further away, if anything.
        assert score(rows[2], together).image_scores[0] >= alone
