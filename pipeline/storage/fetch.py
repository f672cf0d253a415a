"""An encoded image behind a `uri` cell: read only below the allowed prefixes.

A cell is a stranger's text. It chooses a file below a prefix and nothing else: no other kind of
store, no chain of them (`zip://a::file:///b`), no user. What it names is

- a row's status where it names no file that may be read: nothing (`missing`), or something else, a
  folder or a FIFO (`unreadable`);
- an `OSError` where storage does not say: one that is not there, refuses, or is too slow. The
  fragment is tried again, and then fails, for the next start. No such answer becomes a row.
"""

import os
import re
from collections.abc import Sequence

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ImageError
from patchlake.pipeline.shown import listed, shown
from patchlake.pipeline.storage.confined import read_confined
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.s3 import Bucket
from patchlake.pipeline.storage.web import Web

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)(?:::|://)|(file):/", re.IGNORECASE)
_S3 = re.compile(r"s3a?://(?P<bucket>[^/]*)/(?P<key>.*)", re.DOTALL | re.IGNORECASE)
_FILE = re.compile(r"file:(?://(?:localhost)?)?(?P<path>/.*)", re.DOTALL | re.IGNORECASE)
# S3's limit on keys.
_KEY_BYTES = 1024


def fetch(
    uri: object, prefixes: Sequence[str], storage: StorageSettings, *, max_bytes: int
) -> bytes:
    """Return a file's bytes, or its first `max_bytes + 1`.

    Raises:
        ImageError: with status `missing` or `unreadable`, where the cell names no file that may
            be read.
        OSError: if storage fails otherwise than by saying that there is no such file.
    """
    if isinstance(uri, bytes):
        # As a column has it that is not known to be UTF-8.
        uri = uri.decode(errors="surrogateescape")
    if not isinstance(uri, str):
        raise ImageError("missing", "the row has neither image bytes nor a URI")
    try:
        return _read(uri, prefixes, storage, max_bytes + 1)
    except FileNotFoundError as error:
        raise ImageError("missing", str(error)) from None
    except UnicodeEncodeError:
        raise ImageError(
            "missing", f"{shown(uri)} cannot be the name of a file in any store"
        ) from None


def _read(uri: str, prefixes: Sequence[str], storage: StorageSettings, at_most: int) -> bytes:
    kind = _kind(uri)
    if kind != "":
        uri.encode()
    same = [prefix for prefix in prefixes if _kind(prefix) == kind]
    if kind == "":
        path = _local_path(uri)
        named = [root for prefix in same if (root := _local_path(prefix))]
        roots = [root for root in named if path is not None and _is_meant(path, root)]
        if path is None or not roots:
            raise _outside(uri, prefixes)
        return read_confined(path, roots, at_most=at_most)
    if kind == "http":
        return Web(same, storage).read(uri, at_most)
    if kind == "s3":
        return _read_s3(uri, same, storage, at_most)
    return _read_other(uri, same, storage, at_most)


def _kind(uri: str) -> str:
    """Return what a path or URI is read by: "" for this machine's disks."""
    match = _SCHEME.match(uri)
    if match is None:
        return ""
    scheme = (match[1] or match[2]).lower()
    return {"file": "", "https": "http", "s3a": "s3"}.get(scheme, scheme)


def _local_path(uri: str) -> str | None:
    """Return the path of `file:` URIs, which is taken as it is; None of another machine's."""
    if not uri.lower().startswith("file:/"):
        return uri
    match = _FILE.fullmatch(uri)
    return match["path"] if match else None


def _is_meant(path: str, root: str) -> bool:
    """Return whether a path may be below a folder before links are followed.

    A relative one depends on where a worker runs, and is only meant below a relative folder.
    """
    is_absolute = (path.startswith("/"), root.startswith("/"))
    return all(is_absolute) or (
        not any(is_absolute) and os.path.normpath(path).startswith(os.path.normpath(root) + "/")
    )


def _read_s3(uri: str, prefixes: Sequence[str], storage: StorageSettings, at_most: int) -> bytes:
    match = _S3.fullmatch(uri)
    allowed = [_S3.fullmatch(prefix.rstrip("/") + "/") for prefix in prefixes]
    is_allowed = match is not None and any(
        prefix is not None
        and prefix["bucket"] == match["bucket"]
        and match["key"].startswith(prefix["key"])
        for prefix in allowed
    )
    if match is None or not is_allowed or ".." in match["key"].split("/"):
        raise _outside(uri, prefixes)
    key = match["key"]
    if not key or key.endswith("/") or len(key.encode()) > _KEY_BYTES or "\0" in key:
        raise ImageError("missing", f"there is no object with the key {shown(uri)}")
    try:
        return Bucket(match["bucket"], storage).get(key, at_most=at_most).content
    except FileNotFoundError:
        raise ImageError("missing", f"{shown(uri)} does not exist") from None


def _read_other(uri: str, prefixes: Sequence[str], storage: StorageSettings, at_most: int) -> bytes:
    """Read below a prefix of a store that fsspec opens: the cell is but a name in it."""
    for prefix in prefixes:
        root = prefix.rstrip("/") + "/"
        name = uri.removeprefix(root)
        is_plain = not {"", ".", ".."} & set(name.split("/")) and not re.search("::|://|\0", name)
        if name == uri or not is_plain:
            continue
        try:
            return Folder(root, storage).read(name, at_most=at_most)
        except FileNotFoundError:
            raise ImageError("missing", f"{shown(uri)} does not exist") from None
        except (IsADirectoryError, NotADirectoryError):
            raise ImageError("unreadable", f"{shown(uri)} is no file") from None
    raise _outside(uri, prefixes)


def _outside(uri: str, prefixes: Sequence[str]) -> ImageError:
    said = f"is below none of image.uri_prefixes {listed(prefixes)}"
    return ImageError("missing", f"{shown(uri)} {said}")
