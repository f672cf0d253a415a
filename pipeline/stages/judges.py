"""The models of a group, one or several, which judge what the networks have made of its images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from torch import Tensor

from patchlake.pipeline.errors import ModelError
from patchlake.pipeline.features.extractor import on_host
from patchlake.pipeline.groups.files import load_calibration
from patchlake.pipeline.groups.loading import load_group
from patchlake.pipeline.groups.member import Member
from patchlake.pipeline.headway import listener
from patchlake.pipeline.methods.shared.contract import (
    DeviceDetector,
    GroupDetector,
    Method,
    MutualDetector,
    Scores,
)
from patchlake.pipeline.methods.shared.marks import Marks
from patchlake.pipeline.model_store.models import MANIFEST
from patchlake.pipeline.scores.calibration import Calibration
from patchlake.pipeline.scores.ensemble import ensemble_maps, ensemble_scores
from patchlake.pipeline.storage.owned import one_line

# What arrays of other shapes raise. Not `RuntimeError`: that is torch's for a device's faults.
_MISFITS = (ValueError, TypeError, LookupError, ArithmeticError)
# Files that are named, of a gallery's many.
_SHOWN = 6
_Embeddings = TypeVar("_Embeddings")
# What some images are known by; None: nobody says, and they are taken for new ones.
Known = Marks | None


@dataclass(frozen=True)
class Judges:
    """The detectors of a group, each member's. Several give the scores of their ensemble."""

    group: str
    members: Sequence[Member]
    detectors: Sequence[GroupDetector]
    # Each member's, or none of a single one, whose scores are in no need of a common unit.
    calibrations: Sequence[Calibration]

    @classmethod
    def loaded(
        cls, members: Sequence[Member], methods: Sequence[Method], group: str, threads: int
    ) -> "Judges":
        """Read the models of a group. Raises `ModelError` where its files do not fit its network.

        Args:
            members: The models.
            methods: Theirs.
            group: One that all of them have.
            threads: Of the search.
        """
        listener().waits(f"the model of group '{group}'")
        detectors = []
        for method, member in zip(methods, members, strict=True):
            record = member.manifest.groups[group]
            fitted = load_group(member.model, record, threads, member.bank(group))
            with _fitting(member, group):
                detectors.append(method.prepare(fitted))
        listener().waits("")
        joined = members if len(members) > 1 else ()
        calibrations = [load_calibration(m.model, m.manifest.groups[group]) for m in joined]
        return cls(group, members, detectors, calibrations)

    def scores(self, embeddings: Sequence[dict[str, Tensor]], known: Known) -> Scores:
        """Return the scores of images by each member's embeddings, where the networks are.

        Raises:
            ModelError: if the files of a model do not fit its network.
        """
        return self._judged(partial(_scored, known), embeddings)

    def scores_on_host(self, embeddings: Sequence[dict[str, np.ndarray]], known: Known) -> Scores:
        """Return what `scores` returns, of embeddings in memory."""
        return self._judged(partial(_scored_on_host, known), embeddings)

    def _judged(
        self,
        score: Callable[[GroupDetector, _Embeddings], Scores],
        embeddings: Sequence[_Embeddings],
    ) -> Scores:
        found = []
        for member, detector, own in zip(self.members, self.detectors, embeddings, strict=True):
            with _fitting(member, self.group):
                scores = score(detector, own)
                if not np.isfinite(scores.image_scores).all():
                    raise ValueError("the scores are not finite")
            found.append(scores)
        if len(found) == 1:
            return found[0]
        return Scores(
            ensemble_scores([one.image_scores for one in found], self.calibrations),
            ensemble_maps([one.anomaly_maps for one in found], self.calibrations),
        )


def between(known: Known, begin: int, end: int) -> Known:
    """Return what some images in a row are known by."""
    return None if known is None else known.take(slice(begin, end))


def _scored(known: Known, detector: GroupDetector, embeddings: dict[str, Tensor]) -> Scores:
    if isinstance(detector, DeviceDetector) and detector.is_on_device:
        return detector.score_on_device(embeddings)
    return _scored_on_host(known, detector, on_host(embeddings))


def _scored_on_host(
    known: Known, detector: GroupDetector, embeddings: dict[str, np.ndarray]
) -> Scores:
    if known is not None and isinstance(detector, MutualDetector):
        return detector.score_apart(embeddings, known)
    return detector.score(embeddings)


@contextmanager
def _fitting(member: Member, group: str) -> Iterator[None]:
    """Say of arrays whose shapes or numbers are not those of the network where they are from.

    Raises:
        ModelError: if the block fails on them: they were changed, and their digests with them.
    """
    try:
        yield
    except _MISFITS as error:
        files = ", ".join(file.name for file in member.manifest.groups[group].files[:_SHOWN])
        raise ModelError(
            f"{member.model.path(MANIFEST)}: the files of group '{group}' ({files}) do not fit "
            f"its network: {one_line(error)}; restore them, or fit again"
        ) from error
