"""An encoded image behind a `uri` cell: read only below the allowed prefixes."""

import os
from collections.abc import Sequence

from pipeline.config import StorageSettings
from pipeline.errors import ImageError
from pipeline.lake.folder import Folder


def fetch(
    uri: object, prefixes: Sequence[str], storage: StorageSettings, *, max_bytes: int
) -> bytes:
    """Return a file's bytes, or its first `max_bytes + 1`.

    Raises:
        ImageError: with status `missing`, where the cell names nothing that may be read.
        OSError: if storage fails otherwise than by saying that there is no such file.
    """
    if not isinstance(uri, str):
        raise ImageError("missing", "the row has neither image bytes nor a URI")
    folder, _, name = uri.rpartition("/")
    resolved = os.path.normpath(uri) if "://" not in uri else uri
    allowed = any(resolved.startswith(prefix.rstrip("/") + "/") for prefix in prefixes)
    if not allowed or ".." in uri.split("/"):
        raise ImageError("missing", f"'{uri}' is below none of image.uri_prefixes {list(prefixes)}")
    try:
        return Folder(folder, storage).read(name, at_most=max_bytes + 1)
    except FileNotFoundError:
        raise ImageError("missing", f"'{uri}' does not exist") from None
