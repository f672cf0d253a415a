"""A corpus of stored embeddings: each image is folded once, in order, whatever a piece is."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from patchlake.pipeline.cluster.local import LocalRunner
from patchlake.pipeline.groups import corpus as module
from patchlake.pipeline.groups.corpus import StoredCorpus
from patchlake.pipeline.groups.partials import EMBEDDINGS
from patchlake.pipeline.methods.shared.corpus import EmbeddingReader, Notes
from patchlake.pipeline.methods.shared.workers import Peers
from patchlake.pipeline.model_store.per_image import write_per_image
from patchlake.pipeline.reading.fragments import Fragment
from patchlake.pipeline.storage.folder import Folder

# Fragments without an image, with some, and with images that could not be used.
USABLE = (3, 0, 5, 1, 4)
Seen = list[list[tuple[int, list[float]]]]


@pytest.fixture
def corpus(tmp_path: Path) -> StoredCorpus:
    """Image n is the number n."""
    model = Folder(str(tmp_path))
    fragments, first = [], 0
    for number, count in enumerate(USABLE):
        key = f"key{number}"
        values = np.arange(first, first + count, dtype=np.float32)[:, None]
        write_per_image(model, f"{key}{EMBEDDINGS}", _slices(values))
        described = {
            "image_ids": [f"i{n}" for n in range(first, first + count)],
            "source_rows": list(range(count)),
            "statuses": ["ok"] * count + ["decode_error"],
            "sha256s": [f"{n:064x}" for n in range(first, first + count)],
        }
        model.write(f"{key}.json", json.dumps(described).encode())
        fragments.append(Fragment(f"{key}.parquet", (0,), 0, "a", count + 1, "v", key))
        first += count
    return StoredCorpus(model, "", fragments, LocalRunner(), 2**30, 1)


def _slices(values: np.ndarray):
    return ({"x": values[i : i + 2]} for i in range(0, len(values), 2))


def noted(before: Seen | None, embeddings: dict[str, np.ndarray], first: int) -> Seen:
    piece = (first, embeddings["x"].ravel().tolist())
    return [[piece]] if before is None else [[*before[0], piece]]


def joined(left: Seen, right: Seen) -> Seen:
    return left + right


@pytest.mark.parametrize("piece_bytes", [1, 8, 2**20])
@pytest.mark.parametrize("run", [1, 3, 16])
def test_each_image_is_folded_once_under_its_own_number(
    corpus: StoredCorpus, piece_bytes: int, run: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("patchlake.pipeline.groups.partials._PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(module, "_FOLDED_AT_ONCE", run)
    runs = corpus.reduce(noted, joined)
    pieces = [piece for one in runs for piece in one]
    for first, values in pieces:
        assert values == list(range(first, first + len(values)))
        assert len(values) <= max(1, piece_bytes // 4)
    assert [value for _, values in pieces for value in values] == list(range(sum(USABLE)))
    assert len(runs) == -(-sum(count > 0 for count in USABLE) // run)
    assert list(corpus.reduce_apart([noted, noted], joined, [len, list])) == [len(runs), runs]


def test_counts_are_of_usable_images(corpus: StoredCorpus):
    assert corpus.images == sum(USABLE)
    assert corpus.unusable == {"decode_error": len(USABLE)}
    assert corpus.shapes == {"x": (1,)}
    assert [n for n, _ in corpus.some([12, 0, 3, 0])] == [0, 3, 12]
    assert [arrays["x"].item() for _, arrays in corpus.some([12, 0, 3])] == [0, 3, 12]


def test_a_training_goes_on_from_its_own_notes_and_not_from_those_of_other_images(
    corpus: StoredCorpus,
):
    def counted(peers: Peers, reader: EmbeddingReader, notes: Notes) -> None:
        earlier = notes.read("calls")
        calls = 0 if earlier is None else earlier["calls"]
        notes.write("calls", {"calls": np.array(calls + 1)})

    def calls(one: StoredCorpus) -> int:
        found = one.together(counted, 1).read("calls")
        assert found is not None
        return int(found["calls"])

    assert [calls(corpus), calls(corpus)] == [1, 2]
    # Embedded again, as where its file was damaged, when one of its images had become another.
    described = f"{corpus.fragments[-1].key}.json"
    before = corpus.model.read(described)
    other = json.loads(before)
    other["sha256s"][-1] = "f" * 64
    corpus.model.write(described, json.dumps(other).encode())
    assert calls(replace(corpus)) == 1
    corpus.model.write(described, before)
    assert calls(replace(corpus)) == 3
