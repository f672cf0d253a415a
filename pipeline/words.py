"""How words of people are compared: labels, splits, and the names of folders that say such.

`OK`, `O.K.`, `_ok` and the same in full width are one word, wherever it stands: a folder, a cell, a
setting. What may change a meaning is kept: `ok?` and `!ok` are not `ok`, and -1 is not 1.
"""

import re
import unicodedata

# Also what is not seen: spaces of no width, a byte order mark, a soft hyphen.
_BETWEEN = r"\s_.,:;'\"()\[\]{}\-\u2010-\u2015\u200b-\u200d\u2060\ufeff\xad"
# A sign or a point before a digit is part of a number (-1, 1.0), unless a letter is before it.
_DROPPED = re.compile(rf"(?<=[^\W\d_])[{_BETWEEN}]+|[{_BETWEEN}]+(?![{_BETWEEN}\d])")


def plain(word: str) -> str:
    """Return a word as it is compared: without case, Unicode form, spaces and punctuation.

    A word of punctuation alone, such as a hyphen, stays as it is: it is not nothing.
    """
    same = unicodedata.normalize("NFKC", word).casefold()
    # Case folding may undo what NFKC has composed.
    same = unicodedata.normalize("NFKC", same).strip()
    return _DROPPED.sub("", same) or same
