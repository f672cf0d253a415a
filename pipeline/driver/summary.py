"""How a run ended: its summary, and whether that is a success."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from patchlake.pipeline.cluster.kernels import kernels
from patchlake.pipeline.driver.drive import Tally
from patchlake.pipeline.errors import FragmentsFailed
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.record import runs
from patchlake.pipeline.record.runs import Run, Summary

log = logging.getLogger(__name__)

# Fragments and files that an error names.
_SHOWN = 5


def summarise(
    run: Run,
    tally: Tally,
    planned: Fragments,
    already_done: int,
    *,
    groups: Mapping[str, str],
    parts: Sequence[str] = (),
    removed_parts: Sequence[str] = (),
) -> Summary:
    """Return the run's summary, as of now."""
    summary = Summary(
        run=run.record.run,
        verb=run.record.verb,
        finished_at=runs.now(),
        fragments=len(planned),
        already_done=already_done,
        failed_fragments=tally.failed,
        damaged_files=dict(tally.damaged),
        images=planned.images,
        statuses=dict(sorted(tally.statuses.items())),
        earlier_statuses=dict(sorted(tally.earlier.items())),
        duplicate_image_ids=tally.duplicates,
        seconds=time.monotonic() - tally.started,
        stage_seconds={stage: float(s) for stage, s in sorted(tally.stage_seconds.items())},
        nodes={stage: dict(sorted(some.items())) for stage, some in sorted(tally.nodes.items())},
        removed_parts=list(removed_parts),
        groups=dict(groups),
        libraries={**runs.library_versions(), "blas": ", ".join(kernels())},
        settings=run.record.settings,
        parts=list(parts),
    )
    exit_code = FragmentsFailed.exit_code if _shortfall(summary) else 0
    return summary.model_copy(update={"exit_code": exit_code})


def require_success(summary: Summary, result: object = None) -> None:
    """Raise `FragmentsFailed` if a fragment failed or too many rows are errors: exit code 3.

    Args:
        summary: Of the run.
        result: What the job returns else; without, the summary.
    """
    shortfall = _shortfall(summary)
    if shortfall:
        raise FragmentsFailed(shortfall, result or summary)


def list_damaged(run: Run, damaged: Mapping[str, str]) -> None:
    """List files that cannot be read as failed, where `status` finds them."""
    for path, reason in damaged.items():
        log.warning("%s; it is passed over, and tried again by the same command", reason)
        run.fail(hashlib.sha256(path.encode()).hexdigest()[:20], reason)


def _shortfall(summary: Summary) -> str | None:
    faults = [text for text in (_damaged(summary), _unfinished(summary)) if text]
    return "; ".join(faults) or None


def _damaged(summary: Summary) -> str | None:
    damaged = list(summary.damaged_files.values())
    if not damaged:
        return None
    return (
        f"{len(damaged)} files of the lake cannot be read and were passed over; they are tried "
        f"again by the same command ({'; '.join(damaged[:_SHOWN])})"
    )


def _unfinished(summary: Summary) -> str | None:
    if summary.failed_fragments:
        shown = list(summary.failed_fragments.items())[:_SHOWN]
        listed = "; ".join(f"{key}: {error}" for key, error in shown)
        return (
            f"{len(summary.failed_fragments)} of {summary.fragments} fragments failed; they are "
            f"tried again by the same command ({listed})"
        )
    limit = summary.settings.max_failed
    if summary.error_rows > limit * summary.images:
        return (
            f"{summary.error_rows} of {summary.images} images are error rows "
            f"{dict(Counter(summary.statuses) + Counter(summary.earlier_statuses))}, "
            f"max_failed is {limit}: see the column 'error'"
        )
    return None
