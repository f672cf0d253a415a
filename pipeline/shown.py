"""What strangers' text looks like in a message: escaped, short, and without what may be secret."""

import re
from collections.abc import Iterable, Mapping

_LONGEST, _TAIL = 160, 40
# user@ or key:secret@; a secret may have slashes.
_CREDENTIALS = re.compile(r"(?<=://)[^?#]*@")
# The same of a URL that stands in a text of somebody's: what ends it is a space or a quote.
_CREDENTIALS_WITHIN = re.compile(r"(?<=://)[^\s'\"]*@")
_QUERY_WITHIN = re.compile(r"(?<=://)([^\s'\"?]*)\?[^\s'\"]*")
# Of a presigned URL, the signature.
_QUERY = re.compile(r"[?#].*", re.DOTALL)


def shown(cell: str) -> str:
    """Return a path or URI as it may stand in a row or a log, in quotes."""
    text = cell
    if "://" in cell:
        text = _QUERY.sub("?...", _CREDENTIALS.sub("...@", cell))
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - _TAIL]}...{text[-_TAIL:]}"
    return repr(text)


def without_secrets(text: str) -> str:
    """Return a text, of which no URL has credentials or a query any more."""
    return _QUERY_WITHIN.sub(r"\1?...", _CREDENTIALS_WITHIN.sub("...@", text))


def value_shown(value: object) -> str:
    """Return a setting's value as it may stand in a message, nested as YAML has it."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        pairs = (f"{value_shown(name)}: {value_shown(one)}" for name, one in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(value_shown, value))}]"
    return repr(value)


def refused(message: str) -> str:
    """Return what pydantic says of a value, without its name for an error that a check raised."""
    return message.removeprefix("Value error, ")


def counted(number: int, things: str) -> str:
    """Return "1 image" or "2 images", by the plural."""
    return f"{number} {things.removesuffix('s') if number == 1 else things}"


def listed(cells: Iterable[str]) -> str:
    """Return several of them."""
    return f"[{', '.join(map(shown, cells))}]"


def printable(text: str) -> str:
    """Return a text on one line, with what cannot be printed as Python escapes it."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
