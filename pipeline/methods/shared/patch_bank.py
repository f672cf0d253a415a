"""A memory bank of patches: which of a corpus are kept, and how images join it and leave it.

The bank is a greedy k-centre coreset (Roth et al., CVPR 2022, algorithm 1); with `position_radius`
one in which each patch is covered from near its own place (`pipeline.maths.near_coreset`).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from patchlake.pipeline.index.exact import ExactSearch
from patchlake.pipeline.maths.projection import projected
from patchlake.pipeline.methods.shared.bank import MemoryBank
from patchlake.pipeline.methods.shared.contract import EarlierModel, FitResult, Progress
from patchlake.pipeline.methods.shared.corpus import Corpus
from patchlake.pipeline.methods.shared.near_selection import NearSelector
from patchlake.pipeline.methods.shared.nearness import Nearness
from patchlake.pipeline.methods.shared.selection import Selector, gather_rows


@dataclass(frozen=True, kw_only=True)
class PatchBank:
    """Settings of a bank, as methods have them; the selector names the embedding."""

    selector: Selector
    coreset_fraction: float
    max_bank_rows: int
    position_radius: int | None

    def fit(self, corpus: Corpus, progress: Progress | None = None) -> FitResult:
        """Return the coreset of all patches and where each row is from."""
        height, width, _ = corpus.shapes[self.selector.embedding]
        size = self._size(corpus.images * height * width)
        nearness = Nearness.on((height, width), self.position_radius)
        if nearness is None:
            selection = self.selector.select(corpus, size, progress)
        else:
            near = NearSelector(self.selector, nearness.radius, self.max_bank_rows)
            selection = near.select(corpus, size, progress=progress)
        return _result(self._bank(corpus, selection.indices), selection.facts, nearness)

    def update(
        self, earlier: EarlierModel, corpus: Corpus, progress: Progress | None = None
    ) -> FitResult:
        """Return the bank and the patches of the corpus that greedy picks after it.

        The bank grows to the coreset's share of all patches. `radius_bound` is proven for all
        images: earlier ones were covered by the bank, which only grows.
        """
        assert earlier.bank is not None
        height, width, _ = corpus.shapes[self.selector.embedding]
        patches_ = float(earlier.facts["patches"]) + corpus.images * height * width
        more = max(0, self._size(int(patches_)) - len(earlier.bank.rows))
        nearness = Nearness.stored(earlier.state, self.position_radius)
        if nearness is None:
            selection = self.selector.extend(corpus, earlier.bank.rows, more, progress)
        else:
            near = NearSelector(self.selector, nearness.radius, self.max_bank_rows)
            selection = near.select(corpus, more, earlier.bank, progress)
        bank = earlier.bank.joined(self._bank(corpus, selection.indices), earlier.images)
        added = float(selection.facts["covering_radius"])
        bound = _radius_bound(earlier)
        facts: dict[str, float | str] = {
            "patches": patches_,
            "coreset": selection.facts["coreset"],
            "added_images_radius": added,
        }
        # Patches of places that had lost all rows nearby have other rows now than were measured.
        if bound is not None and not earlier.facts.get("uncovered_places"):
            facts["radius_bound"] = max(bound, added)
        return _result(bank, facts, nearness)

    def withdraw(self, earlier: EarlierModel, images: Int64[np.ndarray, " withdrawn"]) -> FitResult:
        """Return the bank without the images' rows; nothing takes their place.

        What a row covered is within the old radius of it, and so within that and its distance to
        the nearest row that stays: the new `radius_bound`.
        """
        assert earlier.bank is not None
        assert earlier.bank.origin is not None
        bank = earlier.bank.without(images)
        is_gone = np.isin(earlier.bank.origin[:, 0], images)
        left, gone = bank.rows, earlier.bank.rows[is_gone]
        # The radius is of the space that the rows were selected in.
        projection = self.selector.project(left.shape[1])
        if projection is not None:
            left, gone = projected(left, projection), projected(gone, projection)
        nearness = Nearness.stored(earlier.state, self.position_radius)
        if nearness is None:
            farther = float(ExactSearch.over(left).nearest(gone, 1)[0].max(initial=0))
        else:
            places = earlier.bank.origin[:, 1:]
            farther = nearness.farthest(gone, places, np.flatnonzero(is_gone), left)
        patches_ = float(earlier.facts["patches"])
        facts: dict[str, float | str] = {
            "patches": patches_ - round(patches_ / earlier.images) * len(images),
            "coreset": earlier.facts["coreset"],
        }
        bound = _radius_bound(earlier)
        if bound is not None:
            facts["radius_bound"] = bound + farther
        return _result(bank, facts, nearness)

    def _size(self, patches_: int) -> int:
        return min(max(1, int(patches_ * self.coreset_fraction)), self.max_bank_rows)

    def _bank(self, corpus: Corpus, indices: Int64[np.ndarray, " size"]) -> MemoryBank:
        """Return the rows of these numbers, with the image and the place that each is of."""
        name = self.selector.embedding
        height, width, _ = corpus.shapes[name]
        grid = (corpus.images, height, width)
        origin = np.stack(np.unravel_index(indices, grid), axis=1)
        return MemoryBank(gather_rows(corpus, indices, name), name, origin)


def _result(
    bank: MemoryBank, facts: dict[str, float | str], nearness: Nearness | None
) -> FitResult:
    """Return what is stored of a bank, and what is told of it."""
    facts = facts | {"bank_rows": float(len(bank.rows))}
    if nearness is None:
        return FitResult(facts, bank=bank)
    return FitResult(facts | nearness.facts(bank), nearness.state(bank), bank)


def _radius_bound(earlier: EarlierModel) -> float | None:
    """Return the covering radius as it was measured, or a bound of it; None where none is known."""
    found = earlier.facts.get("covering_radius", earlier.facts.get("radius_bound"))
    return None if found is None else float(found)
