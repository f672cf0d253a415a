"""A file of this machine's disks, read only where it really lies below an allowed folder.

Links are resolved before that is judged, and once more of the file that was opened: whoever may
write there may change a link in between.
"""

import errno
import os
import stat
from collections.abc import Sequence

from patchlake.pipeline.errors import ImageError, StorageError, StorageRefused
from patchlake.pipeline.shown import listed, shown

# What says that there is no file of that name: nothing there, a path below a file, a name that is
# too long, links in a circle.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
# What says that it is something else.
_NO_FILE = (errno.EISDIR, errno.ENXIO, errno.ENODEV)
_DENIED = (errno.EACCES, errno.EPERM)
# A FIFO that nobody writes to does not keep us; a link that was just put there is not followed.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_confined(path: str, roots: Sequence[str], *, at_most: int) -> bytes:
    """Return the first bytes of a regular file below one of the folders.

    Raises:
        ImageError: `missing` if there is no such file there, `unreadable` if it is no file.
        StorageError: if the disk fails, or (`StorageRefused`) does not let us read it.
    """
    if "\0" in path:
        raise ImageError("missing", f"{shown(path)} has a NUL, which no file's name has")
    try:
        return _read(path, [os.path.realpath(root) for root in roots], at_most)
    except OSError as error:
        raise _translated(error, path) from None


def _read(path: str, roots: Sequence[str], at_most: int) -> bytes:
    place = os.path.realpath(path)
    _require_below(place, roots, path)
    if path.endswith("/") and not os.path.isdir(place):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    # Asked before it is opened, too: to open a device may do something.
    _require_file(os.stat(place, follow_symlinks=False), path)
    handle = os.open(place, _FLAGS)
    with open(handle, "rb") as file:
        _require_file(os.fstat(handle), path)
        if os.path.exists("/proc/self/fd"):
            _require_below(os.readlink(f"/proc/self/fd/{handle}"), roots, path)
        return file.read(at_most)


def _require_below(place: str, roots: Sequence[str], path: str) -> None:
    if not any(place.startswith(root.rstrip("/") + "/") for root in roots):
        raise ImageError(
            "missing",
            f"{shown(path)} lies below none of image.uri_prefixes {listed(roots)}, links followed",
        )


def _require_file(found: os.stat_result, path: str) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise ImageError("missing", f"{shown(path)} is a link to itself, or to what is not there")
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise ImageError("unreadable", f"{shown(path)} is {kind}, and no file")


def _translated(error: OSError, path: str) -> ImageError | StorageError:
    said = f"{shown(path)}: {error.strerror}"
    if error.errno in _ABSENT:
        return ImageError("missing", f"{said}: there is no such file")
    if error.errno in _NO_FILE:
        return ImageError("unreadable", f"{said}: it is no file")
    if error.errno in _DENIED:
        return StorageRefused(
            f"{said}; let the job's user read it, or take it out of the table: it is not 'missing'"
        )
    return StorageError(said)
