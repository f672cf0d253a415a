"""A cache on the node's own disk, for what an object store holds and never changes.

Its folder is PATCHLAKE_CACHE; without that nothing is kept. All workers of a node share it: a file
appears whole or not at all, and whoever reads it checks what it gets, and calls `forget`. When the
disk is nearly full, what was not used for longest goes first.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from patchlake.pipeline.errors import PatchlakeError
from patchlake.pipeline.storage.folder import Folder

VARIABLE = "PATCHLAKE_CACHE"

# Of the disk: Ray's logs and spilled objects need it as well.
_KEPT_FREE = 0.2


def read(name: str, load: Callable[[], bytes]) -> bytes:
    """Return the content that is cached under a name; where there is none, load and keep it.

    Args:
        name: Must change with the content.
        load: Reads the content from where it belongs.
    """
    directory = os.environ.get(VARIABLE)
    if not directory:
        return load()
    path = Path(directory) / name
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        with contextlib.suppress(OSError):
            # The time of its last use; a disk that is read-only has none.
            os.utime(path)
        return content
    content = load()
    # Nobody needs a cache: where it is full, read-only or a file, the work goes on without.
    with contextlib.suppress(OSError, PatchlakeError):
        _make_room(Path(directory), len(content))
        Folder(directory).write(name, content)
    return content


def forget(name: str) -> None:
    """Remove what is cached under a name: it is not what it was."""
    directory = os.environ.get(VARIABLE)
    if directory:
        with contextlib.suppress(OSError):
            (Path(directory) / name).unlink(missing_ok=True)


def _make_room(directory: Path, size: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    files = [path for path in directory.iterdir() if path.is_file()]
    for path in sorted(files, key=_last_use):
        disk = shutil.disk_usage(directory)
        if disk.free - size >= _KEPT_FREE * disk.total:
            return
        path.unlink(missing_ok=True)


def _last_use(path: Path) -> float:
    # Another worker may have removed it.
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0
