"""`image.draft`: a model fixes it, and whatever scores with the model decodes as its fit did."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import patchlake
from patchlake.pipeline.config import Settings, load_settings
from patchlake.pipeline.driver import fit, ingest, score, update
from patchlake.pipeline.driver.lineage import open_base
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.model_store.models import read_manifest
from patchlake.pipeline.sources.sources import Arrangement
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import LOCAL, TINY, read_scores

# At least twice 64, twice.
SIDE = 300


def settings_of(**image: object) -> Settings:
    return load_settings(flags=TINY | {"image": TINY["image"] | image})


def _jpeg(number: int) -> bytes:
    """A photo with detail that a draft of half the sides has not."""
    noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3))
    sink = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).save(sink, "JPEG", quality=95)
    return sink.getvalue()


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for number in range(8):
        split = "train" if number < 6 else "test"
        photo = root / "photos" / "noise" / split / "good" / f"{number}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        photo.write_bytes(_jpeg(number))
    ingest.run(str(root / "photos"), str(root / "lake"), Arrangement(), settings_of(), LOCAL)
    return root / "lake"


@pytest.fixture(scope="module")
def fitted(lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[bool, Path]:
    """The models, by whether photos were drafted."""
    root = tmp_path_factory.mktemp("drafts")
    for draft in (False, True):
        fit.run(str(lake), str(root / str(draft)), settings_of(draft=draft), LOCAL)
    return {draft: root / str(draft) for draft in (False, True)}


def test_a_model_says_whether_photos_were_drafted(fitted):
    manifests = {draft: read_manifest(Folder(str(fitted[draft]))) for draft in fitted}
    for draft, manifest in manifests.items():
        assert manifest.geometry.draft is draft
        assert manifest.settings.image.draft is draft
    assert len({manifest.groups["noise"].digest for manifest in manifests.values()}) == 2


def test_a_score_decodes_as_the_fit_did_though_nobody_says_so(lake, fitted, tmp_path):
    numbers = {}
    for draft, model in fitted.items():
        score.run(str(lake), str(model), str(tmp_path / str(draft)), settings_of(), LOCAL)
        rows = read_scores(tmp_path / str(draft)).to_pylist()
        assert {(row["status"], row["width"], row["height"]) for row in rows} == {
            ("ok", SIDE, SIDE)
        }
        files = list((tmp_path / str(draft)).rglob("*.jpg"))
        pictures = [Image.open(io.BytesIO(file.read_bytes())) for file in files]
        assert {picture.width for picture in pictures} == {SIDE}
        # The photo, and its strip of one to four lines.
        assert {picture.height - SIDE for picture in pictures} <= {20, 40, 60, 80}
        numbers[draft] = {row["image_id"][-5:]: row["image_score"] for row in rows}
        assert len(pictures) == len(numbers[draft]) == 8

        # The same bytes in memory; and, decoded by somebody else, all of the file's pixels.
        detector = patchlake.load(model, threads=1)
        photo = _jpeg(7)
        of_bytes, of_pixels = detector.score([photo, Image.open(io.BytesIO(photo))])
        assert of_bytes.image_score == numbers[draft]["7.jpg"]
        assert (of_bytes.width, of_bytes.height) == (SIDE, SIDE)
        assert (of_pixels.image_score != of_bytes.image_score) is draft
    assert numbers[True] != numbers[False]


def test_an_update_decodes_as_the_fit_did(lake, fitted):
    base = open_base(Folder(str(fitted[True])), settings_of())
    assert base.settings.image.draft is True
    with pytest.raises(ConfigError, match=r"image\.draft is True, the model was fitted with False"):
        update.run(str(lake), str(fitted[False]), settings_of(draft=True), LOCAL)


def test_a_score_that_asks_for_drafts_of_a_model_without_is_refused(lake, fitted, tmp_path):
    with pytest.raises(ConfigError, match=r"image\.draft is True, the model was fitted with False"):
        score.run(str(lake), str(fitted[False]), str(tmp_path), settings_of(draft=True), LOCAL)


def test_members_that_read_another_picture_are_refused(lake, fitted, tmp_path):
    models = [str(model) for model in fitted.values()]
    said = "members were fitted with image.draft False and True: .* fit them alike"
    with pytest.raises(ConfigError, match=said):
        score.run(str(lake), models, str(tmp_path), settings_of(), LOCAL)


@pytest.mark.parametrize("value", ["2", "half", "[true]", "null"])
def test_a_draft_is_asked_for_or_not(value):
    with pytest.raises(ConfigError, match=r"setting 'image\.draft' is "):
        load_settings("", [f"image.draft={value}"])
