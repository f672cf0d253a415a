"""Arrays of many images in one Arrow file, a record batch an image, written and read one by one.

An array of a gigabyte need never be in memory as a whole, in neither process, and one image can be
read alone: of a file in S3 that is one request. The columns are Arrow's fixed-shape tensors, so
that the schema tells shape and type of one image's arrays.

Files are read, not mapped: one that is cut short under a mapping ends the process with SIGBUS.
Arrow checks the structure of what it reads, but not that a column is as long as it says: `validate`
does, before anything is looked at.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa

from patchlake.pipeline.storage.folder import Folder


def write_per_image(folder: Folder, name: str, slices: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Write arrays that come in slices of some images, in one atomic put.

    Args:
        folder: Where to.
        name: Of the file.
        slices: Arrays by name, images first, the same names in each; drawn one by one. None at all
            are a file of no images.
    """
    with folder.writing(name) as file, contextlib.ExitStack() as stack:
        writer = None
        for batch in _batches(slices):
            if writer is None:
                writer = stack.enter_context(pa.ipc.new_file(file, batch.schema))
            writer.write_batch(batch)
        if writer is None:
            pa.ipc.new_file(file, pa.schema([])).close()


@dataclass(frozen=True)
class PerImageFile:
    """An open file of arrays by image."""

    reader: pa.ipc.RecordBatchFileReader
    # By array.
    kinds: Mapping[str, pa.FixedShapeTensorType]

    @classmethod
    def over(cls, file: BinaryIO, *, ahead: int = 0) -> "PerImageFile":
        """Return the arrays of a file that `write_per_image` wrote; reads its end.

        Args:
            file: Open, and for no other use until the arrays are read.
            ahead: Bytes to read at once, for who reads images in their order: of a file in S3 each
                read is a request. 0: an image.

        Raises:
            ValueError: if it is none, or was cut short; `pyarrow.ArrowInvalid` is one.
        """
        # A raw file and a buffered one are both taken; typing knows the first only.
        source = io.BufferedReader(cast("io.RawIOBase", file), ahead) if ahead else file
        reader = pa.ipc.open_file(source)
        kinds = {field.name: field.type for field in reader.schema}
        for name, kind in kinds.items():
            if not isinstance(kind, pa.FixedShapeTensorType):
                raise ValueError(f"column '{name}' is a {kind}, and no tensor")  # noqa: TRY004
        return cls(reader, dict(sorted(kinds.items())))

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.reader.num_record_batches)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one image's arrays, by name."""
        return {name: tuple(kind.shape) for name, kind in self.kinds.items()}

    def empty(self, images: int) -> dict[str, np.ndarray]:
        """Return arrays for this many images, not filled."""
        return {
            name: np.empty((images, *kind.shape), kind.value_type.to_pandas_dtype())
            for name, kind in self.kinds.items()
        }

    def pieces(self, at_most: int) -> Iterator[range]:
        """Yield the numbers of all images, in order, by pieces of some bytes or of one image."""
        image_bytes = sum(array.nbytes for array in self.empty(1).values())
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
        for at in range(max(map(len, arrays.values()), default=0)):
            batch = self.reader.get_batch(first + at)
            batch.validate(full=True)
            for name, array in arrays.items():
                # Not `to_numpy`, which imports pandas: half a second and 27 MiB in each worker.
                values = np.from_dlpack(batch.column(name).storage.flatten())
                # Not of the length of one image's array where the batch is not one image.
                array[at] = values.reshape(array.shape[1:])


def _batches(slices: Iterable[Mapping[str, np.ndarray]]) -> Iterator[pa.RecordBatch]:
    for arrays in slices:
        for image in zip(*arrays.values(), strict=True):
            columns = (_tensor(array) for array in image)
            yield pa.record_batch(dict(zip(arrays, columns, strict=True)))


def _tensor(array: np.ndarray) -> pa.ExtensionArray:
    """Return an array as the one row of a column; its bytes are not copied if they lie in order."""
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(array.dtype), array.shape)
    content = [None, pa.py_buffer(array.ravel())]
    values = pa.Array.from_buffers(kind.value_type, array.size, content)
    storage = pa.FixedSizeListArray.from_arrays(values, array.size)
    return pa.ExtensionArray.from_storage(kind, storage)
