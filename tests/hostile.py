"""A score table in which all that strangers choose is hostile."""

from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import numpy as np

from patchlake.pipeline.config import load_settings
from patchlake.pipeline.reading.fragments import Fragments
from patchlake.pipeline.record import runs
from patchlake.pipeline.storage.folder import Folder
from tests.conftest import write_part

# Names that would run, move or hide something, were they not escaped.
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{7*7}} {% raw %} ${7*7}",
    "\u202egnp.live\u2066 \x00\x1b[31m",
    "</style><style>*{display:none}</style><!--",
    "javascript:alert(1)//\u2028\u2029",
    "x" * 20_000,
    "s3://key:hunter2@bucket/a?X-Amz-Signature=hunter2",
    "<b2>&lt;&amp;</b2>\\u003cscript>",
    "@ink",
    "",
)


def hostile_scores(root: Path) -> Path:
    """Write a score table in which all that strangers choose is hostile; return its folder."""
    for number, text in enumerate(HOSTILE):
        failed = number % 3 == 0
        region = {"x": -5, "y": 2**31 - 1, "width": 10**9, "height": 0, "area": 1, "peak": np.nan}
        night = quote(text[:60], safe="") or "__HIVE_DEFAULT_PARTITION__"
        write_part(
            *(root, f"dt={night}/line={number}"),
            image_id=[text, f"a{text}"],
            group=[text or "none", text or "none"],
            source_path=[text or "p", f"../../{text}"],
            part_id=[text, None],
            status=["unreadable" if failed else "ok", text or "odd"],
            error=[text, f"cannot read {text}"],
            image_score=[None if failed else 5.0, None],
            threshold=[None if failed else 2.0, None],
            is_anomalous=[None if failed else True, None],
            p_value=[None if failed else 0.001, None],
            regions=[None if failed else [region | {"centre_x": np.inf, "centre_y": -1.0}], None],
            heatmap_path=[f"_heatmaps/../../{text}.jpg", None],
            width=[None if failed else 100, None],
            height=[None if failed else 50, None],
            model_id=[text, text],
        )
    (root / "_source.json").write_text(f"/nowhere/{HOSTILE[1]}")
    record = runs.RunRecord(
        run="run",
        verb="score",
        images=HOSTILE[8],
        where=HOSTILE[0],
        version="abc",
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        settings=load_settings(),
        models=(f"/nowhere/{HOSTILE[0]}", f"/nowhere/{HOSTILE[1]}"),
    )
    runs.begin(Folder.at(str(root)), record, Fragments.of([]))
    return root
