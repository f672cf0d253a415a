"""The synthetic products: reproducible, laid out like MVTec, and masked where they changed."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchlake.pipeline.images import synthetic

KINDS = [(product, kind) for product, kinds in synthetic.DEFECTS.items() for kind in kinds]


def _files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("products")
    names = synthetic.write_products(root, seed=3, train=2, good=1, defects=1)
    assert names == ["brushed_plate", "woven_cloth"]
    return root


def test_processes_draw_what_one_draws(products: Path, tmp_path: Path) -> None:
    synthetic.write_products(tmp_path, seed=3, train=2, good=1, defects=1, processes=2)
    assert _files(tmp_path) == _files(products)


def _masks(root: Path) -> Iterator[tuple[Path, np.ndarray]]:
    for path in sorted(root.glob("*/ground_truth/*/*.png")):
        with Image.open(path) as image:
            assert image.mode == "L"
            yield path, np.asarray(image)


def test_the_layout_is_that_of_mvtec(products: Path) -> None:
    expected = set()
    for product, kinds in synthetic.DEFECTS.items():
        good = {"train/good/000.png", "train/good/001.png", "test/good/000.png"}
        flawed = {f"test/{kind}/000.png" for kind in kinds}
        masks = {f"ground_truth/{kind}/000_mask.png" for kind in kinds}
        expected |= {f"{product}/{name}" for name in good | flawed | masks}
    assert set(_files(products)) == expected


def test_every_defect_image_has_a_mask_of_its_size_in_black_and_white(products: Path) -> None:
    for path, mask in _masks(products):
        photo = products / path.parts[-4] / "test" / path.parts[-2] / "000.png"
        with Image.open(photo) as image:
            assert image.mode == "RGB"
            assert image.size == mask.shape[::-1] == (synthetic.SIDE, synthetic.SIDE)
        assert set(np.unique(mask)) == {0, 255}
        assert np.mean(mask == 255) < 0.5


def test_an_image_depends_on_the_seed_but_not_on_the_counts(products: Path, tmp_path: Path) -> None:
    synthetic.write_products(tmp_path, seed=3, train=1, good=0, defects=1)
    again, before = _files(tmp_path), _files(products)
    assert again == {name: before[name] for name in again}
    assert len(before) == len(again) + 2 * len(synthetic.DEFECTS)


def test_another_seed_or_number_or_split_gives_another_image() -> None:
    for product in synthetic.DEFECTS:
        first = synthetic.photograph(3, f"{product}/test/good", 0).image
        for seed, split, number in [(4, "test", 0), (3, "train", 0), (3, "test", 1)]:
            other = synthetic.photograph(seed, f"{product}/{split}/good", number).image
            assert not np.array_equal(first, other)


@pytest.mark.parametrize(("product", "kind"), KINDS)
def test_the_defect_is_inside_its_mask_and_almost_nothing_is_outside(
    product: str, kind: str
) -> None:
    for number in range(2):
        shot = synthetic.photograph(0, f"{product}/test/{kind}", number)
        change = np.abs(shot.image.astype(int) - shot.good_twin).max(axis=2)
        inside = shot.defect_mask == 255
        # Noise is the same in both, so an untouched pixel does not change at all; 5 grey levels
        # is the mean of the thinnest scratch, over a mask that includes its blur.
        assert change[inside].mean() > 5
        assert change[~inside].mean() < 0.5
        assert np.median(change[~inside]) == 0


def test_a_good_image_is_its_own_twin_and_has_an_empty_mask() -> None:
    shot = synthetic.photograph(0, "woven_cloth/train/good", 0)
    assert np.array_equal(shot.image, shot.good_twin)
    assert not shot.defect_mask.any()
