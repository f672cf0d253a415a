"""The page: one file of HTML that needs no other, under 10 MB, and in which nothing strange runs.

Text of strangers is escaped by Jinja, and the numbers for the charts have no `<`. Should either
fail, the Content-Security-Policy lets only those scripts run whose digests it names, loads nothing
from anywhere, and has no `eval`: Vega's expressions are interpreted (`ast`).
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from patchlake.pipeline.report import listing
from patchlake.pipeline.report.charts import specifications
from patchlake.pipeline.report.contents import GROUPS, Contents
from patchlake.pipeline.report.headline import most_promised, percent, sentences, short
from patchlake.pipeline.report.overview import rate_of
from patchlake.pipeline.report.pictures import NO_ROOM, Picture, Seen

_TEMPLATES = Path(__file__).parent / "templates"
# Of the whole page, in bytes.
MOST_BYTES = 10_000_000
# Of what stands around a picture: its tag, and the boxes over it.
_AROUND = 2_000


def rendered(contents: Contents) -> bytes:
    """Return the page, of `MOST_BYTES` at the most: pictures that have no room are left out.

    The same contents give the same bytes.
    """
    given = _given(contents)
    template = _environment().get_template("page.html.j2")

    def page(worst: Sequence[Seen], misses: Sequence[Seen]) -> bytes:
        return template.render(given | {"worst": worst, "misses": misses}).encode()

    bare = page(_without_pictures(contents.worst), _without_pictures(contents.misses))
    every = _fitting([*contents.worst, *contents.misses], MOST_BYTES - len(bare))
    return page(every[: len(contents.worst)], every[len(contents.worst) :])


def _fitting(images: Sequence[Seen], room: int) -> list[Seen]:
    """Return the same, without the pictures that do not fit into so many bytes."""
    fitted = []
    for seen in images:
        kept = []
        for picture in (seen.photo, seen.heatmap):
            size = _AROUND + len(picture.uri or "")
            fits = size <= room
            room -= size if fits else 0
            kept.append(picture if fits else Picture(None, NO_ROOM))
        fitted.append(Seen(seen.image, *kept))
    return fitted


def _without_pictures(images: Sequence[Seen]) -> list[Seen]:
    absent = Picture(None, NO_ROOM)
    return [replace(seen, photo=absent, heatmap=absent) for seen in images]


def _given(contents: Contents) -> dict[str, Any]:
    """Return what the template is given, but for the pictures."""
    overview, tally = contents.overview, contents.overview.tally
    total = overview.total([overview.night])
    rows, left_out = overview.table()
    statuses, statuses_left_out = contents.statuses()
    moved = [m for g in overview.groups if (m := overview.drift.get((g, overview.night)))]
    seen_rate = rate_of(total.alarms, total.judged)
    night = overview.night
    shown = {row.group for row in rows} | {one.group for one in contents.details}
    scripts = {"library": _library(), "script": _text("page.js")}
    return {
        **scripts,
        **_notes(contents, total.judged),
        "policy": _policy(scripts.values()),
        "style": _text("page.css"),
        "title": f"patchlake: {short(night, 40)}",
        "heading": f"Night of {short(night, 40)}" if night else "All images",
        "sentences": sentences(overview),
        "total": total,
        "seen_rate": seen_rate,
        "promised_rate": most_promised(overview),
        "above": any(row.is_above for row in rows if row.night == night),
        "drifting": sum(bool(one.is_drift) for one in moved),
        "drift_tested": sum(one.is_drift is not None for one in moved),
        "page_night": night,
        "nights": sorted({row.night for row in rows}, reverse=True),
        "groups": sorted(shown),
        "rows": rows,
        "left_out": left_out,
        "details": contents.details,
        "statuses": statuses,
        "statuses_left_out": statuses_left_out,
        "errors": contents.errors,
        "facts": contents.facts,
        "listed": listing.listed(contents.facts),
        "numbers": _json(contents),
        "groups_in_all": len(tally.groups),
    }


def _notes(contents: Contents, judged: int) -> dict[str, str]:
    """Return what is said below headings."""
    worst, misses = contents.worst, contents.misses
    by = "by score over threshold" if judged else "by score"
    several = " Images of earlier nights are here as well: choose the night above."
    groups = len(contents.overview.tally.groups)
    failed = sum(contents.overview.tally.statuses.values())
    return {
        "worst_note": (
            f"The {len(worst)} that stand out most, {by}; a dozen of each group come before more "
            "of any. "
            "Boxes are the regions that the table lists; colour is how anomalous a place is."
            + (several if len(contents.overview.nights) > 1 else "")
            if worst
            else "No image is called anomalous."
        ),
        "misses_note": (
            f"Not called anomalous: the {len(misses)} that come closest to the threshold. If they "
            "show defects, the threshold is too high."
            if misses
            else "There is none: an image is a miss only where there are verdicts."
        ),
        "detail_note": (
            "Blue is the night of this page."
            if groups <= GROUPS
            else f"The {GROUPS} groups that matter most, of {groups:,}: those that drift or have "
            "more alarms than promised come first, and then those with the most alarms."
        ),
        "errors_note": f"{len(contents.errors)} of {failed:,} are listed.",
    }


def _json(contents: Contents) -> Markup:
    """Return the charts and their numbers as JSON that cannot end its script."""
    groups = [one.charts._asdict() for one in contents.details]
    text = json.dumps(
        {"charts": specifications(), "groups": groups}, separators=(",", ":"), allow_nan=False
    )
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - it has neither `<` nor `&`


def _policy(scripts: Iterable[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


@lru_cache(1)
def _library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script."""
    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub: it need not be given
    assert "</script" not in script.lower()
    assert "<!--" not in script
    return script


def _text(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {
        "short": short,
        "percent": percent,
        "whole": lambda number: f"{number:,}",
        "digits": lambda number, digits: f"{number:.{digits}g}",
    }
    return environment
