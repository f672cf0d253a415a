"""The charts: Vega-Lite specifications by Altair, one a kind, and the numbers that go into them.

A specification has no numbers: the page puts those of each group into it (`templates/page.js`).
Colours are names with an `@`, for which the page puts its own, for light and for dark; they are of
Okabe and Ito's palette ("Color universal design", 2008), and cividis, which colour-blind eyes see
alike.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import altair as alt
import numpy as np

from patchlake.pipeline.report import counts
from patchlake.pipeline.report.headline import short
from patchlake.pipeline.report.overview import NightOfGroup, Overview

_Chart: TypeAlias = alt.LayerChart | alt.FacetChart

# Of the chart of scores.
_BARS = 40
# Of the charts over nights.
NIGHTS = 60

# One row of a chart: name -> number or text.
Number = dict[str, float | int | str | bool | None]
Numbers = list[Number]


class GroupCharts(NamedTuple):
    """What the charts of one group are drawn of."""

    scores: Numbers
    threshold: Numbers
    nights: Numbers
    spots: Numbers
    # Width over height of its images.
    aspect: float


def group_charts(
    overview: Overview, group: str, spots: np.ndarray, nights: list[NightOfGroup]
) -> GroupCharts:
    """Return the numbers of a group's charts.

    Args:
        overview: Of the table.
        group: Its name.
        spots: Defects in each cell of the image, rows of columns.
        nights: As of `Overview.nights_of`.
    """
    place = overview.tally.groups[group]
    threshold = overview.tally.thresholds.get(place)
    shape = overview.tally.shape_of(place)
    return GroupCharts(
        scores=_bars(overview, group),
        threshold=[] if threshold is None else [{"threshold": _short(threshold)}],
        nights=[_night(row, threshold) for row in nights],
        spots=[
            {"x": int(x), "y": int(y), "n": int(spots[y, x]), "cells": len(spots)}
            for y, x in np.argwhere(spots)
        ],
        aspect=1.0 if shape is None else float(np.clip(shape[0] / shape[1], 0.4, 2.5)),
    )


def _bars(overview: Overview, group: str) -> Numbers:
    """Return the share of images in each bar, of the page's night and of all others."""
    place = overview.tally.groups[group]
    found = {"night": _Scores(), "others": _Scores()}
    for name, of_night in overview.tally.nights.items():
        if (place, of_night) in overview.tally.cells:
            kind = "night" if name == overview.night else "others"
            found[kind].append(overview.tally.scores_of(place, of_night))
    every = np.concatenate([found[kind].values() for kind in found])
    if not len(every):
        return []
    threshold = overview.tally.thresholds.get(place, float(every[0]))
    ends = min(threshold, float(every.min())), max(threshold, float(every.max()))
    edges = np.linspace(ends[0], ends[1] if ends[1] > ends[0] else ends[0] + 1, _BARS + 1)
    # What counts as the value of a bucket may be a rounding beyond the last edge.
    edges[-1] = np.nextafter(edges[-1], np.inf)
    return [row for kind, scores in found.items() for row in scores.bars(kind, edges)]


class _Scores(list[tuple[np.ndarray, np.ndarray]]):
    """Buckets of several nights, and scores in each."""

    def values(self) -> np.ndarray:
        """Return a score of each bucket."""
        return np.concatenate([np.empty(0), *(counts.values(found) for found, _ in self)])

    def bars(self, kind: str, edges: np.ndarray) -> Numbers:
        """Return the bars that are not empty."""
        numbers = np.concatenate([np.empty(0, np.int64), *(number for _, number in self)])
        heights, _ = np.histogram(self.values(), edges, weights=numbers)
        whole = max(1, int(numbers.sum()))
        return [
            {
                "kind": kind,
                "from": _short(begin),
                "to": _short(end),
                "images": int(height),
                "share": _short(height / whole),
            }
            for begin, end, height in zip(edges[:-1], edges[1:], heights, strict=True)
            if height
        ]


def _night(row: NightOfGroup, threshold: float | None) -> Number:
    quantiles = row.quantiles or (None,) * 5
    names = ("q05", "q25", "q50", "q75", "q95")
    shown: Number = {
        "night": short(row.night, 40),
        "images": row.cell.images,
        "anomalous": row.cell.alarms,
        "threshold": _short(threshold),
        "promised": _short(row.promised),
        "shift": _short(row.moved.shift) if row.moved else None,
        "drift": bool(row.moved and row.moved.is_drift),
    }
    shown |= {name: _short(value) for name, value in zip(names, quantiles, strict=True)}
    for name, rate in (("alarms", row.alarms), ("unreadable", row.unreadable)):
        if rate is not None:
            shown |= {name: _short(rate.value)}
            shown |= {f"{name}_low": _short(rate.low), f"{name}_high": _short(rate.high)}
    return shown


def _short(value: float | None) -> float | None:
    """Return a number with as many digits as a chart can show."""
    return None if value is None else float(f"{value:.5g}")


def specifications() -> Mapping[str, dict[str, Any]]:
    """Return each kind of chart, without numbers and without sizes."""
    charts = {
        "scores": _scores(),
        "spots": _spots(),
        "quantiles": _quantiles(),
        "alarms": _rates("alarms", "anomalous", "promised"),
        "unreadable": _rates("unreadable", "unreadable", None),
        "shift": _shift(),
    }
    return {name: _plain(chart) for name, chart in charts.items()}


def _plain(chart: _Chart) -> dict[str, Any]:
    found: dict[str, Any] = chart.properties(width="container").to_dict()
    # Altair's own look; the page has one for light and one for dark.
    found.pop("config", None)
    return found


_ROWS = alt.NamedData(name="rows")
_PERCENT = alt.Axis(format=".1%", tickCount=4)
_LIMIT: dict[str, Any] = {"color": "@limit", "strokeWidth": 2, "strokeDash": [5, 3]}
_WHISKER: dict[str, Any] = {"color": "@whisker", "strokeWidth": 2}
_SEEN: dict[str, Any] = {"color": "@night", "filled": True, "size": 40}
_AT_NIGHT = alt.X(
    *("night:O",),
    title=None,
    axis=alt.Axis(labelOverlap="greedy", labelSeparation=10, labelAngle=0, labelLimit=90),
)


def _scores() -> _Chart:
    base = alt.Chart(_ROWS).encode(
        x=alt.X("from:Q", bin="binned", title="score", scale=alt.Scale(zero=False)),
        x2=alt.X2("to:Q"),
        y=alt.Y("share:Q", title="share of images", axis=_PERCENT, stack=None),
        tooltip=[
            alt.Tooltip("from:Q", title="from score"),
            alt.Tooltip("to:Q", title="to"),
            alt.Tooltip("images:Q"),
            alt.Tooltip("share:Q", format=".2%"),
        ],
    )
    others = base.mark_bar(color="@others", binSpacing=0).transform_filter("datum.kind == 'others'")
    night = base.mark_bar(color="@night", opacity=0.75, binSpacing=1).transform_filter(
        "datum.kind == 'night'"
    )
    rule = (
        alt.Chart(alt.NamedData(name="threshold"))
        .mark_rule(**_LIMIT)
        .encode(x="threshold:Q", tooltip=alt.Tooltip("threshold:Q"))
    )
    return alt.layer(others, night, rule)


def _spots() -> _Chart:
    """Return the map: cells of the image, the first row on top."""
    cells = (
        alt.Chart(_ROWS)
        .transform_calculate(
            left="datum.x / datum.cells",
            right="(datum.x + 1) / datum.cells",
            top="datum.y / datum.cells",
            bottom="(datum.y + 1) / datum.cells",
        )
        .mark_rect()
        .encode(
            x=alt.X("left:Q", title=None, scale=alt.Scale(domain=[0, 1], nice=False), axis=_SIDE),
            x2="right:Q",
            y=alt.Y(
                *("top:Q",),
                title=None,
                scale=alt.Scale(domain=[0, 1], nice=False, reverse=True),
                axis=_SIDE,
            ),
            y2="bottom:Q",
            color=alt.Color(
                "n:Q",
                scale=alt.Scale(scheme="cividis", domainMin=0),
                title="defects",
                # A gradient has ticks at halves, too, of which there are no defects.
                legend=alt.Legend(format="d", labelExpr="datum.value % 1 ? '' : datum.label"),
            ),
            tooltip=[
                alt.Tooltip("n:Q", title="defects"),
                alt.Tooltip("left:Q", title="from the left", format=".0%"),
                alt.Tooltip("top:Q", title="from the top", format=".0%"),
            ],
        )
    )
    return alt.layer(cells)


_SIDE = alt.Axis(format=".0%", values=[0, 0.5, 1], grid=False)


def _quantiles() -> _Chart:
    tooltip = [
        alt.Tooltip("night:O"),
        *(alt.Tooltip(f"{name}:Q", title=title, format=".4g") for name, title in _NAMED),
        alt.Tooltip("images:Q"),
    ]
    base = alt.Chart(_ROWS).encode(x=_AT_NIGHT, tooltip=tooltip)
    scale = alt.Scale(zero=False)
    wide = base.mark_rule(**_WHISKER).encode(
        y=alt.Y("q05:Q", title="score", scale=scale), y2="q95:Q"
    )
    narrow = base.mark_bar(color="@night", size=8, opacity=0.6).encode(
        y=alt.Y("q25:Q", scale=scale), y2="q75:Q"
    )
    middle = base.mark_tick(color="@ink", thickness=2, size=14).encode(
        y=alt.Y("q50:Q", scale=scale)
    )
    limit = base.mark_line(**_LIMIT).encode(y=alt.Y("threshold:Q", scale=scale))
    return alt.layer(wide, narrow, middle, limit)


_NAMED = (("q95", "95 %"), ("q75", "75 %"), ("q50", "median"), ("q25", "25 %"), ("q05", "5 %"))


def _rates(name: str, title: str, limit: str | None) -> _Chart:
    tooltip = [
        alt.Tooltip("night:O"),
        alt.Tooltip(f"{name}:Q", title=title, format=".2%"),
        alt.Tooltip(f"{name}_low:Q", title="from", format=".2%"),
        alt.Tooltip(f"{name}_high:Q", title="to", format=".2%"),
        alt.Tooltip("images:Q"),
    ]
    base = alt.Chart(_ROWS).encode(x=_AT_NIGHT, tooltip=tooltip)
    interval = base.mark_rule(**_WHISKER).encode(
        y=alt.Y(f"{name}_low:Q", title=title, axis=_PERCENT), y2=f"{name}_high:Q"
    )
    layers = [interval, base.mark_point(**_SEEN).encode(y=f"{name}:Q")]
    if limit is not None:
        layers.append(base.mark_line(**_LIMIT).encode(y=f"{limit}:Q"))
    return alt.layer(*layers)


def _shift() -> _Chart:
    tooltip = [alt.Tooltip("night:O"), alt.Tooltip("shift:Q", format=".3g"), alt.Tooltip("drift:N")]
    base = alt.Chart(_ROWS).encode(x=_AT_NIGHT, y=alt.Y("shift:Q", title="shift"), tooltip=tooltip)
    found = base.transform_filter("datum.drift").mark_point(
        color="@limit", filled=True, size=120, shape="triangle-up"
    )
    line = base.mark_line(color="@night", strokeWidth=1.5)
    return alt.layer(line, base.mark_point(**_SEEN), found)
