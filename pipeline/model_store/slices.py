"""Arrays of many images in one safetensors file, written and read a few images at a time.

An array of a gigabyte need never be in memory as a whole, in neither process. The tensors of the
file are slices of some images each, named `<first image>/<array>`, in the order in which they were
made; the first axis of every one is images.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from patchlake.pipeline.storage.folder import Folder

_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I64": np.int64, "U8": np.uint8}
# As safetensors has it.
_MOST_HEADER = 100_000_000
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items()}


@dataclass(frozen=True)
class Layout:
    """What a file of slices holds: shape and dtype of one image's arrays, and where they are."""

    images: int
    # Images of a slice; the last one may have fewer.
    size: int
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype]

    def header(self) -> bytes:
        """Return what a safetensors file begins with."""
        entries: dict[str, object] = {}
        begin = 0
        for first in range(0, self.images, self.size):
            count = min(self.size, self.images - first)
            for name, shape in self.shapes.items():
                dtype = self.dtypes[name]
                end = begin + count * math.prod(shape) * dtype.itemsize
                entries[f"{first:06d}/{name}"] = {
                    "dtype": _NAMES[dtype],
                    "shape": [count, *shape],
                    "data_offsets": [begin, end],
                }
                begin = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def write_slices(
    folder: Folder, name: str, images: int, size: int, slices: Iterable[Mapping[str, np.ndarray]]
) -> None:
    """Write arrays that come in slices of `size` images, in one atomic put.

    Args:
        folder: Where to.
        name: Of the file.
        images: In all slices together; may be 0.
        size: Images of each slice but the last.
        slices: Arrays by name, images first; drawn one by one.
    """
    with folder.writing(name) as file:
        if images == 0:
            file.write(Layout(0, size, {}, {}).header())
            return
        for number, arrays in enumerate(slices):
            if number == 0:
                shapes = {key: array.shape[1:] for key, array in arrays.items()}
                dtypes = {key: array.dtype for key, array in arrays.items()}
                file.write(Layout(images, size, shapes, dtypes).header())
            for array in arrays.values():
                file.write(np.ascontiguousarray(array).data.cast("B"))


@dataclass(frozen=True)
class _Tensor:
    first: int
    shape: tuple[int, ...]
    dtype: np.dtype
    # In the file.
    begin: int

    @property
    def image_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True)
class SlicedFile:
    """An open file of slices."""

    file: BinaryIO
    # By array, in the order of the images.
    tensors: Mapping[str, Sequence[_Tensor]]
    # Of the whole file.
    bytes: int

    @classmethod
    def over(cls, file: BinaryIO) -> "SlicedFile":
        """Return the arrays of a file that `write_slices` wrote; reads the header.

        Raises:
            ValueError: if it is none: shapes that are not those of the bytes, images left out.
        """
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
        tensors: dict[str, list[_Tensor]] = {}
        at = 8 + length
        for entry, described in header.items():
            first, _, name = entry.partition("/")
            dtype = np.dtype(_DTYPES[described["dtype"]])
            tensor = _Tensor(int(first), tuple(described["shape"]), dtype, at)
            at += tensor.shape[0] * tensor.image_bytes
            if min(tensor.shape) < 0 or described["data_offsets"] != [
                tensor.begin - 8 - length,
                at - 8 - length,
            ]:
                raise ValueError(f"'{entry}' is not where its shape {tensor.shape} puts it")
            tensors.setdefault(name, []).append(tensor)
        for name, some in tensors.items():
            _require_in_order(name, some)
        return cls(file, dict(sorted(tensors.items())), at)

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(tensor.shape[0] for tensor in next(iter(self.tensors.values()), ()))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one image's arrays, by name."""
        return {name: tensors[0].shape[1:] for name, tensors in self.tensors.items()}

    def empty(self, images: int) -> dict[str, np.ndarray]:
        """Return arrays for this many images, not filled."""
        return {
            name: np.empty((images, *tensors[0].shape[1:]), tensors[0].dtype)
            for name, tensors in self.tensors.items()
        }

    def pieces(self, at_most: int) -> Iterator[range]:
        """Yield the numbers of all images, in order, by pieces of some bytes or of one image."""
        image_bytes = sum(tensors[0].image_bytes for tensors in self.tensors.values())
        size = max(1, at_most // max(1, image_bytes))
        for begin in range(0, self.images, size):
            yield range(begin, min(begin + size, self.images))

    def read(self, images: range) -> dict[str, np.ndarray]:
        """Return the arrays of consecutive images."""
        arrays = self.empty(len(images))
        self.read_into(arrays, images.start)
        return arrays

    def read_into(self, arrays: Mapping[str, np.ndarray], first: int = 0) -> None:
        """Fill arrays with as many images as they have, from number `first` on."""
        for name, tensors in self.tensors.items():
            for tensor, begin, end in _overlaps(tensors, first, first + len(arrays[name])):
                self.file.seek(tensor.begin + (begin - tensor.first) * tensor.image_bytes)
                _read_exactly(self.file, arrays[name][begin - first : end - first])


def _require_in_order(name: str, tensors: Sequence[_Tensor]) -> None:
    first = 0
    for tensor in tensors:
        if tensor.first != first or tensor.shape[1:] != tensors[0].shape[1:]:
            raise ValueError(f"array '{name}' is not one of all images in their order")
        first += tensor.shape[0]


def _overlaps(
    tensors: Sequence[_Tensor], first: int, last: int
) -> Iterator[tuple[_Tensor, int, int]]:
    for tensor in tensors:
        begin, end = max(first, tensor.first), min(last, tensor.first + tensor.shape[0])
        if begin < end:
            yield tensor, begin, end


def _read_exactly(file: BinaryIO, array: np.ndarray) -> None:
    view = array.data.cast("B")
    while len(view):
        # An object store's file may return less than asked for.
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"the file ends {len(view)} bytes before an array does")
        view = view[count:]
