"""Arrays by image: what is written comes back, whole or a few images; damage is an error."""

import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from patchlake.pipeline.model_store.per_image import PerImageFile, write_per_image
from patchlake.pipeline.storage.folder import Folder

RNG = np.random.default_rng(0)
ARRAYS = {
    "patches": RNG.normal(size=(7, 3, 2, 5)).astype(np.float32),
    "pooled": RNG.normal(size=(7, 4)).astype(np.float16),
    "number": np.arange(7, dtype=np.int64),
}


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path) -> Folder:
    return Folder.at(str(tmp_path) if request.param == "disk" else "memory://per-image")


def _write(folder: Folder, size: int = 3) -> None:
    slices = (
        {name: array[i : i + size] for name, array in ARRAYS.items()} for i in range(0, 7, size)
    )
    write_per_image(folder, "x.arrow", slices)


@pytest.mark.parametrize("size", [1, 3, 7, 32])
@pytest.mark.parametrize(("first", "count"), [(0, 7), (0, 1), (2, 2), (2, 5), (6, 1)])
@pytest.mark.parametrize("ahead", [0, 100, 2**20])
def test_any_images_are_read_back_whatever_the_slices(folder, size, first, count, ahead):
    _write(folder, size)
    with folder.open("x.arrow") as file:
        stored = PerImageFile.over(file, ahead=ahead)
        shapes = {"number": (), "patches": (3, 2, 5), "pooled": (4,)}
        assert (stored.images, stored.shapes) == (7, shapes)
        arrays = stored.empty(count)
        stored.read_into(arrays, first)
    assert list(arrays) == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array[first : first + count])


def test_arrays_in_any_order_of_memory_come_back(folder):
    array = np.asfortranarray(ARRAYS["patches"])[:, :, ::-1]
    write_per_image(folder, "x.arrow", [{"patches": array}])
    with folder.open("x.arrow") as file:
        found = PerImageFile.over(file).read(range(7))["patches"]
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(("at_most", "lengths"), [(1, [1] * 7), (3.5, [3, 3, 1]), (99, [7])])
def test_pieces_are_all_images_in_order(folder, at_most, lengths):
    _write(folder)
    image_bytes = sum(array[0].nbytes for array in ARRAYS.values())
    with folder.open("x.arrow") as file:
        stored = PerImageFile.over(file)
        pieces = list(stored.pieces(int(at_most * image_bytes)))
        read = [stored.read(piece) for piece in pieces]
    assert [len(piece) for piece in pieces] == lengths
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in read]), array)


def test_no_images_are_a_file_without_arrays(folder):
    write_per_image(folder, "x.arrow", ())
    with folder.open("x.arrow") as file:
        stored = PerImageFile.over(file)
        assert (stored.images, stored.shapes, list(stored.pieces(1))) == (0, {}, [])


def test_one_image_is_one_read(folder):
    """Of a file in S3, each is a request."""
    large = RNG.normal(size=(7, 1000)).astype(np.float32)
    write_per_image(folder, "x.arrow", [{"x": large}])
    reads = []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reads.append(size)
            return super().read(size)

    stored = PerImageFile.over(Counted(folder.read("x.arrow")))
    reads.clear()
    stored.read(range(4, 5))
    assert len(reads) == 1
    assert reads[0] < 4500


def test_any_arrow_reader_reads_the_file(folder):
    _write(folder)
    table = pa.ipc.open_file(folder.read("x.arrow")).read_all()
    assert table.num_rows == 7
    patches = table.column("patches").combine_chunks().to_numpy_ndarray()
    np.testing.assert_array_equal(patches, ARRAYS["patches"])


def test_a_file_that_was_cut_off_is_not_opened(folder):
    _write(folder)
    content = folder.read("x.arrow")
    for length in range(len(content)):
        with pytest.raises(pa.ArrowInvalid):
            PerImageFile.over(io.BytesIO(content[:length]))


FLIPS = """
import io, random, sys
from patchlake.pipeline.model_store.per_image import PerImageFile
from patchlake.pipeline.storage.owned import reading
from patchlake.pipeline.errors import ConfigError

content, rng, refused = open(sys.argv[1], "rb").read(), random.Random(0), 0
for _ in range(int(sys.argv[2])):
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    try:
        with reading("x", "again"):
            stored = PerImageFile.over(io.BytesIO(damaged))
            stored.read(range(stored.images))
    except ConfigError:
        refused += 1
print(refused)
"""


def test_flipped_bits_are_an_error_or_a_number_and_never_the_end_of_the_process(tmp_path):
    _write(Folder(str(tmp_path)))
    asked = [sys.executable, "-c", FLIPS, str(tmp_path / "x.arrow"), "5000"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 500
