"""Arrays come back as they were, however they lie in memory."""

import numpy as np
import pytest

from patchlake.pipeline.model_store.arrays import from_bytes, to_bytes

WHOLE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
LAYOUTS = {
    "C": WHOLE,
    "Fortran": np.asfortranarray(WHOLE),
    "transposed": WHOLE.transpose(2, 0, 1),
    "strided": WHOLE[:, ::2, 1:3],
    "reversed": WHOLE[::-1],
    "fancy": WHOLE[:, [2, 0], [1, 3]],
    "empty": WHOLE[:0],
    "half": WHOLE.astype(np.float16).T,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_comes_back_equal(layout):
    array = LAYOUTS[layout]
    found = from_bytes(to_bytes({"array": array, "other": WHOLE}))
    assert found["array"].dtype == array.dtype
    np.testing.assert_array_equal(found["array"], array)
    np.testing.assert_array_equal(found["other"], WHOLE)


def test_equal_arrays_give_equal_bytes():
    assert to_bytes({"a": WHOLE.T, "b": WHOLE}) == to_bytes(
        {"b": WHOLE, "a": np.ascontiguousarray(WHOLE.T)}
    )


def test_an_array_without_axes_comes_back_without():
    assert from_bytes(to_bytes({"steps": np.array(7)}))["steps"].shape == ()
