"""One scored image: its regions and its picture. What is anomalous is never without a mark."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from patchlake.pipeline.images.geometry import Geometry
from patchlake.pipeline.images.pictures import photo_pixels, picture_size, small_photo
from patchlake.pipeline.scores.heatmap import ColourScale, to_jpeg
from patchlake.pipeline.scores.regions import is_marked, regions_of
from patchlake.pipeline.scores.verdict import Judgement
from patchlake.pipeline.stages.examined import Examined

WHOLE, CROPPED = Geometry((32, 32), None), Geometry(40, 32)
# Colour begins above all of the maps here, unless a test says otherwise.
PALE = ColourScale(100.0, 200.0)
ANOMALOUS, NORMAL = Judgement(3.0, 2.0, 0.01, 1.5), Judgement(1.0, 2.0, 0.7, 1.5)
maps = arrays.arrays(np.float32, (4, 4), elements=st.floats(0, 3, width=32))


def photo_of(width, height, colour=(200, 180, 40)):
    return small_photo(Image.new("RGB", (width, height), colour))


def drawn(judgement, anomaly_map, size=(40, 30), geometry=WHOLE, scale=PALE, colour=(255,) * 3):
    """The photo's part of a picture, and the photo."""
    photo = photo_of(*size, colour)
    picture = Examined(judgement, anomaly_map, size, geometry).picture(photo, scale)
    pixels = photo_pixels(photo)
    return picture[: pixels.shape[0], : pixels.shape[1]], pixels


@given(
    maps,
    st.sampled_from([(40, 30), (3, 3), (3, 60), (700, 5), (1200, 900)]),
    st.sampled_from([WHOLE, CROPPED]),
    st.sampled_from([(0, 0, 0), (255, 255, 255), (200, 180, 40)]),
)
@settings(max_examples=60, deadline=None)
def test_an_anomalous_image_has_a_mark_on_its_photo(anomaly_map, size, geometry, colour):
    found, photo = drawn(ANOMALOUS, anomaly_map, size, geometry, colour=colour)
    assert np.abs(found.astype(int) - photo).max() > 40
    image = Examined(ANOMALOUS, anomaly_map, size, geometry)
    assert image.regions()


@given(maps)
@settings(deadline=None)
def test_outlines_are_of_the_regions(anomaly_map):
    found, photo = drawn(ANOMALOUS, anomaly_map, colour=(90, 90, 90))
    frame = WHOLE.to_frame(anomaly_map, (40, 30), (30, 40))
    marked = is_marked(frame, 1.5)
    white = (found == 255).all(axis=2)
    assert not (white & ~marked).any()
    # Each region has white pixels in it.
    regions = Examined(ANOMALOUS, anomaly_map, (40, 30), WHOLE).regions()
    assert regions == regions_of(frame, marked, (40, 30))
    for one in regions:
        assert white[one.y : one.y + one.height, one.x : one.x + one.width].any()
    # And nothing else of the photo has changed: a line is beside or in what is marked.
    changed = (found != photo).any(axis=2)
    near = np.lib.stride_tricks.sliding_window_view(np.pad(marked, 1), (3, 3)).any(axis=(2, 3))
    assert not (changed & ~near).any()


@pytest.mark.parametrize("judgement", [NORMAL, Judgement(3.0), Judgement(3.0, 2.0)])
def test_without_a_verdict_on_it_a_photo_has_no_outline(judgement):
    anomaly_map = np.full((4, 4), 3, np.float32)
    found, photo = drawn(judgement, anomaly_map)
    np.testing.assert_array_equal(found, photo)
    regions = Examined(judgement, anomaly_map, (40, 30), WHOLE).regions()
    assert regions == (None if judgement.pixel_threshold is None else [])


def test_colour_is_over_the_photos_own():
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[0, 0] = 8
    found, photo = drawn(NORMAL, anomaly_map, scale=ColourScale(1.0, 3.0), colour=(200, 180, 40))
    frame = WHOLE.to_frame(anomaly_map, (40, 30), (30, 40))
    # A strength of 0.001 is less than half of a step of its root.
    coloured = frame > 1.01
    assert coloured.any()
    assert not coloured.all()
    changed = (found != photo).any(axis=2)
    assert changed[coloured].all()
    assert not changed[frame <= 1].any()
    # The strongest colour, with a quarter of the photo.
    top = found[0, 0].astype(float)
    np.testing.assert_allclose(top, 0.25 * photo[0, 0] + 0.75 * np.array([255, 245, 150]), atol=1)


@pytest.mark.parametrize("size", [(1, 100_000), (100_000, 1), (40, 40), (1, 1), (4000, 30)])
@pytest.mark.parametrize("judgement", [ANOMALOUS, NORMAL, Judgement(3.0)])
def test_a_picture_of_any_size_is_a_photo_with_a_strip(size, judgement):
    picture = Examined(judgement, np.eye(4, dtype=np.float32) * 3, size, WHOLE).picture(
        photo_of(*size), PALE
    )
    height, width = picture_size(*size)
    assert height < picture.shape[0] <= height + 120
    assert width <= picture.shape[1] <= max(width, 250)
    with Image.open(io.BytesIO(to_jpeg(picture))) as decoded:
        assert decoded.size == picture.shape[1::-1]
