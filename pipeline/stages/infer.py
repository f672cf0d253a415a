"""infer: pixels to image scores and anomaly maps, with the models of the fragment's group.

The one stage that is expensive to start: an actor on Ray, built once by a `Scorer`'s settings, URIs
and references to what others hold, which are all that travels to it. One model or several (an
ensemble): members with the same backbone share its feature maps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
from jaxtyping import Float32
from torch import Tensor

from patchlake.pipeline.features.extractor import in_pieces, joined, on_host
from patchlake.pipeline.features.summary import SUMMARY, embedding_of
from patchlake.pipeline.groups.member import Member
from patchlake.pipeline.groups.recent import Recent
from patchlake.pipeline.headway import Passed, listener
from patchlake.pipeline.images.geometry import Geometries, Geometry, inputs_of, split_inputs
from patchlake.pipeline.index.threads import BlockThreads
from patchlake.pipeline.maths.blas import on_one_thread
from patchlake.pipeline.maths.interior import Interior
from patchlake.pipeline.methods import build
from patchlake.pipeline.methods.shared.contract import (
    Method,
    Mutual,
    Scores,
)
from patchlake.pipeline.methods.shared.marks import Marks
from patchlake.pipeline.stages.batch import FragmentBatch, advance
from patchlake.pipeline.stages.judges import Judges, Known, between
from patchlake.pipeline.stages.trunks import Trunk, trunks_of

# Images that a thread embeds and scores before it takes the next ones. Their embeddings (0.5 MB an
# image with lite0, 1.2 with ResNet-18) then stay in the processor's caches.
_PIECE = 4
# Fewer of inputs whose embeddings are hundreds of MB: of 1024 x 1024 pixels as many.
_PIECE_PIXELS = _PIECE * 1024 * 1024
# Embeddings that are scored together where a method wants many: of SPADE's 1.4 million values, 6 MB
# an image, 45 images.
_EMBEDDED_BYTES = 256 * 2**20
# Never more, so that whoever watches sees them pass.
_TOGETHER = 64
# Images as decode makes them, and what of each counts.
_Piece = tuple[np.ndarray, Sequence[Interior]]


@dataclass(frozen=True)
class Scorer:
    """Settings of the infer stage; `start` loads the backbones and returns the stage."""

    members: Sequence[Member]
    # Of the pixels, in the order in which decode has made them (`inputs_of`).
    geometries: Sequence[Geometry | Geometries]
    # Bytes of models that stay loaded.
    models_budget: int

    def start(self, threads: int) -> "Infer":
        """Return the stage, with the backbones loaded and checked. It works in so many threads."""
        names = dict.fromkeys(member.manifest.backbone.name for member in self.members)
        listener().waits(f"the weights of {', '.join(names)}")
        methods = [build(m.manifest.method, m.manifest.method_options) for m in self.members]
        trunks = trunks_of(self.members, methods)
        listener().waits("")
        # All networks are on the same device.
        return Infer(self, methods, trunks, trunks[0].extractor.threads(threads))


@dataclass(frozen=True)
class Seen:
    """What is made of some images."""

    scores: Scores
    # `features.summary`, of the first member.
    summaries: Float32[np.ndarray, "images channels"]


@dataclass(frozen=True)
class _Asked:
    """Images to score, as `Infer.seen` is given them."""

    pixels: np.ndarray
    interiors: Sequence[Interior]
    marks: Known
    passed: Passed


class Infer:
    """Stage: adds `image_score` and `embedding` to the rows; replaces pixels by anomaly maps."""

    def __init__(
        self, scorer: Scorer, methods: Sequence[Method], trunks: Sequence[Trunk], threads: int
    ) -> None:
        self._scorer = scorer
        self._methods = methods
        self._trunks = trunks
        self._threads = BlockThreads(threads)
        # Fragments come group by group: a model is loaded about once a worker.
        self._models = Recent(self._load_group, self._held_bytes, scorer.models_budget)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the batch with scores and float32 maps (images, rows, columns)."""
        return advance("infer", self._infer, table).to_arrow()

    def _infer(self, batch: FragmentBatch) -> FragmentBatch:
        scores = np.empty(0, np.float32)
        maps = np.empty((0, 0, 0), np.float32)
        embeddings: list[list[float]] = []
        if len(batch.array):
            passed = Passed("infer", batch.fragment.key)
            group, marks = batch.fragment.group, self._marks(batch)
            found = self.seen(batch.array, group, passed, batch.interiors(), marks)
            scores, grids = found.scores.image_scores, found.scores.anomaly_maps
            maps = np.empty((len(scores), 0, 0), np.float32) if grids is None else grids
            embeddings = embedding_of(found.summaries).tolist()
        is_ok = np.array([status == "ok" for status in batch.statuses()], bool)
        column = np.zeros(len(is_ok), np.float32)
        column[is_ok] = scores
        rows = batch.rows.append_column("image_score", pa.array(column, pa.float32(), mask=~is_ok))
        each = iter(embeddings)
        whole = pa.array([next(each) if ok else None for ok in is_ok], pa.list_(pa.float32()))
        return replace(batch, rows=rows.append_column("embedding", whole), array=maps)

    def _marks(self, batch: FragmentBatch) -> Known:
        """Return what the ok images are known by, where a method asks for it."""
        if not any(isinstance(method, Mutual) for method in self._methods):
            return None
        is_ok = pa.array([status == "ok" for status in batch.statuses()], pa.bool_())
        images = batch.rows.filter(is_ok)
        names = ("sha256", "part_id", "thumbnail")
        return Marks.of(*(images.column(name).to_pylist() for name in names))

    def score(
        self,
        pixels: np.ndarray,
        group: str,
        passed: Passed,
        interiors: Sequence[Interior] = (),
    ) -> Scores:
        """Return the scores of images; see `seen`."""
        return self.seen(pixels, group, passed, interiors).scores

    def seen(
        self,
        pixels: np.ndarray,
        group: str,
        passed: Passed,
        interiors: Sequence[Interior] = (),
        marks: Known = None,
    ) -> Seen:
        """Return the scores and summaries of images as decode makes them, at least one.

        Maps have their lowest value inside in all places outside.

        Args:
            pixels: Of each image what `join_inputs` returns, uint8.
            group: Whose model it is.
            passed: Is told of images as they are scored.
            interiors: What of each image counts; none where all does.
            marks: What the images are known by. Without, all are new, also to a model of them.
        """
        asked, judges = _Asked(pixels, interiors, marks, passed), self._models.get(group)
        # Products of numpy's BLAS are made in each thread, side by side.
        with on_one_thread():
            if any(method.scored_together for method in self._methods):
                parts = self._many_together(asked, judges)
            else:
                parts = self._few_by_few(asked, judges)
        found = [part.scores for part in parts]
        grids = [one.anomaly_maps for one in found if one.anomaly_maps is not None]
        maps = np.concatenate(grids) if grids else None
        if maps is not None and interiors:
            maps = np.stack([one.within(grid) for one, grid in zip(interiors, maps, strict=True)])
        scores = Scores(np.concatenate([one.image_scores for one in found]), maps)
        return Seen(scores, np.concatenate([part.summaries for part in parts]))

    def _few_by_few(self, asked: _Asked, judges: Judges) -> list[Seen]:
        """Embed and score some images in each thread, and then the next ones."""
        size = self._piece(judges.group)

        def of_piece(piece: tuple[_Piece, Known]) -> Seen:
            images, known = piece
            with self._trunks[0].extractor.own_queue():
                members = self._embed(images, judges.group)
                summary = {SUMMARY: members[0].pop(SUMMARY)}
                scores = judges.scores(members, known)
                # Last, so that nothing waits for the device before.
                found = Seen(scores, on_host(summary)[SUMMARY])
            asked.passed(len(images[0]))
            return found

        pieces = in_pieces(asked.pixels, asked.interiors, size)
        starts = range(0, len(asked.pixels), size)
        known = [between(asked.marks, start, start + size) for start in starts]
        return self._threads.map(of_piece, list(zip(pieces, known, strict=True)))

    def _many_together(self, asked: _Asked, judges: Judges) -> list[Seen]:
        """Embed as many images as memory is planned for, and then score them together."""
        found = []
        for first, count, members in self._embedded(asked, judges.group):
            summaries = members[0].pop(SUMMARY)
            scores = judges.scores_on_host(members, between(asked.marks, first, first + count))
            found.append(Seen(scores, summaries))
        return found

    def _piece(self, group: str) -> int:
        """Return how many images of a group a thread embeds and scores before the next ones."""
        sizes = [trunk.geometry.of(group).input_size for trunk in self._trunks]
        batch = max(t.extractor.at_once(s) for t, s in zip(self._trunks, sizes, strict=True))
        few = min(_PIECE, _PIECE_PIXELS // max(height * width for height, width in sizes))
        # Whole batches: those that are not full are filled up.
        return batch * max(1, few // batch)

    def _embedded(
        self, asked: _Asked, group: str
    ) -> Iterator[tuple[int, int, list[dict[str, np.ndarray]]]]:
        """Yield each member's embeddings of as many images as are scored together.

        Before them stand the number of the first of these images, and how many they are.
        """
        piece = self._piece(group)
        begin, size = 0, piece
        while begin < len(asked.pixels):
            some = asked.pixels[begin : begin + size]
            own = asked.interiors[begin : begin + size]
            arrays = partial(self._arrays, group)
            pieces = self._threads.map(arrays, in_pieces(some, own, piece))
            yield begin, len(some), [joined(parts) for parts in zip(*pieces, strict=True)]
            asked.passed(len(some))
            begin += size
            if begin == size:
                # The first ones have shown how large their embeddings are.
                held = sum(array.nbytes for piece in pieces for a in piece for array in a.values())
                most = min(_TOGETHER, size * _EMBEDDED_BYTES // max(1, held))
                size = max(1, most // piece) * piece

    def _arrays(self, group: str, piece: "_Piece") -> list[dict[str, np.ndarray]]:
        with self._trunks[0].extractor.own_queue():
            return [on_host(tensors) for tensors in self._embed(piece, group)]

    def _embed(self, piece: "_Piece", group: str) -> list[dict[str, Tensor]]:
        """Return each member's embeddings of a piece, where the networks are."""
        pixels, interiors = piece
        geometries = inputs_of(self._scorer.geometries, group)
        inputs = dict(zip(geometries, split_inputs(pixels, geometries), strict=True))
        embeddings: list[dict[str, Tensor]] = [{} for _ in self._methods]
        for trunk in self._trunks:
            own = trunk.extractor.of_piece(inputs[trunk.geometry.of(group)], interiors)
            for name, tensor in own.items():
                number, _, of_member = name.partition("/")
                embeddings[int(number)][of_member] = tensor
        return embeddings

    def _held_bytes(self, group: str) -> int:
        return sum(member.own_bytes(group) for member in self._scorer.members)

    def _load_group(self, group: str) -> Judges:
        return Judges.loaded(self._scorer.members, self._methods, group, self._threads.count)
