"""Files of a local disk: whole or not there, and what killed processes leave behind.

A put is a temporary file, fsync, rename, fsync of the folder. Temporary files carry host and pid.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"


@contextlib.contextmanager
def writing(target: Path) -> Iterator[BinaryIO]:
    """Write a file as a stream; it appears, whole, when the block ends without an error."""
    temporary = _temporary(target)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(target.parent)


def create(target: Path, content: bytes) -> bool:
    """Put a file if there is none of that name; return whether this call put it."""
    temporary = _temporary(target)
    try:
        _write_synced(temporary, content)
        os.link(temporary, target)  # fails, atomically, where the target exists
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def move(source: Path, target: Path) -> None:
    """Give a file another name, replacing what has it. Raises `FileNotFoundError`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    _sync_folder(target.parent)


def sweep(root: Path) -> None:
    """Remove this host's temporary files whose process is gone."""
    if not root.is_dir():
        return
    for temporary in root.rglob(f".*{TEMPORARY}"):
        host, _, pid = temporary.name.removesuffix(TEMPORARY).rpartition(".")
        ours = host.endswith(f".{socket.gethostname()}") and pid.isdecimal()
        if ours and not _is_alive(int(pid)):
            temporary.unlink(missing_ok=True)


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
    return temporary


def _sync_folder(folder: Path) -> None:
    # A rename is durable only when the folder that holds the name is.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
