"""Arrays in slices: what is written comes back, whole or a few images, and is plain safetensors."""

import numpy as np
import pytest
from safetensors.numpy import load

from patchlake.pipeline.model_store.slices import SlicedFile, write_slices
from patchlake.pipeline.storage.folder import Folder

RNG = np.random.default_rng(0)
ARRAYS = {
    "patches": RNG.normal(size=(7, 3, 2, 5)).astype(np.float32),
    "pooled": RNG.normal(size=(7, 4)).astype(np.float16),
}


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path) -> Folder:
    return Folder.at(str(tmp_path) if request.param == "disk" else "memory://slices")


def _write(folder: Folder, size: int, images: int = 7) -> None:
    slices = (
        {name: array[i : min(i + size, images)] for name, array in ARRAYS.items()}
        for i in range(0, images, size)
    )
    write_slices(folder, "x.safetensors", images, size, slices)


@pytest.mark.parametrize("size", [1, 3, 7, 32])
@pytest.mark.parametrize(("first", "count"), [(0, 7), (0, 1), (2, 2), (2, 5), (6, 1)])
def test_any_images_are_read_back_whatever_the_slices(folder, size, first, count):
    _write(folder, size)
    with folder.open("x.safetensors") as file:
        sliced = SlicedFile.over(file)
        assert (sliced.images, sliced.shapes) == (7, {"patches": (3, 2, 5), "pooled": (4,)})
        arrays = sliced.empty(count)
        sliced.read_into(arrays, first)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array[first : first + count])


@pytest.mark.parametrize(("at_most", "lengths"), [(1, [1] * 7), (3.5, [3, 3, 1]), (99, [7])])
def test_pieces_are_all_images_in_order(folder, at_most, lengths):
    _write(folder, 3)
    image_bytes = sum(array[0].nbytes for array in ARRAYS.values())
    with folder.open("x.safetensors") as file:
        sliced = SlicedFile.over(file)
        pieces = list(sliced.pieces(int(at_most * image_bytes)))
        read = [sliced.read(piece) for piece in pieces]
    assert [len(piece) for piece in pieces] == lengths
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in read]), array)


def test_a_piece_has_one_image_at_least_and_none_of_no_images(folder):
    _write(folder, 3)
    write_slices(folder, "none.safetensors", 0, 3, ())
    with folder.open("x.safetensors") as file, folder.open("none.safetensors") as none:
        assert list(SlicedFile.over(file).pieces(1)) == [range(i, i + 1) for i in range(7)]
        assert list(SlicedFile.over(none).pieces(1)) == []


def test_the_file_is_safetensors(folder):
    _write(folder, 3)
    tensors = load(folder.read("x.safetensors"))
    joined = np.concatenate([tensors[f"{first:06d}/patches"] for first in (0, 3, 6)])
    np.testing.assert_array_equal(joined, ARRAYS["patches"])


def test_no_images_are_a_file_without_arrays(folder):
    write_slices(folder, "x.safetensors", 0, 3, ())
    with folder.open("x.safetensors") as file:
        assert SlicedFile.over(file).images == 0


def test_a_file_that_was_cut_off_is_not_read_as_zeros(folder):
    _write(folder, 3)
    folder.write("cut.safetensors", folder.read("x.safetensors")[:-1])
    with folder.open("cut.safetensors") as file:
        sliced = SlicedFile.over(file)
        with pytest.raises(EOFError, match="1 bytes before"):
            sliced.read_into(sliced.empty(7))
