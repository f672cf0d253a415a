"""What the page needs of whoever keeps the images and the decisions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from patchlake.pipeline.score_table.scored import Box, ScoredImage

Word = Literal["defective", "good", "unsure"]


@dataclass(frozen=True)
class Decision:
    """What a person says of an image."""

    verdict: Word
    # As drawn or corrected; None: the person has left the regions as they were.
    regions: tuple[Box, ...] | None = None


class Unacceptable(ValueError):  # noqa: N818 - what a decision is
    """A decision that cannot be one on this image; the message says why."""


@runtime_checkable
class Desk(Protocol):
    """The images of one session, by their numbers from 0, and the decisions on them."""

    @property
    def title(self) -> str:
        """What is reviewed."""
        ...

    @property
    def reviewer(self) -> str:
        """Who decides."""
        ...

    @property
    def images(self) -> Sequence[ScoredImage]:
        """The images, in the order in which they are shown."""
        ...

    def photo(self, number: int) -> bytes | str:
        """Return an image's photo as JPEG, or why there is none."""
        ...

    def heatmap(self, number: int) -> bytes | None:
        """Return an image's heatmap as JPEG."""
        ...

    def decision(self, number: int) -> Decision | None:
        """Return the last decision of this session on an image."""
        ...

    def decide(self, number: int, decision: Decision) -> None:
        """Keep a decision: when this returns it has been written.

        Raises:
            Unacceptable: if it cannot be one on this image.
            OSError: if it could not be written.
        """
        ...
