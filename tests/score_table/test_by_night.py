"""Rows by group and night: the same however they come, and images that stand for a night."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.errors import TableError
from patchlake.pipeline.score_table import by_night
from patchlake.pipeline.score_table.by_night import COLUMNS, NightKey
from patchlake.pipeline.tables import SCORES


def table(count: int, seed: int = 0, **columns: object) -> pa.Table:
    """Rows of two groups and two nights; every third has a part_id, every fifth no score."""
    rng, number = np.random.default_rng(seed), np.arange(count)
    score = rng.random(count)
    scored = number % 5 > 0
    told = {
        "group": [f"g{one}" for one in number % 2],
        "night": [f"n{one}" for one in number // 2 % 2],
        "status": ["ok" if ok else "unreadable" for ok in scored],
        "image_score": pa.array(score, pa.float32(), mask=~scored),
        "p_value": pa.array(score, pa.float32(), mask=~scored),
        "is_anomalous": pa.array(score > 0.8, pa.bool_(), mask=~scored),
        "model_id": ["m"] * count,
        "source_path": [f"file{one}" for one in number // 100],
        "source_row": number % 100,
        "part_id": [f"part{one // 9}" if one % 3 == 0 else None for one in number],
        "brightness": pa.array(255 * rng.random(count), pa.float32(), mask=~scored),
        "sharpness": pa.array(rng.random(count), pa.float32(), mask=~scored),
        "embedding": [list(rng.random(4)) if ok else None for ok in scored],
        "thumbnail": [rng.bytes(256) if ok else None for ok in scored],
    } | columns
    names = [*COLUMNS, "night"]
    kinds = {name: SCORES.field(name).type for name in COLUMNS} | {"night": pa.string()}
    return pa.table({name: pa.array(told[name], kinds[name]) for name in names})


def facts(night: by_night.Night) -> tuple[object, ...]:
    kept = night.kept()
    return (
        *(night.images, night.unreadable, night.tested, night.brightness, night.sharpness),
        *(night.scores().tobytes(), sorted(night.verdicts.items(), key=str)),
        None if kept is None else kept.tobytes(),
    )


@given(st.integers(0, 400), st.integers(0, 2**32), st.integers(1, 9), st.sampled_from([8, 1024]))
def test_neither_order_nor_cut_shows(count, seed, cuts, kept):
    rows, rng = table(count), np.random.default_rng(seed)
    mixed = rows.take(pa.array(rng.permutation(count)))
    at = np.sort(rng.integers(0, count + 1, cuts))
    ends = [0, *at.tolist(), count]
    pieces = [mixed.slice(a, b - a) for a, b in pairwise(ends)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_night, "_KEPT", kept)
        one, two = by_night.by_night([rows]), by_night.by_night(pieces)
        assert list(one) == list(two) == sorted(one)
        assert [facts(night) for night in one.values()] == [facts(night) for night in two.values()]


def test_counts_and_means_are_those_of_the_rows():
    rows = table(200)
    found = by_night.by_night([rows])
    for key, night in found.items():
        own = [r for r in rows.to_pylist() if (r["group"], r["night"]) == (key.group, key.night)]
        scored = [row for row in own if row["image_score"] is not None]
        assert (night.images, night.unreadable) == (len(own), len(own) - len(scored))
        assert night.scores().tolist() == sorted(row["image_score"] for row in scored)
        assert night.brightness == pytest.approx(np.mean([r["brightness"] for r in scored]))
        assert night.sharpness == pytest.approx(np.mean([r["sharpness"] for r in scored]), abs=1e-6)
        alarms = sum(row["is_anomalous"] for row in scored)
        assert sum(alarms for alarms, _ in night.verdicts.values()) == alarms


def test_of_a_part_one_image_is_kept_and_all_others():
    count = 20_000
    number = np.arange(count)
    parts = [f"part{one // 5}" if one < count // 2 else None for one in number]
    same = {"group": ["g"] * count, "night": ["n"] * count, "source_path": ["file"] * count}
    rows = table(
        count,
        **same,
        source_row=number,
        part_id=parts,
        image_score=np.ones(count),
        brightness=np.ones(count),
        sharpness=np.ones(count),
        embedding=[[1.0]] * count,
        thumbnail=[None] * count,
    )
    night = by_night.by_night(rows.slice(at, 256) for at in range(0, count, 256))
    kept = night[NightKey("g", "n", "m")].kept()
    assert len(kept) == 1024
    named = kept[kept["has_part"]]
    assert len(np.unique(named["unit"])) == len(named)
    # About as many of each as there are: 2,000 parts, 10,000 images.
    assert 100 < len(named) < 250


def test_lists_of_other_lengths_are_refused():
    lists = [None, [1.0], [1.0], [1.0, 2.0], [1.0, 2.0]]
    rows = table(5, embedding=lists, group=["g"] * 5, night=["n"] * 5)
    for pieces in ([rows], [rows.slice(at, 1) for at in range(5)]):
        with pytest.raises(TableError, match="embeddings of one group have 1 and 2 numbers"):
            by_night.by_night(pieces)


def test_without_looks_there_is_nothing_but_scores():
    rows = table(40).drop_columns(list(by_night.LOOKS))
    for night in by_night.by_night([rows]).values():
        assert night.brightness is None
        kept = night.kept()
        assert kept["embedding"].shape[1] == 0
        assert np.isnan(kept["brightness"]).all()
        assert not kept["has_thumbnail"].any()
        assert np.isfinite(kept["score"]).all()
