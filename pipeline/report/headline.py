"""What happened in the night that the page is of, in words."""

from patchlake.pipeline.report.overview import Overview, Rate, rate_of
from patchlake.pipeline.shown import printable, without_secrets

# Groups that are named.
_NAMED = 3
# Per cent that are told apart from none.
_SMALLEST = 0.01


def sentences(overview: Overview) -> list[str]:
    """Return what happened: how many images, how many anomalous, unreadable, and whether it drifts.

    Text of strangers (names of groups) is in it, and has to be escaped.
    """
    total = overview.total([overview.night])
    groups = [group for group in overview.groups if overview.has(group, overview.night)]
    said = [f"{_counted(total.images, 'image')} of {_counted(len(groups), 'group')} came in."]
    said.append(_alarms(overview))
    if total.unreadable:
        said.append(f"{_counted(total.unreadable, 'image')} could not be read.")
    else:
        said.append("All images could be read.")
    if total.no_model:
        said.append(f"{_counted(total.no_model, 'image')} had no model.")
    drift = _drift(overview, groups)
    return said + ([drift] if drift else [])


def _alarms(overview: Overview) -> str:
    total = overview.total([overview.night])
    rate = rate_of(total.alarms, total.judged)
    if rate is None:
        return (
            f"{_counted(total.scored, 'image')} were scored; their models give no verdicts, so the "
            "images that score highest are shown."
            if total.scored
            else "No image has a score."
        )
    was = "was" if total.alarms == 1 else "were"
    said = f"{_counted(total.alarms, 'image')} {was} called anomalous: {percent(rate.value)}"
    earlier = overview.total([n for n in overview.nights if n != overview.night])
    before = rate_of(earlier.alarms, earlier.judged)
    if before is not None:
        said += f", {_compared(rate, before)} in the other nights ({percent(before.value)})"
    promised = most_promised(overview)
    if promised is None:
        return f"{said}."
    said += f". Of good images, at most {percent(promised)} should be"
    above = [row.group for row in overview.of_night() if row.is_above]
    if not above:
        return f"{said}, and no group is clearly above that."
    return f"{said}; clearly above that, by defects or by a change: {_listed(above)}."


def most_promised(overview: Overview) -> float | None:
    """Return the largest share that is promised of a group in the night; None where none is."""
    promises = [row.promised for row in overview.of_night() if row.promised is not None]
    return max(promises, default=None)


def _compared(rate: Rate, before: Rate) -> str:
    if rate.low > before.high:
        return "more than"
    return "less than" if rate.high < before.low else "about as"


def _drift(overview: Overview, groups: list[str]) -> str | None:
    tested = {
        group: moved.is_drift
        for group in groups
        if (moved := overview.drift.get((group, overview.night))) and moved.is_drift is not None
    }
    if not tested:
        return None
    found = [group for group, is_drift in tested.items() if is_drift]
    if not found:
        return "No drift was found."
    return f"The pictures have drifted in {_listed(found)}."


def _listed(groups: list[str]) -> str:
    named = ", ".join(short(group, 60) for group in groups[:_NAMED])
    more = len(groups) - _NAMED
    return f"{named} and {_counted(more, 'more group')}" if more > 0 else named


def _counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """Return a share as per cent, with two digits where it is small."""
    value = 100 * share
    if 0 < value < _SMALLEST:
        return f"less than {_SMALLEST} %"
    digits = 2 if value < 1 else 1
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") + " %" if value else "0 %"


def short(text: str, longest: int) -> str:
    """Return a stranger's text on one line, without what cannot be seen or is secret, and short."""
    line = printable(without_secrets(text))
    if len(line) <= longest:
        return line
    tail = longest // 3
    return f"{line[: longest - tail - 1]}…{line[-tail:]}"
