"""Which images that a model is judged by are embedded again, when it has learnt false alarms.

Their embeddings went when the model was published. Where they lie in the lake as they did when they
joined, they are read again, so that the threshold follows what the model knows now.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchlake.pipeline.cluster.runner import Runner
from patchlake.pipeline.config import digest
from patchlake.pipeline.driver.execution import Execution
from patchlake.pipeline.driver.heartbeat import Heart
from patchlake.pipeline.driver.lineage import PublishedModel, RowsToEmbed, embed, rows_at
from patchlake.pipeline.groups.membership import ImagePlace, with_roots
from patchlake.pipeline.groups.parts import EmbeddedAgain
from patchlake.pipeline.groups.update import PublishedGroup
from patchlake.pipeline.lake.source import Source
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.reading.listing import list_tables


@dataclass(frozen=True)
class Recalibration:
    """Images of a model that are embedded again."""

    rows: RowsToEmbed
    # Group -> (path, row) -> number in the model.
    numbers: Mapping[str, Mapping[tuple[str, int], int]]

    @classmethod
    def of(
        cls, base: PublishedModel, source: Source, fitted: Mapping[str, PublishedGroup]
    ) -> "Recalibration":
        """Return those images of some groups that have samples and lie in a lake as they did.

        None does of a method whose model does not know what single images gave to it: what the
        Gaussians of all owe to a part takes all of its images.
        """
        numbers: dict[str, dict[tuple[str, int], int]] = {}
        places: dict[str, list[ImagePlace]] = {}
        entries = {}
        if not base.method.leaves_by_embedding:
            entries = {(one.name, one.version): one for one in list_tables(source.images)}
        roots = [step.images for step in base.manifest.lineage]
        for group, one in fitted.items():
            some = _judged(one, roots, source.images.root)
            kept = [n for n, place in some.items() if (place.path, place.version) in entries]
            places[group] = [some[number] for number in kept]
            numbers[group] = {(some[n].path, some[n].row): n for n in kept}
        files = {(p.path, p.version) for some in places.values() for p in some}
        state = digest({"run": base.manifest.run, "again": sorted(fitted)})
        found = [entries[file] for file in sorted(files)]
        empty = RowsToEmbed(source, {}, Fragments.of([]), {})
        rows = rows_at(base, source, places, found, state) if found else empty
        return cls(rows, numbers)

    def embed(
        self, base: PublishedModel, heart: Heart, execution: Execution, runner: Runner
    ) -> Mapping[str, EmbeddedAgain]:
        """Embed them; return those that could be, by group."""
        if not self.rows.fragments:
            return {}
        tally = embed(base, heart, self.rows, execution, runner)
        fragments = self.rows.fragments.without_keys(pa.array(list(tally.failed), pa.string()))
        found, together = {}, base.method.scored_together
        for group in fragments.groups:
            corpus = base.corpus(heart.run, fragments.of_group(group), runner)
            numbers = [
                self.numbers[group][fragment.path, row]
                for fragment, images in corpus.embedded_images()
                for row in images.source_rows
            ]
            found[group] = EmbeddedAgain(
                corpus, np.array(numbers, np.int64), 1 if together else corpus.threads
            )
        return found


def _judged(fitted: PublishedGroup, roots: Sequence[str], lake: str) -> dict[int, ImagePlace]:
    """Return the images of a group that it is judged by, and that joined from a lake."""
    present = with_roots(fitted.members.present, roots)
    has_sample = pc.is_valid(present.column("part_score"))
    is_here = pc.and_(has_sample, pc.equal(present.column("root"), lake))
    numbers = np.flatnonzero(is_here.to_numpy())
    places = fitted.members.places(numbers)
    return dict(zip(numbers.tolist(), places, strict=True))
