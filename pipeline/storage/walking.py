"""The files of a folder on a disk, with those behind symbolic links, and what is left out.

A link to a file is a file, a link to a folder a folder. Each real folder is visited once: those
that lie in the tree first, then those that only links lead to, by name. So a link to a folder above
it ends the way, and two links to one folder do not show its files twice. Nothing is opened.
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class FoundFile:
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


def walk(root: Path, below: str = "") -> Iterator[FoundFile]:
    """Yield what is below a sub-folder, one by one; nothing where that does not exist.

    A million files cost no memory; folders and links are remembered.
    """
    walk_ = _Walk(root, [below])
    while walk_.folders or walk_.links:
        # Real folders first: a link must not take a folder's files from its own name.
        if walk_.folders:
            yield from walk_.folder(walk_.folders.pop(), is_link=False)
        else:
            walk_.links.sort()
            yield from walk_.folder(walk_.links.pop(0), is_link=True)


@dataclass
class _Walk:
    root: Path
    # To be visited.
    folders: list[str]
    links: list[str] = field(default_factory=list)
    # Device and number of those that were.
    seen: set[tuple[int, int]] = field(default_factory=set)

    def folder(self, name: str, *, is_link: bool) -> Iterator[FoundFile]:
        """Yield the files of one folder, and note its folders and links."""
        try:
            status = (self.root / name).stat()
            place = (status.st_dev, status.st_ino)
            if place in self.seen:
                yield FoundFile(name, reason="a link to a folder whose files are listed already")
                return
            scan = os.scandir(self.root / name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            yield FoundFile(name, reason=f"a folder that cannot be listed ({error.strerror})")
            return
        self.seen.add(place)
        if is_link:
            yield FoundFile(name, is_link=True, is_folder=True)
        with scan:
            for item in scan:
                yield from self._item(f"{name}/{item.name}" if name else item.name, item)

    def _item(self, path: str, item: os.DirEntry[str]) -> Iterator[FoundFile]:
        if not _is_text(path):
            yield FoundFile(path, reason="a name that is no UTF-8")
        elif item.is_dir(follow_symlinks=False):
            self.folders.append(path)
        elif item.is_symlink() and _leads_to_folder(item):
            self.links.append(path)
        else:
            yield from _file(path, item)


def _file(name: str, item: os.DirEntry[str]) -> Iterator[FoundFile]:
    is_link = item.is_symlink()
    try:
        status = item.stat()
    except OSError as error:
        # A file that is none is gone since it was listed.
        if is_link:
            loops = error.errno == errno.ELOOP
            reason = "a link that leads to itself" if loops else "a link to nothing"
            yield FoundFile(name, reason=reason)
        return
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        yield FoundFile(name, reason=f"{_KINDS.get(kind, 'a special file')}, not a file")
        return
    yield FoundFile(name, status.st_size, status.st_mtime, is_link=is_link)


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
