"""What strangers' text looks like in a message: escaped, short, and without what may be secret."""

import re
from collections.abc import Iterable

_LONGEST, _TAIL = 160, 40
# user@ or key:secret@; a secret may have slashes.
_CREDENTIALS = re.compile(r"(?<=://)[^?#]*@")
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


def listed(cells: Iterable[str]) -> str:
    """Return several of them."""
    return f"[{', '.join(map(shown, cells))}]"
