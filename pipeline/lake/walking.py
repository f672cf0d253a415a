"""The files of a folder on a disk, with those behind symbolic links, and what is left out of them.

A link to a file is a file, a link to a folder a folder. Each real folder is visited once: those that
lie in the tree first, then those that only links lead to, by name. So a link to a folder above it
ends the way, and two links to one folder do not show its files twice. Nothing is opened.
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class Found:
    """A file, a link that is followed to a folder, or (`reason`) something that is left out."""

    # Relative to the root.
    name: str
    size: int = 0
    modified: float = 0.0
    reason: str = ""
    is_link: bool = False
    is_folder: bool = False

    @property
    def is_file(self) -> bool:
        """Whether it is part of a listing."""
        return not self.reason and not self.is_folder


def walk(root: Path, below: str = "") -> Iterator[Found]:
    """Yield what is below a sub-folder, one by one; nothing where that does not exist.

    A million files cost no memory; folders and links are remembered.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [below], list[str]()
    while folders or links:
        # Real folders first: a link must not take a folder's files from its own name.
        is_link = not folders
        name = folders.pop() if folders else links.pop(0)
        yield from _folder(root, name, seen, (folders, links), is_link=is_link)
        links.sort()


def _folder(
    root: Path,
    name: str,
    seen: set[tuple[int, int]],
    pending: tuple[list[str], list[str]],
    *,
    is_link: bool,
) -> Iterator[Found]:
    """Yield the files of one folder, and add its folders to those that are pending."""
    folders, links = pending
    try:
        status = (root / name).stat()
        if not stat.S_ISDIR(status.st_mode):
            return
        place = (status.st_dev, status.st_ino)
        if place in seen:
            if is_link:
                yield Found(name, reason="a link to a folder whose files are listed already")
            return
        seen.add(place)
        if is_link:
            yield Found(name, is_link=True, is_folder=True)
        scan = os.scandir(root / name)
    except FileNotFoundError:
        return
    except OSError as error:
        yield Found(name, reason=f"a folder that cannot be listed ({error.strerror})")
        return
    with scan:
        for item in scan:
            path = f"{name}/{item.name}" if name else item.name
            if not _is_text(path):
                yield Found(path, reason="a name that is no UTF-8")
            elif item.is_dir(follow_symlinks=False):
                folders.append(path)
            elif item.is_symlink() and _leads_to_folder(item):
                links.append(path)
            else:
                found = _file(path, item)
                if found is not None:
                    yield found


def _file(name: str, item: os.DirEntry[str]) -> Found | None:
    is_link = item.is_symlink()
    try:
        status = item.stat()
    except OSError as error:
        if not is_link:
            # Removed since it was listed.
            return None
        loops = error.errno == errno.ELOOP
        reason = "a link that leads to itself" if loops else "a link to nothing"
        return Found(name, reason=reason)
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        return Found(name, reason=f"{_KINDS.get(kind, 'a special file')}, not a file")
    return Found(name, status.st_size, status.st_mtime, is_link=is_link)


def _leads_to_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
