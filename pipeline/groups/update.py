"""update and withdraw: images join a group's model, or leave it, and it is not fitted again."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from patchlake.pipeline.config import Settings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.groups.calibrate import Calibrator, choose_evenly
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.files import load_accounts, load_state
from patchlake.pipeline.groups.fit import (
    FittedModel,
    GroupContents,
    bank_and_facts,
    calibrator_of,
    judged_by,
    store,
)
from patchlake.pipeline.groups.gallery import gallery_files, without_images, write_gallery
from patchlake.pipeline.groups.loading import bank_files, load_bank_rows
from patchlake.pipeline.groups.membership import Membership, samples_left
from patchlake.pipeline.groups.parts import judged_without
from patchlake.pipeline.groups.roi import roi_files
from patchlake.pipeline.groups.suspects import listed
from patchlake.pipeline.methods.shared.bank import MemoryBank
from patchlake.pipeline.methods.shared.contract import EarlierModel, Method, Progress, Updatable
from patchlake.pipeline.model_store.identity import Identity
from patchlake.pipeline.model_store.models import FileRecord, GroupRecord
from patchlake.pipeline.scores.calibration import Sample
from patchlake.pipeline.storage.folder import Folder


def updatable(method: Method, name: str) -> Updatable:
    """Return the method as one whose models images can join and leave.

    Raises:
        ConfigError: if it is none: what it learns of the images is of all of them at once.
    """
    if not isinstance(method, Updatable):
        raise ConfigError(
            f"method '{name}' is trained on all images together: none can join or leave its model; "
            "fit again"
        )
    return method


@dataclass(frozen=True)
class PublishedGroup:
    """The published model of a group, and how its digest is made."""

    model: Folder
    group: str
    record: GroupRecord
    members: Membership
    identity: Identity
    settings: Settings

    @classmethod
    def of(
        cls,
        model: Folder,
        group: str,
        record: GroupRecord,
        identity: Identity,
        settings: Settings,
    ) -> "PublishedGroup":
        """Return the group; its arrays are not read yet.

        Raises:
            ConfigError: if the model was fitted before images were recorded.
            ModelError: if a file is missing or damaged.
        """
        members = Membership.stored(load_accounts(model, record).images)
        return cls(model, group, record, members, identity, settings)

    @property
    def gallery(self) -> list[FileRecord]:
        """The files of its gallery, if there are any."""
        return gallery_files(self.record.files)

    def load(self) -> EarlierModel:
        """Return what the method needs to go on from. Raises `ModelError`."""
        accounts = load_accounts(self.model, self.record)
        rows, bank = load_bank_rows(self.model, self.record), None
        if rows is not None and accounts.provenance is not None:
            origin = self.members.origin(accounts.provenance)
            bank = MemoryBank(rows, origin=origin)
        state = load_state(self.model, self.record)
        facts = self.record.facts
        return EarlierModel(self.members.count, facts, state, accounts.statistics, bank)


@dataclass(frozen=True)
class Joining:
    """How images join: at which step of the lineage, and whether they were chosen by their scores.

    Those that were, as false alarms are, are no sample of good images: the model learns them, and
    is not judged by them.
    """

    step: int
    by_score: bool = False


def update_group(
    method: Updatable,
    fitted: PublishedGroup,
    corpus: StoredCorpus,
    joining: Joining,
    progress: Progress | None = None,
) -> FittedModel:
    """Write the files of a group's model with the corpus' images; return its record and suspects.

    Scores of the earlier images are kept as they were measured when they joined, thinned to make
    room for those of the new ones: their embeddings are gone.

    Args:
        method: That of the model, with its settings.
        fitted: The group.
        corpus: Images that are not in the model, one at least.
        joining: How they join.
        progress: Called with (done, total).

    Raises:
        ConfigError: if the method cannot, or the index is below the recall asked.
    """
    settings, before = fitted.settings, fitted.members.count
    result = method.update(fitted.load(), corpus, seed=settings.seed, progress=progress)
    gallery = fitted.gallery
    if result.to_gallery is not None:
        gallery = gallery + write_gallery(corpus, result.to_gallery, fitted.model, before=before)
    bank, facts = bank_and_facts(corpus, result, settings, before=before)
    membership = fitted.members.joined_by(Membership.of(corpus, joining.step))
    if joining.by_score:
        membership = judged_without(membership.measured(fitted.members.samples()), before)
    else:
        calibrator = calibrator_of(method, fitted.model, result, gallery, fitted.identity)
        membership = _measured(method, fitted, corpus, calibrator, membership)
    roi = roi_files(fitted.record)
    contents = GroupContents(result, bank, facts, gallery, membership, corpus.unusable, roi)
    return _stored(fitted, contents)


def _measured(
    method: Updatable,
    fitted: PublishedGroup,
    corpus: StoredCorpus,
    calibrator: Calibrator,
    membership: Membership,
) -> Membership:
    """Return the members with new samples of the corpus' images, and those of the earlier ones."""
    before, at_most = fitted.members.count, method.calibration_images
    chosen = choose_evenly(np.arange(corpus.images), before + corpus.images, at_most)
    new = list(calibrator.measure(corpus, chosen, before=before))
    old = _thinned(fitted.members.samples(), at_most - len(new))
    return judged_by(method, calibrator, corpus, membership.measured([*old, *new]))


def _stored(fitted: PublishedGroup, contents: GroupContents) -> FittedModel:
    record = store(fitted.model, fitted.group, contents, fitted.identity, fitted.settings)
    return FittedModel(record, listed(fitted.group, contents.membership))


def withdraw_group(
    method: Updatable,
    fitted: PublishedGroup,
    numbers: Int64[np.ndarray, " withdrawn"],
    corpus: StoredCorpus | None,
    step: int,
) -> FittedModel:
    """Write the files of a group's model without some images; return its record and suspects.

    The scores of those that stay are kept as they were measured, and an approximate index's quality
    as well.

    Args:
        method: That of the model, with its settings.
        fitted: The group.
        numbers: The images, one at least.
        corpus: The same images, where the method needs their embeddings.
        step: Number of this step in the model's lineage.

    Raises:
        ConfigError: if the method cannot, or too little would be left.
    """
    settings = fitted.settings
    earlier = fitted.load()
    result = method.withdraw(earlier, numbers, corpus, seed=settings.seed)
    bank = {} if result.bank is None else bank_files(result.bank, settings.index)
    group, files = fitted.group, fitted.gallery
    gallery = without_images(fitted.model, group, files, numbers.tolist()) if files else []
    quality = {n: v for n, v in earlier.facts.items() if n in _QUALITY}
    samples = samples_left(fitted.members.samples(), numbers)
    membership = fitted.members.left_by(numbers, step).measured(samples)
    membership = judged_without(membership)
    unusable = fitted.record.unusable_images
    facts, roi = result.facts | quality, roi_files(fitted.record)
    contents = GroupContents(result, bank, facts, gallery, membership, unusable, roi)
    return _stored(fitted, contents)


_QUALITY = {"queries", "recall_at_1", "mean_score_error_relative", "max_score_error_relative"}


def _thinned(samples: list[Sample], at_most: int) -> list[Sample]:
    """Return so many of the samples, evenly spread."""
    if len(samples) <= at_most:
        return samples
    kept = np.linspace(0, len(samples) - 1, max(0, at_most)).round().astype(int)
    return [samples[number] for number in kept]
