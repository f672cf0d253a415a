"""Several memory banks in one model, as one bank: their rows below one another.

So a model has one bank and one provenance, in whose order the rows are those of the first bank,
then of the second, and so on. Rows of fewer dimensions than the widest bank's are filled up with
zeros. The state says how many rows and dimensions each bank has, and so a model's digest covers it.
What else a bank has in the state or among the facts is there under the name of its embedding.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from jaxtyping import Float32

from patchlake.pipeline.methods.shared.bank import MemoryBank, OwnPart
from patchlake.pipeline.methods.shared.contract import EarlierModel, FitResult
from patchlake.pipeline.methods.shared.corpus import Arrays

T = TypeVar("T")
# The fact that says how many banks of layers there are.
LAYERS_APART = "layers_apart"
# In the state, of each bank its rows and dimensions.
_SIZES = "sizes"


def stacked(found: Mapping[str, FitResult]) -> FitResult:
    """Return what is stored of several banks.

    Args:
        found: Of each a fit, by the name of its embedding: "layer0", "layer1", ...
    """
    facts: dict[str, float | str] = {LAYERS_APART: float(len(found)), "bank_rows": 0.0}
    state: Arrays = {}
    banks: list[MemoryBank] = []
    for name, result in found.items():
        assert result.bank is not None
        banks.append(result.bank)
        facts |= {f"{name}.{fact}": value for fact, value in result.facts.items()}
        state |= {f"{name}.{array}": value for array, value in result.state.items()}
    sizes = [bank.rows.shape for bank in banks]
    facts["bank_rows"] = float(sum(rows for rows, _ in sizes))
    state[_SIZES] = np.array(sizes, np.int64)
    return FitResult(facts, state, _one_below_another(banks))


def unstacked(earlier: EarlierModel) -> dict[str, EarlierModel]:
    """Return the banks of a fitted group, each as if it were the only one, by name."""
    assert earlier.bank is not None
    assert earlier.bank.origin is not None
    found: dict[str, EarlierModel] = {}
    for name, part, dim in parts_of(earlier.state):
        rows = np.ascontiguousarray(earlier.bank.rows[part, :dim])
        found[name] = replace(
            earlier,
            facts=named(earlier.facts, name),
            state=named(earlier.state, name),
            bank=MemoryBank(rows, name, earlier.bank.origin[part]),
        )
    return found


def rows_of(
    rows: Float32[np.ndarray, "bank widest"], state: Arrays
) -> dict[str, Float32[np.ndarray, "_bank _dim"]]:
    """Return the rows of each bank by name; without a copy where it has the widest rows.

    Raises:
        ValueError: if the state is not of these rows.
    """
    sizes = state[_SIZES]
    if sizes[:, 0].sum() != len(rows) or sizes[:, 1].max() != rows.shape[1]:
        raise ValueError(
            f"the bank has {len(rows)} rows of {rows.shape[1]} dimensions, its layers have "
            f"{sizes[:, 0].sum()} of at most {sizes[:, 1].max()}"
        )
    return {name: np.ascontiguousarray(rows[part, :dim]) for name, part, dim in parts_of(state)}


def named(stored: Mapping[str, T], name: str) -> dict[str, T]:
    """Return what one bank has among the facts or in the state."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): stored[key] for key in stored if key.startswith(prefix)}


def own_within(own: OwnPart | None, part: slice) -> OwnPart | None:
    """Return what images have in one bank, by which rows of all are its own."""
    if own is None:
        return None
    rows = own.rows[(own.rows >= part.start) & (own.rows < part.stop)]
    return replace(own, rows=rows - part.start)


def parts_of(state: Arrays) -> Iterator[tuple[str, slice, int]]:
    """Yield the name of each bank, which rows of all are its own, and its dimensions."""
    begin = 0
    for number, (rows, dim) in enumerate(state[_SIZES].tolist()):
        yield f"layer{number}", slice(begin, begin + rows), dim
        begin += rows


def _one_below_another(banks: Sequence[MemoryBank]) -> MemoryBank:
    widest = max(bank.rows.shape[1] for bank in banks)
    rows = np.zeros((sum(len(bank.rows) for bank in banks), widest), np.float32)
    origins, begin = [], 0
    for bank in banks:
        assert bank.origin is not None
        count, dim = bank.rows.shape
        rows[begin : begin + count, :dim] = bank.rows
        origins.append(bank.origin)
        begin += count
    sizes = tuple(len(bank.rows) for bank in banks)
    return MemoryBank(rows, banks[0].embedding, np.concatenate(origins), sizes)
