"""A gallery's files: what leaves takes no other image with it, and no other file is read."""

from pathlib import Path

import numpy as np
import pytest

from patchlake.pipeline.groups import gallery
from patchlake.pipeline.groups.gallery import StoredGallery, without_images
from patchlake.pipeline.model_store.arrays import to_bytes
from patchlake.pipeline.model_store.models import read_file, write_files
from patchlake.pipeline.storage.folder import Folder

SIZES = (3, 1, 4, 2)


@pytest.mark.parametrize(
    ("withdrawn", "read"),
    [([0], 1), ([2, 3], 2), ([3], 1), ([9, 0, 9], 2), ([4, 5, 6, 7], 1), ([], 0), (range(9), 4)],
)
def test_only_files_of_withdrawn_images_are_read_and_the_others_close_up(
    withdrawn, read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = Folder(str(tmp_path))
    values = np.arange(sum(SIZES), dtype=np.float32)
    files, first = [], 0
    for size in SIZES:
        content = to_bytes({"layer0": values[first : first + size, None]})
        files += write_files(model, "a", {f"gallery-{first:09d}.safetensors": content})
        first += size
    names = []
    monkeypatch.setattr(gallery, "read_file", lambda m, f: names.append(f.name) or read_file(m, f))

    left = without_images(model, "a", files, list(withdrawn))

    assert len(names) == read
    opened = StoredGallery.open(model, left)
    stays = np.delete(values, list(withdrawn))
    found = [opened.of_image(number)["layer0"].item() for number in range(len(stays))]
    np.testing.assert_array_equal(found, stays)
