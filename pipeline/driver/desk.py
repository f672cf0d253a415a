"""A person's session of reviews: what is looked at, and each decision as it is written down."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

import pyarrow as pa

from patchlake.pipeline.driver.pictured import Pictures
from patchlake.pipeline.errors import PatchlakeError
from patchlake.pipeline.lake.photos import Photo, Place
from patchlake.pipeline.record.runs import now
from patchlake.pipeline.review_page.desk import Decision, Unacceptable
from patchlake.pipeline.reviews.table import MOST_REGIONS, append
from patchlake.pipeline.score_table.scored import Box, ScoredImage
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.tables import REVIEWS

# Of a photo, in pixels: what a screen shows.
_SIDE = 1024
# Images whose pictures are kept (a hundred KB each), and that are read before they are asked for.
_KEPT, _AHEAD = 64, 3
_READERS = 2


@dataclass(frozen=True)
class Reviewed:
    """What came of a session, or of a file of decisions.

    `decisions` counts every one that was written; `defective`, `good` and `unsure` count images by
    the last one on each, and `left` those without any.
    """

    reviews: str
    reviewer: str
    images: int
    decisions: int
    defective: int
    good: int
    unsure: int
    left: int

    @classmethod
    def of(
        cls, reviews: str, reviewer: str, images: int, words: Sequence[str], decisions: int
    ) -> "Reviewed":
        """Return the counts, of the last word on each image that has one."""
        counts = Counter(words)
        return cls(
            *(reviews, reviewer, images, decisions),
            *(counts["defective"], counts["good"], counts["unsure"]),
            images - len(words),
        )


@dataclass(frozen=True)
class Subject:
    """What is reviewed by whom, and where decisions go: what all rows of a session say."""

    reviews: Folder
    reviewer: str
    # The score table, its version, and the images table if it is known.
    scores: str
    version: str
    root: str | None

    def row(self, image: ScoredImage, verdict: str, at: datetime) -> dict[str, object]:
        """Return a row of `REVIEWS`, without what was drawn and the content that was looked at."""
        told = {name: getattr(image, name) for name in _OF_IMAGE}
        return told | {
            "verdict": verdict,
            "reviewer": self.reviewer,
            "reviewed_at": at,
            "root": self.root,
            "scores": self.scores,
            "version": self.version,
        }


_OF_IMAGE = (
    *("image_id", "group", "source_path", "source_row"),
    *("model_id", "image_score", "p_value", "is_anomalous"),
)


@dataclass(frozen=True)
class _Look:
    photo: Photo
    heatmap: bytes | None


@dataclass(eq=False)
class Session:
    """The images of one session and the decisions on them, as `review_page.desk.Desk` has it."""

    subject: Subject
    images: Sequence[ScoredImage]
    pictures: Pictures
    decisions: int = 0
    _said: dict[int, Decision] = field(default_factory=dict)
    _looked: dict[int, Photo] = field(default_factory=dict)
    _shelf: "OrderedDict[int, Future[_Look]]" = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _last: datetime | None = None

    def __post_init__(self) -> None:
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="pictures")

    @property
    def title(self) -> str:
        """The score table."""
        return self.subject.scores

    @property
    def reviewer(self) -> str:
        """Who decides."""
        return self.subject.reviewer

    def photo(self, number: int) -> bytes | str:
        """Return an image's photo as JPEG, or why there is none. The next ones are read as well."""
        photo = self._look(number).photo
        if photo.jpeg is None:
            return photo.error or "it cannot be shown"
        return photo.jpeg

    def heatmap(self, number: int) -> bytes | None:
        """Return an image's heatmap as JPEG."""
        return self._look(number).heatmap

    def _look(self, number: int) -> _Look:
        self.read_ahead(number)
        with self._lock:
            found = self._shelf[number]
        try:
            return found.result()
        except CancelledError:
            place = Place(self.images[number].source_path, self.images[number].source_row)
            return _Look(Photo(place, None, error="the session has ended"), None)

    def read_ahead(self, number: int) -> None:
        """Begin to read the pictures of an image and of those after it, if they are not at hand."""
        with self._lock:
            for one in range(number, min(number + 1 + _AHEAD, len(self.images))):
                if one not in self._shelf:
                    self._shelf[one] = self._readers.submit(self._read, one)
                self._shelf.move_to_end(one)
            while len(self._shelf) > _KEPT:
                self._shelf.popitem(last=False)

    def _read(self, number: int) -> _Look:
        image = self.images[number]
        (photo,) = self.pictures.photos_of([image], _SIDE)
        look = _Look(photo, self.pictures.heatmap_of(image))
        # Without the picture: which content it was, and its size.
        self._looked[number] = Photo(
            photo.place, None, photo.sha256, photo.error, photo.width, photo.height
        )
        return look

    def decision(self, number: int) -> Decision | None:
        """Return the last decision of this session on an image."""
        return self._said.get(number)

    def decide(self, number: int, decision: Decision) -> None:
        """Write a decision as a file of its own, and return when that is there.

        Raises:
            Unacceptable: if a region is not inside the image.
            OSError: if it cannot be written.
        """
        image, looked = self.images[number], self._looked.get(number)
        _require_inside(decision.regions, image, looked)
        with self._lock:
            at = self._time()
        row = self.subject.row(image, decision.verdict, at)
        row["sha256"] = None if looked is None else looked.sha256
        drawn = decision.regions
        row["regions"] = None if drawn is None else [asdict(box) for box in drawn]
        try:
            append(self.subject.reviews, pa.Table.from_pylist([row], schema=REVIEWS))
        except PatchlakeError as error:
            raise OSError(str(error)) from None
        with self._lock:
            self._said[number] = decision
            self.decisions += 1

    def _time(self) -> datetime:
        """Return the time, later than of any decision before: the last one counts."""
        at = now()
        if self._last is not None and at <= self._last:
            at = self._last + timedelta(microseconds=1)
        self._last = at
        return at

    @property
    def reviewed(self) -> Reviewed:
        """What has come of it so far."""
        words = [decision.verdict for decision in self._said.values()]
        subject = self.subject
        return Reviewed.of(
            subject.reviews.root, subject.reviewer, len(self.images), words, self.decisions
        )

    def close(self) -> None:
        """Read no more pictures."""
        self._readers.shutdown(wait=False, cancel_futures=True)


def _require_inside(
    boxes: tuple[Box, ...] | None, image: ScoredImage, looked: Photo | None
) -> None:
    if not boxes:
        return
    if len(boxes) > MOST_REGIONS:
        raise Unacceptable(f"{len(boxes)} regions, of an image at most {MOST_REGIONS}")
    width = (looked and looked.width) or image.width
    height = (looked and looked.height) or image.height
    if not width or not height:
        raise Unacceptable("the size of the image is not known, and so no region can be drawn")
    for box in boxes:
        if not (0 <= box.x < box.x + box.width <= width):
            raise Unacceptable(f"a region goes beyond the image, which is {width} pixels wide")
        if not (0 <= box.y < box.y + box.height <= height):
            raise Unacceptable(f"a region goes beyond the image, which is {height} pixels high")
