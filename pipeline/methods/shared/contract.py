"""What a method is given, and what it gives back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from patchlake.pipeline.config import Layers
from patchlake.pipeline.index.search import Search
from patchlake.pipeline.methods.shared.bank import MemoryBank, OwnPart
from patchlake.pipeline.methods.shared.corpus import Arrays, Corpus
from patchlake.pipeline.methods.shared.marks import Marks

if TYPE_CHECKING:
    # It imports torch, 3 s of a process that only reads or writes tables.
    from torch import Tensor

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FitResult:
    """What a fit, an update or a withdrawal stores. Arrays and numbers only."""

    # For model.json: covering_radius, patches, ...; with a bank also its `bank_rows`.
    facts: dict[str, float | str]
    # What scoring needs beside a bank and a gallery.
    state: Arrays = field(default_factory=dict)
    bank: MemoryBank | None = None
    # Returns what of a fragment's embeddings goes into the model's gallery. None: there is none.
    to_gallery: Callable[[Arrays], Arrays] | None = None
    # Images that the fit has not seen, by number: scores are calibrated on these. None: on all,
    # each scored without its own part in the model.
    unseen: Int64[np.ndarray, " images"] | None = None
    # The score above which an image is anomalous, if the method knows one.
    threshold: float | None = None
    # What is kept beside the state, in float64, for images that join or leave later.
    statistics: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class EarlierModel:
    """A fitted group which images join or leave: what its files hold, nothing derived from it."""

    images: int
    facts: Mapping[str, float | str]
    state: Arrays
    statistics: Arrays
    bank: MemoryBank | None = None


@runtime_checkable
class Gallery(Protocol):
    """Feature maps of the training images, kept in the model's files."""

    def of_image(self, number: int) -> Arrays:
        """Return what the fit kept of one image, in its stored dtype."""


@runtime_checkable
class FittedGroup(Protocol):
    """A group that has been fitted, now or long ago: a method takes of it what its fit stored."""

    def state(self) -> Arrays:
        """Return `FitResult.state`."""

    def search(self) -> Search:
        """Return the search over the rows of `FitResult.bank`."""

    def rows(self) -> Float32[np.ndarray, "bank dim"]:
        """Return the rows of `FitResult.bank` themselves, for a search that the method makes.

        Raises:
            ConfigError: if they are not in this process, or not kept as they are.
        """

    def gallery(self) -> Gallery:
        """Return what `FitResult.to_gallery` has kept of the images."""


@dataclass(frozen=True)
class Scores:
    """One number an image, and one a patch where the method has a map. Larger is worse."""

    image_scores: Float32[np.ndarray, " images"]
    anomaly_maps: Float32[np.ndarray, "images rows columns"] | None


@runtime_checkable
class GroupDetector(Protocol):
    """What scores the images of one group: the settings of a method, and what it keeps loaded.

    Each method has a class of its own for it, with fields for what it needs.
    """

    def score(self, embeddings: Arrays, own: OwnPart | None = None) -> Scores:
        """Return the scores of each image, whatever the other images are.

        `own` is given when images of the training corpus are scored, and says what of the model is
        theirs; where rows of the memory bank are, there is one image. None: they are new.
        """


@runtime_checkable
class DeviceDetector(GroupDetector, Protocol):
    """A detector that can score embeddings on a GPU, where the network has left them."""

    @property
    def is_on_device(self) -> bool:
        """Whether what it keeps loaded is there."""

    def score_on_device(self, embeddings: "dict[str, Tensor]") -> Scores:
        """Return what `score` returns of new images, to the bit."""


@runtime_checkable
class MutualDetector(GroupDetector, Protocol):
    """A detector that leaves out what its model has of an image and of its part, by marks."""

    def score_apart(self, embeddings: Arrays, marks: Marks) -> Scores:
        """Return the scores of images, in the model or not, as if they and their parts were new."""


# See `Method.exact_because`.
NO_BANK = "it has no memory bank that an approximate index could be measured on"


@runtime_checkable
class Method(Protocol):
    """A frozen dataclass of settings; one module of `pipeline.methods` each, found by its name."""

    # `backbone.layers` where the user names none.
    layers: ClassVar[Layers]
    # Training images that scores are calibrated on, at most.
    calibration_images: ClassVar[int]
    # Whether images are best scored many at a time, because what is read for one serves others.
    # Else threads score a few images each.
    scored_together: ClassVar[bool]

    @property
    def exact_because(self) -> str:
        """Why `index.kind` can only be exact; "" where it may be another one.

        That takes a memory bank with rows of images, and so others of their images to measure an
        approximate index with; methods without one say `NO_BANK`.
        """

    def embed(self, feature_maps: "Sequence[Tensor]", *, seed: int) -> "dict[str, Tensor]":
        """Return what is kept of each image, by name, from the backbone's feature maps."""

    def fit(self, corpus: Corpus, *, seed: int, progress: Progress | None = None) -> FitResult:
        """Return what is to be stored."""

    def prepare(self, group: FittedGroup) -> GroupDetector:
        """Return what scores images of a group, with all that can be derived once."""


@runtime_checkable
class Mutual(Method, Protocol):
    """A method by which images are compared with one another: its detectors are `MutualDetector`.

    So an image that is in the model is scored as a new one, and may be evaluated.
    """

    # True: a method without it is another one.
    is_mutual: ClassVar[bool]


@runtime_checkable
class Updatable(Method, Protocol):
    """A method whose models images can join and leave without being fitted again.

    Images are numbered as they joined; where some leave, the others close up.
    """

    # Whether what is to leave must be embedded again: nothing of a single image is in the model.
    leaves_by_embedding: ClassVar[bool]

    def update(
        self, earlier: EarlierModel, corpus: Corpus, *, seed: int, progress: Progress | None = None
    ) -> FitResult:
        """Return what is to be stored of the earlier images and those of the corpus together.

        Of a gallery it is what is to be added.

        Raises:
            ConfigError: if the settings of the method keep too little for that.
        """

    def withdraw(
        self,
        earlier: EarlierModel,
        images: Int64[np.ndarray, " withdrawn"],
        corpus: Corpus | None,
        *,
        seed: int,
    ) -> FitResult:
        """Return what is to be stored without some of the images, given by number.

        `corpus` are these images, where `leaves_by_embedding` asks for them.

        Raises:
            ConfigError: if too little would be left.
        """
