"""selection: which rows of a group a job uses, by split and label."""

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# `all`: every row (score). `good`: label good, split not test (fit). `unlabelled`: split not test,
# for a group without any label. `none`: every row, but no pixels, for a group without a model.
Selection = Literal["all", "good", "unlabelled", "none"]


def select_rows(rows: pa.Table, selection: Selection) -> pa.Table:
    """Return the rows that a selection takes."""
    if selection in ("all", "none"):
        return rows
    keep = pa.array(np.ones(len(rows), bool))
    if "split" in rows.column_names:
        is_test = pc.fill_null(pc.equal(rows.column("split"), "test"), False)  # noqa: FBT003
        keep = pc.and_(keep, pc.invert(is_test))
    if selection == "good":
        keep = pc.and_(keep, pc.fill_null(pc.equal(rows.column("label"), "good"), False))  # noqa: FBT003
    return rows.filter(keep)
