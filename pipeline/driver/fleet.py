"""The groups of a fit: small ones whole in a worker each, large ones by all workers together."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa

from patchlake.pipeline.cluster.local import LocalRunner
from patchlake.pipeline.cluster.runner import Runner
from patchlake.pipeline.config import Settings
from patchlake.pipeline.driver.observer import Observer, fraction
from patchlake.pipeline.errors import ConfigError, PatchlakeError, WorkersLost
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.fit import FittedModel, fit_group
from patchlake.pipeline.groups.partials import embedded_bytes
from patchlake.pipeline.methods import rotations_of
from patchlake.pipeline.methods.shared.contract import Method, Progress
from patchlake.pipeline.model_store.identity import Identity
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.storage.folder import Folder

log = logging.getLogger(__name__)

# Embeddings of a group that one worker fits alone: 200 images with ResNet-18, 80 with the 1024
# dimensions of WideResNet-50. Fitting takes some three times as much memory.
_SMALL_BYTES = 2**28
_MEMORY_PER_BYTE = 3


@dataclass(frozen=True)
class GroupFits:
    """What the fits of all groups of a job have in common."""

    method: Method
    # What the digest of a group's model covers besides its arrays.
    identity: Identity
    settings: Settings
    model: Folder
    partials: str
    memory_budget: int
    # Of this process, and of a worker that fits a group alone.
    threads: tuple[int, int]
    # Group -> what of its pictures counts, as a model keeps it.
    rois: Mapping[str, bytes] = field(default_factory=dict)

    def corpus(self, fragments: Fragments, runner: Runner) -> StoredCorpus:
        """Return a group's corpus, with all workers at its disposal."""
        return StoredCorpus(
            model=self.model,
            partials=self.partials,
            fragments=fragments,
            workers=runner,
            memory_budget=self.memory_budget,
            threads=self.threads[0],
            roi=self.rois.get(fragments[0].group),
            rotations=rotations_of(self.identity.method_options),
        )

    def alone(self, corpus: StoredCorpus) -> StoredCorpus:
        """Return the corpus as one worker has it, which asks nobody else."""
        threads = self.threads[1]
        return replace(corpus, workers=LocalRunner(threads=threads), threads=threads)


def fit_groups(
    fitting: GroupFits,
    plan: Fragments,
    broken: Sequence[str],
    runner: Runner,
    observer: Observer,
) -> tuple[dict[str, FittedModel], dict[str, str]]:
    """Return the groups that were fitted, and why the others were not.

    One group's failure is its own: the others are fitted.

    Args:
        fitting: What they have in common.
        plan: All fragments.
        broken: Keys of fragments that failed; a group that has one is not fitted.
        runner: Where it is done. No result depends on where.
        observer: Is told how far it is.
    """
    outcomes: dict[str, FittedModel | str] = {}
    broken_keys = pa.array(broken, pa.string())
    sizes = embedded_bytes(fitting.model, fitting.partials)
    limit = min(_SMALL_BYTES, fitting.memory_budget // _MEMORY_PER_BYTE)
    small: list[StoredCorpus] = []
    large: list[StoredCorpus] = []
    for group in plan.groups:
        fragments = plan.of_group(group)
        failed = fragments.with_keys(broken_keys).keys.to_pylist()
        if failed:
            outcomes[group] = f"fragments {failed} failed"
            continue
        held = sum(sizes.get(key, 0) for key in fragments.keys.to_pylist())
        (small if held <= limit else large).append(fitting.corpus(fragments, runner))
    if len(small) == 1:
        # Nothing to do beside it: this process has more threads than a worker.
        large, small = small + large, []
    outcomes |= _fit_small(fitting, small, runner, observer)
    for corpus in large:
        outcomes[corpus.group] = _fit_large(fitting, corpus, observer)
    fitted = {g: one for g, one in outcomes.items() if isinstance(one, FittedModel)}
    reasons = {g: one for g, one in outcomes.items() if isinstance(one, str)}
    for group, reason in reasons.items():
        log.warning("group '%s' is not fitted: %s", group, reason)
    return dict(sorted(fitted.items())), dict(sorted(reasons.items()))


def _fit_small(
    fitting: GroupFits, corpora: Sequence[StoredCorpus], runner: Runner, observer: Observer
) -> dict[str, FittedModel | str]:
    """Return the outcome of each group; several are fitted at a time."""
    calls = [partial(_outcome, fitting, fitting.alone(corpus)) for corpus in corpora]
    found: dict[str, FittedModel | str] = {}
    if not calls:
        return found
    with observer.task("fit of groups", len(calls), "groups") as advance:
        for corpus, outcome in zip(corpora, runner.each(calls), strict=True):
            found[corpus.group] = outcome
            advance(1)
    return found


def _fit_large(fitting: GroupFits, corpus: StoredCorpus, observer: Observer) -> FittedModel | str:
    with fraction(observer, f"fit of {corpus.group}") as on_progress:
        return _outcome(fitting, corpus, on_progress)


def _outcome(
    fitting: GroupFits, corpus: StoredCorpus, on_progress: Progress | None = None
) -> FittedModel | str:
    """Fit a group where this is called; a failure is returned, so that it stops no other group."""
    try:
        identity = fitting.identity.of_group(corpus.group)
        return fit_group(fitting.method, corpus, identity, fitting.settings, on_progress)
    except (ConfigError, WorkersLost) as error:
        return str(error)
    except PatchlakeError:
        # Asked to stop, or a full disk: that is the job's.
        raise
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one group stays with it
        return f"{type(error).__name__}: {error}"
