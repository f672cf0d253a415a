"""Files of a local disk: whole or not there, and what killed processes leave behind.

A put is a temporary file, fsync, rename, fsync of the folder. Temporary files carry host and pid.
"""

import contextlib
import errno
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from patchlake.pipeline.errors import ConfigError, DiskFull, StorageRefused

TEMPORARY = ".tmp"
# A temporary file of another host cannot be asked about its process. None is written for a day.
_ABANDONED_S = 24 * 3600
# Of a disk, a quota, and a limit on the size of files.
_REFUSED = (PermissionError, IsADirectoryError, NotADirectoryError)
_REMEDY = "patchlake puts a file of its own there: make the place free, or name another folder"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What this process is writing, and its scratch folders.
_unfinished: set[Path] = set()


@contextlib.contextmanager
def writing(target: Path) -> Iterator[BinaryIO]:
    """Write a file as a stream; it appears, whole, when the block ends without an error.

    Raises:
        DiskFull: if there is no space for it.
    """
    with _naming_a_full_disk(target):
        temporary = _temporary(target)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            _discard(temporary)
        _sync_folder(target.parent)


def create(target: Path, content: bytes) -> bool:
    """Put a file if there is none of that name; return whether this call put it.

    Raises:
        DiskFull: if there is no space for it.
    """
    with _naming_a_full_disk(target):
        temporary = _temporary(target)
        try:
            _write_synced(temporary, content)
            os.link(temporary, target)  # fails, atomically, where the target exists
        except FileExistsError:
            return False
        finally:
            _discard(temporary)
        return True


def move(source: Path, target: Path) -> None:
    """Give a file another name, replacing what has it. Raises `FileNotFoundError`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    _sync_folder(target.parent)


def require_writable(folder: Path) -> None:
    """Raise `StorageRefused` if no folder is there, or can be made, whose files we may write."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            break
        if os.path.lexists(place):
            what = "a link to nothing" if place.is_symlink() else "a file"
            raise StorageRefused(f"{folder} cannot be a folder: {place} is {what}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise StorageRefused(
            f"{folder} cannot be written: {place} is read-only, or belongs to somebody else"
        )


def sweep(root: Path) -> None:
    """Remove temporary files whose process is gone; another host's after a day."""
    if not root.is_dir():
        return
    # Not `rglob`, which fails where another driver removes a folder meanwhile.
    found = (Path(folder, name) for folder, _, files in os.walk(root) for name in files)
    for temporary in found:
        if not temporary.match(f".*{TEMPORARY}"):
            continue
        host, _, pid = temporary.name.removesuffix(TEMPORARY).rpartition(".")
        if host.endswith(f".{socket.gethostname()}") and pid.isdecimal():
            is_left = not is_alive(int(pid))
        else:
            is_left = _age_s(temporary) > _ABANDONED_S
        if is_left:
            # Somebody else's disk, or one that has become read-only: it stays.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def is_alive(pid: int) -> bool:
    """Return whether this host has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _naming_a_full_disk(target: Path) -> Iterator[None]:
    try:
        yield
    except _REFUSED as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{target} cannot be written: {reason}; {_REMEDY}") from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise ConfigError(f"{target} cannot be written: {error.strerror}; {_REMEDY}") from error
        if error.errno not in _FULL:
            raise
        raise DiskFull(
            f"no space to write {target} ({error.strerror}); make room, and start the same command "
            "again, which goes on from what is done"
        ) from error


@contextlib.contextmanager
def scratch(prefix: str) -> Iterator[str]:
    """Make a temporary folder for as long as the block lasts, or the process."""
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        _unfinished.add(Path(folder))
        try:
            yield folder
        finally:
            _unfinished.discard(Path(folder))


def remove_unfinished() -> None:
    """Remove what this process has begun to write: for one that ends where it is."""
    for path in tuple(_unfinished):
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _discard(temporary: Path) -> None:
    temporary.unlink(missing_ok=True)
    _unfinished.discard(temporary)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _temporary(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    name = f".{target.name}.{socket.gethostname()}.{os.getpid()}{TEMPORARY}"
    temporary = target.with_name(name)
    # Left by a killed process whose id came back (1 in a container), it may be a hard link of a
    # published file, which must not be written through.
    temporary.unlink(missing_ok=True)
    _unfinished.add(temporary)
    return temporary


def _sync_folder(folder: Path) -> None:
    # A rename is durable only when the folder that holds the name is.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
