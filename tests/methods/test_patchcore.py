"""PatchCore on small random patches, against the equations of the paper."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.features import patches
from patchlake.pipeline.maths.coreset import greedy
from patchlake.pipeline.maths.projection import gaussian_projection, projected
from patchlake.pipeline.methods import build, names, options_of
from patchlake.pipeline.methods.patchcore import PatchCore
from patchlake.pipeline.methods.shared.bank import MemoryBank, OwnPart
from patchlake.pipeline.methods.shared.contract import FitResult
from tests.methods.corpus import FakeCorpus, FakeGroup, split


def random_embeddings(images, *, seed=0, height=4, width=5, dim=6):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(images, height, width, dim)).astype(np.float32)


def fitted(embeddings, *, seed=0, **options):
    return PatchCore(**options).fit(FakeCorpus([{"patches": embeddings}]), seed=seed)


def detector(method, bank):
    return method.prepare(FakeGroup(FitResult({}, bank=MemoryBank(bank))))


def scores(embeddings, bank, *, own=None, **options):
    return detector(PatchCore(**options), bank).score({"patches": embeddings}, own)


@pytest.mark.parametrize("image_score", ["max", "reweighted"])
@pytest.mark.parametrize("images", [3, 150])
def test_a_training_image_scores_exactly_zero_when_every_patch_is_kept(images, image_score):
    # Far from the origin, where a product of float32 rounds most.
    embeddings = random_embeddings(images) + np.float32(1000)
    embeddings[1] = embeddings[0]
    bank = fitted(embeddings, coreset_fraction=1.0).bank.rows

    found = scores(embeddings, bank, image_score=image_score)

    assert (found.anomaly_maps == 0).all()
    assert (found.image_scores == 0).all()
    assert len(bank) == images * 20


@given(st.integers(1, 6), st.floats(0.01, 1), st.integers(0, 9))
def test_bank_rows_are_patches_and_origin_says_which(images, fraction, seed):
    embeddings = random_embeddings(images)

    found = fitted(embeddings, seed=seed, coreset_fraction=fraction)

    image, y, x = found.bank.origin.T
    np.testing.assert_array_equal(found.bank.rows, embeddings[image, y, x])
    assert len(np.unique(found.bank.origin, axis=0)) == len(found.bank.origin)
    assert len(found.bank.rows) == max(1, int(images * 20 * fraction))


def test_facts_are_of_the_bank():
    embeddings = random_embeddings(10)
    found = fitted(embeddings, coreset_fraction=0.1)
    farthest = scores(embeddings, found.bank.rows).anomaly_maps.max()
    assert found.facts["patches"] == 200
    assert found.facts["bank_rows"] == len(found.bank.rows) == 20
    assert found.facts["covering_radius"] == pytest.approx(farthest)


def test_max_bank_rows_caps_the_fraction():
    embeddings = random_embeddings(10)
    capped = fitted(embeddings, coreset_fraction=0.5, max_bank_rows=7)
    whole = fitted(embeddings, coreset_fraction=0.5)
    np.testing.assert_array_equal(capped.bank.rows, whole.bank.rows[:7])


@given(
    st.sets(st.integers(1, 8)),
    st.integers(0, 5),
    st.sampled_from(["driver", "distributed"]),
    st.integers(1, 4),
)
def test_neither_the_cut_into_fragments_nor_the_processes_change_the_bank(
    cuts, seed, coreset, processes
):
    embeddings = random_embeddings(9)
    whole = fitted(embeddings, seed=seed, coreset_fraction=0.2, coreset="driver")
    corpus = FakeCorpus(split({"patches": embeddings}, *np.diff([0, *sorted(cuts)])), processes)

    cut = PatchCore(coreset_fraction=0.2, coreset=coreset).fit(corpus, seed=seed)

    np.testing.assert_array_equal(cut.bank.rows, whole.bank.rows)
    np.testing.assert_array_equal(cut.bank.origin, whole.bank.origin)
    assert cut.facts == whole.facts | {"coreset": coreset}


def test_the_seed_decides_the_first_patch():
    embeddings = random_embeddings(9)
    firsts = {tuple(fitted(embeddings, seed=seed).bank.origin[0]) for seed in range(8)}
    assert len(firsts) > 4


@pytest.mark.parametrize("coreset", ["driver", "distributed"])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_projected_selection_is_that_of_the_projected_rows_and_keeps_whole_ones(coreset, seed):
    embeddings = random_embeddings(9, seed=1, dim=24)
    rows = embeddings.reshape(-1, 24)
    options = {"coreset_fraction": 0.2, "coreset": coreset, "projection": 4}
    corpus = FakeCorpus(split({"patches": embeddings}, 2, 3))

    found = PatchCore(**options).fit(corpus, seed=seed)

    start = int(np.ravel_multi_index(found.bank.origin[0], (9, 4, 5)))
    reduced = projected(rows, gaussian_projection(24, 4, np.random.default_rng(seed)))
    expected = greedy(reduced, 36, start=start)
    np.testing.assert_array_equal(found.bank.rows, rows[expected.indices])
    assert found.facts["covering_radius"] == pytest.approx(float(expected.radii[-1]), rel=1e-6)
    # In all dimensions others are the farthest.
    in_full = greedy(rows, 36, start=start)
    assert len(set(in_full.indices.tolist()) & set(expected.indices.tolist())) < 30
    # What does not reduce the dimensions is no projection.
    whole = PatchCore(**options | {"projection": 24}).fit(corpus, seed=seed)
    np.testing.assert_array_equal(whole.bank.rows, rows[in_full.indices])


def test_a_projection_that_is_asked_for_by_name_has_the_dimensions_of_the_authors_code():
    corpus = FakeCorpus(split({"patches": random_embeddings(6, dim=200)}, 2, 3))
    named, numbered, whole = (
        PatchCore(coreset_fraction=0.3, projection=projection).fit(corpus, seed=0)
        for projection in ("gaussian", 128, None)
    )
    np.testing.assert_array_equal(named.bank.rows, numbered.bank.rows)
    assert named.facts == numbered.facts
    assert set(map(tuple, named.bank.origin)) != set(map(tuple, whole.bank.origin))


def test_scores_are_distances_to_the_nearest_bank_row_and_their_maximum():
    embeddings, bank = random_embeddings(3), random_embeddings(1, seed=1).reshape(20, 6)
    between = np.linalg.norm(embeddings[..., None, :].astype(np.float64) - bank, axis=-1)

    found = scores(embeddings, bank)

    np.testing.assert_allclose(found.anomaly_maps, between.min(axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(found.image_scores, found.anomaly_maps.max(axis=(1, 2)))


def equation_7(patches_of_image, bank, b):
    """s as the paper writes it, in float64, where exp overflows at 709."""
    between = np.linalg.norm(patches_of_image[:, None].astype(np.float64) - bank, axis=2)
    worst = between.min(axis=1).argmax()
    nearest = between[worst].argmin()
    around = np.argsort(
        np.linalg.norm(bank.astype(np.float64) - bank[nearest], axis=1), kind="stable"
    )[:b]
    s_star = between[worst, nearest]
    return (1 - np.exp(s_star) / np.exp(between[worst, around]).sum()) * s_star


@given(
    st.integers(0, 2**32),
    st.integers(2, 12),
    st.integers(2, 9),
    st.sampled_from([0.01, 1.0, 10.0, 30.0]),
)
def test_reweighted_scores_equal_equation_7(seed, rows, b, scale):
    # At a scale of 30 distances are beyond 88, where exp overflows float32.
    embeddings = random_embeddings(3, seed=seed) * np.float32(scale)
    bank = random_embeddings(1, seed=seed + 1).reshape(20, 6)[:rows] * np.float32(scale)
    expected = [equation_7(image.reshape(-1, 6), bank, b) for image in embeddings]

    plain = scores(embeddings, bank)
    found = scores(embeddings, bank, image_score="reweighted", reweight_neighbours=b)

    np.testing.assert_allclose(found.image_scores, expected, rtol=1e-4)
    assert (found.image_scores >= 0).all()
    assert (found.image_scores <= plain.image_scores).all()
    np.testing.assert_array_equal(found.anomaly_maps, plain.anomaly_maps)


def test_of_one_neighbour_equation_7_is_the_distance():
    embeddings, bank = random_embeddings(3), random_embeddings(1, seed=1).reshape(20, 6)
    plain = scores(embeddings, bank)
    found = scores(embeddings, bank, image_score="reweighted", reweight_neighbours=1)
    np.testing.assert_array_equal(found.image_scores, plain.image_scores)


def test_the_weight_is_one_minus_one_in_b_where_all_distances_are_equal():
    # At a distance of 1700, beyond exp of float64 too.
    bank = np.eye(4, dtype=np.float32) * 2000
    centre = np.full((1, 1, 1, 4), 500, np.float32)
    s_star = scores(centre, bank).image_scores[0]
    found = scores(centre, bank, image_score="reweighted", reweight_neighbours=4)
    assert found.image_scores[0] == pytest.approx(0.75 * s_star, rel=1e-4)


def test_a_bank_of_one_row_gives_the_plain_score():
    embeddings, bank = random_embeddings(3), np.zeros((1, 6), np.float32)
    np.testing.assert_array_equal(
        scores(embeddings, bank, image_score="reweighted").image_scores,
        scores(embeddings, bank).image_scores,
    )


@given(st.sets(st.integers(0, 19), max_size=19), st.sampled_from(["max", "reweighted"]))
def test_an_images_own_bank_rows_are_as_if_they_were_not_there(rows, image_score):
    embeddings, bank = random_embeddings(2), random_embeddings(1, seed=1).reshape(20, 6)
    own = OwnPart(np.array([0]), np.array(sorted(rows), np.int64))
    kept = np.delete(bank, own.rows, axis=0)

    found = scores(embeddings, bank, own=own, image_score=image_score)

    expected = scores(embeddings, kept, image_score=image_score)
    np.testing.assert_array_equal(found.anomaly_maps, expected.anomaly_maps)
    np.testing.assert_array_equal(found.image_scores, expected.image_scores)


@given(
    st.lists(st.integers(0, 7), max_size=8),
    st.sampled_from(["max", "reweighted"]),
    st.sampled_from([1, 1000]),
)
def test_an_image_scores_the_same_among_any_others(order, image_score, scale):
    embeddings = random_embeddings(8) * np.float32(scale)
    bank = random_embeddings(2, seed=1).reshape(40, 6) * np.float32(scale)

    batch = scores(embeddings[order], bank, image_score=image_score)

    assert batch.anomaly_maps.shape == (len(order), 4, 5)
    for position, number in enumerate(order):
        alone = scores(embeddings[number : number + 1], bank, image_score=image_score)
        assert batch.image_scores[position] == alone.image_scores[0]
        np.testing.assert_array_equal(batch.anomaly_maps[position], alone.anomaly_maps[0])


def maps_of(*channels):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((1, count, 4, 4), generator=generator) for count in channels]


@pytest.mark.parametrize(
    ("channels", "options", "expected"),
    [
        ((512, 1024), {}, patches.official_embedding),
        ((512, 1024), {"embedding": "official"}, patches.official_embedding),
        ((512, 1024), {"embedding": "concat"}, patches.concat_embedding),
        ((512, 1024), {"neighbourhood": 5}, lambda maps: patches.concat_embedding(maps, 5)),
        ((64, 128), {"neighbourhood": 1}, lambda maps: patches.concat_embedding(maps, 1)),
        ((64, 128), {}, patches.concat_embedding),
    ],
)
def test_the_official_embedding_is_used_where_it_is_defined(channels, options, expected):
    maps = maps_of(*channels)
    embedded = PatchCore(**options).embed(maps, seed=0)["patches"]
    torch.testing.assert_close(embedded, expected(maps), rtol=0, atol=0)


def test_the_official_embedding_is_refused_where_it_is_not_defined():
    with pytest.raises(ConfigError, match=r"\(64, 128\)"):
        PatchCore(embedding="official").embed(maps_of(64, 128), seed=0)


def test_settings_come_back_complete():
    assert "patchcore" in names()
    method = build("patchcore", {"coreset_fraction": 0.1, "image_score": "reweighted"})
    assert method == PatchCore(coreset_fraction=0.1, image_score="reweighted")
    assert build("patchcore", options_of(method)) == method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"coreset_fracton": 0.1},
            "'method.coreset_fracton' is unknown; did you mean 'coreset_fraction'",
        ),
        ({"coreset_fraction": 0}, "'method.coreset_fraction' is 0: .*greater than 0"),
        ({"coreset_fraction": 1.5}, "'method.coreset_fraction' is 1.5: .*less than or equal to 1"),
        ({"coreset_fraction": "much"}, "'method.coreset_fraction' is 'much': .*number"),
        ({"max_bank_rows": 0}, "'method.max_bank_rows'"),
        ({"max_bank_rows": 10.5}, "'method.max_bank_rows'"),
        ({"max_bank_rows": True}, "'method.max_bank_rows' is true; give a number"),
        ({"projection": True}, "'method.projection' is true; give a number"),
        ({"projection": "gauss"}, "'method.projection'"),
        ({"neighbourhood": 2}, "'method.neighbourhood' is 2: .*1, 3, 5"),
        ({"reweight_neighbours": 0}, "'method.reweight_neighbours'"),
        (
            {"image_score": "mean"},
            "'method.image_score' is 'mean': .*'max', 'reweighted' or 'mean_top'",
        ),
        (
            {"image_score": "reweighted", "distance": "cosine"},
            "^method 'patchcore': Eq. 7 is of L2 distances; use",
        ),
        ({"embedding": "pca", "max_bank_rows": -1}, "'method.embedding'.*; .*max_bank_rows"),
    ],
)
def test_a_wrong_setting_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        build("patchcore", options)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match="'patchcor' is unknown; did you mean 'patchcore'"):
        build("patchcor", {})


def test_cosine_distances_are_of_directions():
    maps = [torch.randn(3, 6, 4, 5) * 10]
    method = PatchCore(embedding="concat", neighbourhood=1, distance="cosine")
    train = method.embed(maps, seed=0)["patches"].numpy()
    queries = method.embed([torch.randn(2, 6, 4, 5)], seed=0)["patches"].numpy()
    found = detector(method, train.reshape(-1, 6)).score({"patches": queries})
    similarities = queries.reshape(-1, 6).astype(np.float64) @ train.reshape(-1, 6).T
    np.testing.assert_allclose(
        found.anomaly_maps.ravel(), 1 - similarities.max(axis=1), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.1, 2), (0.19, 3), (1.0, 20)])
def test_mean_top_is_of_the_farthest_patches(fraction, count):
    embeddings, bank = random_embeddings(4), random_embeddings(2, seed=1).reshape(-1, 6)
    found = scores(embeddings, bank, image_score="mean_top", top_fraction=fraction)
    wanted = np.sort(found.anomaly_maps.reshape(4, -1), axis=1)[:, -count:].mean(axis=1)
    np.testing.assert_allclose(found.image_scores, wanted, rtol=1e-6)
    if count == 1:
        np.testing.assert_array_equal(found.image_scores, scores(embeddings, bank).image_scores)


def brute_force_near(embeddings, bank, places, radius):
    """The map of each patch's distance to the nearest row within the radius, by loops."""
    images, height, width, _ = embeddings.shape
    found = np.empty((images, height, width))
    for image, y, x in np.ndindex(images, height, width):
        away = np.abs(places - [y, x]).max(axis=1)
        near = bank[away <= max(radius, away.min())].astype(np.float64)
        found[image, y, x] = np.linalg.norm(near - embeddings[image, y, x], axis=1).min()
    return found


@given(
    st.integers(1, 8),
    st.integers(0, 3),
    st.floats(0.01, 1),
    st.sampled_from([["driver"], ["partitioned"], ["driver", 200]]),
)
def test_a_bank_near_places_covers_each_within_its_radius(images, radius, fraction, coreset):
    embeddings = random_embeddings(images, height=5, width=7)
    budget = {"memory_budget": coreset[1]} if len(coreset) > 1 else {}
    corpus = FakeCorpus(split({"patches": embeddings}, 2, 1), **budget)
    options = {"coreset_fraction": fraction, "coreset": coreset[0], "position_radius": radius}
    method = PatchCore(**options)

    found = method.fit(corpus, seed=1)

    image, y, x = found.bank.origin.T
    np.testing.assert_array_equal(found.bank.rows, embeddings[image, y, x])
    np.testing.assert_array_equal(found.state["places"], found.bank.origin[:, 1:])
    assert found.facts["uncovered_places"] == 0
    assert found.facts["position_radius"] == radius
    covering = -(-5 // (2 * radius + 1)) * -(-7 // (2 * radius + 1))
    assert len(found.bank.rows) == max(covering, int(images * 35 * fraction), 1)
    # The covering radius is what the worst training patch is from the rows that it may meet.
    expected = brute_force_near(embeddings, found.bank.rows, found.bank.origin[:, 1:], radius)
    assert found.facts["covering_radius"] == pytest.approx(expected.max(), rel=1e-5)
    assert expected.max() <= found.facts.get("radius_bound", np.inf) * (1 + 1e-5)
    test = random_embeddings(3, seed=9, height=5, width=7)
    scored = method.prepare(FakeGroup(found)).score({"patches": test})
    expected = brute_force_near(test, found.bank.rows, found.bank.origin[:, 1:], radius)
    np.testing.assert_allclose(scored.anomaly_maps, expected, rtol=1e-6)
    np.testing.assert_array_equal(scored.image_scores, scored.anomaly_maps.max(axis=(1, 2)))


@given(st.sets(st.integers(1, 8)), st.integers(0, 5), st.integers(0, 2))
def test_the_cut_into_fragments_does_not_change_a_bank_near_places(cuts, seed, radius):
    embeddings = random_embeddings(9)
    options = {"coreset_fraction": 0.2, "position_radius": radius}
    whole = fitted(embeddings, seed=seed, **options)
    corpus = FakeCorpus(split({"patches": embeddings}, *np.diff([0, *sorted(cuts)])), 3)
    cut = PatchCore(**options).fit(corpus, seed=seed)
    np.testing.assert_array_equal(cut.bank.origin, whole.bank.origin)
    assert cut.facts == whole.facts


def test_a_radius_that_covers_the_grid_is_none():
    embeddings, test = random_embeddings(9), random_embeddings(3, seed=1)
    plain = fitted(embeddings, coreset_fraction=0.2)
    found = fitted(embeddings, coreset_fraction=0.2, position_radius=4)
    np.testing.assert_array_equal(found.bank.origin, plain.bank.origin)
    assert (found.facts, found.state) == (plain.facts, {})
    method = PatchCore(position_radius=4)
    scored = method.prepare(FakeGroup(found)).score({"patches": test})
    np.testing.assert_array_equal(scored.anomaly_maps, scores(test, plain.bank.rows).anomaly_maps)


@pytest.mark.parametrize("image_score", ["max", "reweighted", "mean_top"])
def test_near_places_an_image_scores_the_same_among_any_others(image_score):
    method = PatchCore(coreset_fraction=0.3, position_radius=1, image_score=image_score)
    found = method.fit(FakeCorpus([{"patches": random_embeddings(9)}]), seed=0)
    searched = method.prepare(FakeGroup(found))
    test = random_embeddings(8, seed=1)
    batch = searched.score({"patches": test})
    for number in range(8):
        alone = searched.score({"patches": test[number : number + 1]})
        assert batch.image_scores[number] == alone.image_scores[0]
        np.testing.assert_array_equal(batch.anomaly_maps[number], alone.anomaly_maps[0])


def test_near_places_an_images_own_rows_are_as_if_they_were_not_there():
    method = PatchCore(coreset_fraction=0.1, position_radius=0)
    embeddings = random_embeddings(9)
    found = method.fit(FakeCorpus([{"patches": embeddings}]), seed=0)
    for image in range(9):
        own = OwnPart.of([image], found.bank)
        scored = method.prepare(FakeGroup(found)).score({"patches": embeddings[[image]]}, own)
        others = np.delete(np.arange(len(found.bank.rows)), own.rows)
        expected = brute_force_near(
            embeddings[[image]], found.bank.rows[others], found.bank.origin[others, 1:], 0
        )
        np.testing.assert_allclose(scored.anomaly_maps, expected, rtol=1e-6)


def test_equation_7_is_of_the_rows_that_the_patch_is_compared_with():
    method = PatchCore(
        coreset_fraction=0.9, position_radius=1, image_score="reweighted", reweight_neighbours=3
    )
    found = method.fit(FakeCorpus([{"patches": random_embeddings(9)}]), seed=0)
    test = random_embeddings(1, seed=1)
    scored = method.prepare(FakeGroup(found)).score({"patches": test})
    y, x = np.unravel_index(scored.anomaly_maps[0].argmax(), (4, 5))
    near = np.abs(found.bank.origin[:, 1:] - [y, x]).max(axis=1) <= 1
    expected = equation_7(test[0, y, x][None], found.bank.rows[near], 3)
    assert scored.image_scores[0] == pytest.approx(expected, rel=1e-5)


def test_what_does_not_go_with_a_position_radius_is_named():
    with pytest.raises(ConfigError, match="workers hold no rows by place"):
        build("patchcore", {"position_radius": 1, "coreset": "distributed"})
    with pytest.raises(ConfigError, match=r"'method\.position_radius'"):
        build("patchcore", {"position_radius": -1})
    with pytest.raises(ConfigError, match=r"takes 20 rows .*position_radius=0 .* is 19"):
        fitted(random_embeddings(4), position_radius=0, max_bank_rows=19)
    found = fitted(random_embeddings(4), position_radius=0)
    searched = PatchCore(position_radius=0).prepare(FakeGroup(found))
    with pytest.raises(ValueError, match="images have 2 x 10 patches, the bank's places are of 4"):
        searched.score({"patches": random_embeddings(1, height=2, width=10)})
    damaged = FitResult({}, found.state | {"places": found.state["places"][1:]}, found.bank)
    with pytest.raises(ValueError, match="19 places do not fit 20 bank rows"):
        PatchCore(position_radius=0).prepare(FakeGroup(damaged))
