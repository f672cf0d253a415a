"""URIs of one store in another, as fsspec has them: `zip://folder::s3://bucket/archive.zip`.

The first store has the path of a file in it, so that is where a name is appended.
"""

import re

# Stores that have all paths of the one behind them. A folder is read past them: a cache of
# fsspec's neither notices that a file changed nor says whether a put was the first.
_TRANSPARENT = re.compile(r"(?:(?:simplecache|filecache|blockcache|cached|dir)(?:://)?::)+")

# Stores that are in no other: what looks like a chain is a name in them.
_LAST = re.compile("(?:s3a?|https?)://", re.IGNORECASE)


def direct(uri: str) -> str:
    """Return a URI without the caches that it begins with."""
    return _TRANSPARENT.sub("", uri, count=1) if _TRANSPARENT.match(uri) else uri


def split_chain(uri: str) -> tuple[str, str]:
    """Return a URI's first store and what is behind it, with its `::`; a path is all of it."""
    first, link, behind = uri.partition("::")
    is_chain = "://" in first and not _LAST.match(first)
    return (first, link + behind) if is_chain else (uri, "")


def below(uri: str, name: str) -> str:
    """Return the URI of a file or folder below another."""
    first, behind = split_chain(uri)
    # The root of an archive has no name: zip://.
    root = first if first.endswith("://") else first.rstrip("/") + "/"
    return f"{root}{name}{behind}"


def split_name(uri: str) -> tuple[str, str]:
    """Return the URI of the folder that a file is in, and the file's name."""
    first, behind = split_chain(direct(uri))
    parent, slash, name = first.rpartition("/")
    if behind and parent.endswith(":/"):
        parent += slash
    return (parent or slash or ".") + behind, name
