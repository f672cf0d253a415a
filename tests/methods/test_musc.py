"""MuSc against the paper's definition, written out image by image."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.methods import build
from patchlake.pipeline.methods.musc import MuSc
from patchlake.pipeline.methods.shared.bank import OwnPart
from patchlake.pipeline.methods.shared.contract import EarlierModel, Mutual, MutualDetector
from patchlake.pipeline.methods.shared.marks import Marks
from tests.methods.corpus import FakeCorpus, FakeGroup, split

SHAPES = {0: (4, 4, 5), 1: (2, 2, 3)}


def embedded(images, seed=0, sides=(1, 3)):
    """Patches of two layers, as `embed` returns them: of unit length, in float16's numbers."""
    rng = np.random.default_rng(seed)
    found = {}
    for layer, shape in SHAPES.items():
        for side in sides:
            rows = rng.normal(size=(images, *shape))
            rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
            found[f"layer{layer}.r{side}"] = rows.astype(np.float16).astype(np.float32)
    return found


def marks(images, seed=0, parts=None):
    digests = [hashlib.sha256(f"{seed} {n}".encode()).hexdigest() for n in range(images)]
    looks = [np.random.default_rng([seed, n]).bytes(256) for n in range(images)]
    return Marks.of(digests, parts or [None] * images, looks)


def fitted(night, known, *cuts, **options):
    method = MuSc(neighbourhood=3, **options)
    found = method.fit(FakeCorpus(split(night, *cuts), known=known), seed=0)
    return found, method.prepare(FakeGroup(found))


def by_definition(night, references, image, share=0.3):
    """The map of one image: mean over layers and r of the mean of its lowest distances."""
    layers = []
    for layer, (rows, columns, dim) in SHAPES.items():
        of_sides = []
        for name in (n for n in night if n.startswith(f"layer{layer}.")):
            query = night[name][image].reshape(-1, dim).astype(np.float64)
            distances = []
            for other in references:
                theirs = night[name][other].reshape(-1, dim).astype(np.float64)
                pairs = np.linalg.norm(query[:, None] - theirs[None], axis=2)
                distances.append(pairs.min(axis=1))
            count = max(1, int(len(distances) * share))
            of_sides.append(np.sort(distances, axis=0)[:count].mean(axis=0).reshape(rows, columns))
        grid = torch.from_numpy(np.mean(of_sides, axis=0))[None, None]
        finest = functional.interpolate(grid, size=SHAPES[0][:2], mode="bilinear")
        layers.append(finest[0, 0].numpy())
    return np.mean(layers, axis=0)


def taken(night, which):
    return {name: array[which] for name, array in night.items()}


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_each_image_is_scored_by_the_others_as_the_paper_defines_it(share: float):
    night, known = embedded(8), marks(8)
    _, detector = fitted(night, known, 3, nearest_share=share)
    found = detector.score_apart(night, known)
    for image in range(8):
        others = [other for other in range(8) if other != image]
        expected = by_definition(night, others, image, share)
        np.testing.assert_allclose(found.anomaly_maps[image], expected, rtol=1e-5)
        assert found.image_scores[image] == found.anomaly_maps[image].max()


def test_a_new_image_is_scored_by_all_references():
    night, new = embedded(8), embedded(2, seed=1)
    _, detector = fitted(night, marks(8))
    whole = {name: np.concatenate([night[name], new[name]]) for name in night}
    found = detector.score_apart(new, marks(2, seed=1))
    np.testing.assert_array_equal(found.anomaly_maps, detector.score(new).anomaly_maps)
    expected = by_definition(whole, range(8), 9)
    np.testing.assert_allclose(found.anomaly_maps[1], expected, rtol=1e-5)


def test_calibration_leaves_out_what_a_score_does():
    night, known = embedded(9), marks(9)
    _, detector = fitted(night, known, references=6)
    expected = detector.score_apart(night, known)
    none = np.empty(0, np.int64)
    found = detector.score(night, OwnPart(np.arange(9), none))
    np.testing.assert_array_equal(found.anomaly_maps, expected.anomaly_maps)
    together = detector.score(taken(night, [2]), OwnPart(np.array([2]), none, together=True))
    np.testing.assert_array_equal(together.anomaly_maps[0], expected.anomaly_maps[2])


def test_images_beside_an_image_change_no_bit():
    night, known = embedded(9), marks(9)
    _, detector = fitted(night, known)
    expected = detector.score_apart(night, known).anomaly_maps
    for image in range(9):
        alone = detector.score_apart(taken(night, [image]), known.take(np.array([image])))
        np.testing.assert_array_equal(alone.anomaly_maps[0], expected[image])


@given(order=st.permutations(range(10)), cut=st.integers(1, 9))
def test_neither_order_nor_fragments_change_a_bit(order: list[int], cut: int):
    """Also of which images are references, where not all are."""
    night, known = embedded(10), marks(10)
    _, detector = fitted(night, known, references=6)
    moved, of_moved = taken(night, order), known.take(np.array(order))
    _, other = fitted(moved, of_moved, cut, references=6)
    expected = detector.score_apart(night, known)
    found = other.score_apart(night, known)
    np.testing.assert_array_equal(found.anomaly_maps, expected.anomaly_maps)


def test_references_are_the_images_whose_looks_have_the_lowest_digests():
    known = marks(12)
    found, _ = fitted(embedded(12), known, 5, references=5)
    parts = np.zeros(1, np.uint64).tobytes()
    digests = [hashlib.sha256(one.tobytes() + parts).hexdigest() for one in known.thumbnails]
    expected = np.argsort(digests)[:5]
    assert sorted(found.state["numbers"].tolist()) == sorted(expected.tolist())
    assert found.facts["references"] == 5


def test_a_copy_among_the_references_lowers_scores_but_not_where_it_is_known():
    """A second file of the same picture, such as another encoding of it."""
    night = embedded(8)
    copied = {name: np.concatenate([array, array[:1]]) for name, array in night.items()}
    _, without = fitted(night, marks(8), nearest_share=0.15)
    one = taken(night, [0])
    alone = without.score_apart(one, marks(8).take(slice(0, 1)))
    # Nobody knows it for the same.
    _, unknown = fitted(copied, marks(9), nearest_share=0.15)
    assert unknown.score_apart(one, marks(9).take(slice(0, 1))).image_scores[0] == 0
    # The same part; the same file; the same look.
    whose = [f"part {n}" for n in range(8)]
    by_part = marks(9, parts=[*whose, "part 0"])
    same = marks(8).joined(marks(8).take(slice(0, 1)))
    looks = marks(9).thumbnails.copy()
    looks[8] = looks[0]
    alike = Marks(marks(9).contents, marks(9).parts, looks)
    for known in (by_part, same, alike):
        _, detector = fitted(copied, known, nearest_share=0.15)
        found = detector.score_apart(one, known.take(slice(0, 1)))
        np.testing.assert_array_equal(found.anomaly_maps, alone.anomaly_maps)


def test_parts_that_are_named_are_not_told_by_their_looks():
    known = marks(8, parts=[f"part {n}" for n in range(8)])
    looks = np.repeat(known.thumbnails[:1], 8, axis=0)
    alike = Marks(known.contents, known.parts, looks)
    np.testing.assert_array_equal(alike.own(alike, alike.limit), np.eye(8, dtype=bool))
    unnamed = Marks(known.contents, np.zeros(8, np.uint64), looks)
    assert unnamed.own(unnamed, unnamed.limit).all()


def test_of_one_part_alone_images_are_compared_all_the_same():
    night, known = embedded(6), marks(6, parts=["one"] * 6)
    _, detector = fitted(night, known)
    assert (detector.score_apart(night, known).image_scores == 0).all()


@pytest.mark.parametrize("images", [1, 4])
def test_too_few_images_are_refused_with_their_number(images: int):
    with pytest.raises(ConfigError, match=rf"{images} different images of {images}.* takes 5: add"):
        fitted(embedded(images), marks(images))


def test_copies_of_a_file_do_not_make_up_for_images():
    known = marks(3).joined(marks(3))
    with pytest.raises(ConfigError, match="3 different images of 6"):
        fitted(embedded(6), known)


def earlier(found, images):
    return EarlierModel(images, found.facts, found.state, {})


def test_a_second_night_joins_as_if_both_had_been_one():
    both, known = embedded(16), marks(16)
    method = MuSc(neighbourhood=3, references=7)
    first, _ = fitted(taken(both, slice(0, 9)), known.take(slice(0, 9)), references=7)
    night = FakeCorpus(split(taken(both, slice(9, 16)), 3), known=known.take(slice(9, 16)))
    updated = method.update(earlier(first, 9), night, seed=0)
    whole, _ = fitted(both, known, references=7)
    assert updated.facts == whole.facts
    for name in whole.state.keys() - {"limit"}:
        np.testing.assert_array_equal(updated.state[name], whole.state[name])


def test_images_that_leave_are_references_no_more():
    night, known = embedded(9), marks(9)
    found, _ = fitted(night, known)
    method = MuSc(neighbourhood=3)
    left = method.withdraw(earlier(found, 9), np.array([1, 4]), None, seed=0)
    stay = np.array([0, 2, 3, 5, 6, 7, 8])
    again, _ = fitted(taken(night, stay), known.take(stay))
    for name in again.state.keys() - {"limit"}:
        np.testing.assert_array_equal(left.state[name], again.state[name])
    with pytest.raises(ConfigError, match="4 different images"):
        method.withdraw(earlier(found, 9), np.arange(5), None, seed=0)


def test_patches_are_means_over_squares_of_the_standardised_map():
    maps = torch.from_numpy(np.random.default_rng(0).normal(3, 2, (2, 6, 5, 5))).float()
    found = MuSc(neighbourhood=3).embed([maps], seed=0)
    assert list(found) == ["layer0.r1", "layer0.r3"]
    for image in range(2):
        one = maps[image].numpy().astype(np.float64)
        standard = np.pad((one - one.mean()) / one.std(), ((0, 0), (1, 1), (1, 1)))
        for y, x in ((0, 0), (2, 3), (4, 4)):
            square = standard[:, y : y + 3, x : x + 3].mean(axis=(1, 2))
            expected = square / np.linalg.norm(square)
            np.testing.assert_allclose(found["layer0.r3"][image, y, x], expected, atol=1e-3)
            point = standard[:, y + 1, x + 1]
            np.testing.assert_allclose(
                found["layer0.r1"][image, y, x], point / np.linalg.norm(point), atol=1e-3
            )


def test_it_says_what_it_is():
    _, detector = fitted(embedded(6), marks(6))
    assert isinstance(MuSc(), Mutual)
    assert isinstance(detector, MutualDetector)
    assert not isinstance(build("patchcore", {}), Mutual)


def test_an_even_neighbourhood_is_refused_with_the_next_ones():
    with pytest.raises(ConfigError, match=r"neighbourhood=4 is even.*use 3 or 5"):
        build("musc", {"neighbourhood": 4})


def test_the_cost_is_that_of_all_products():
    found, _ = fitted(embedded(8), marks(8))
    pairs = 2 * (16**2 * 5 + 4**2 * 3) * 2
    assert found.facts["gflop_per_image"] == pytest.approx(8 * pairs / 1e9)
