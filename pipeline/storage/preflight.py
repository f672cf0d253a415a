"""preflight: whether storage lets a job do what it will do, asked before any work."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from patchlake.pipeline.errors import ConfigError, StorageRefused
from patchlake.pipeline.storage.folder import Folder
from patchlake.pipeline.storage.roles import Use, require

# Put and removed again. Folders that begin with _ are not data.
_PROBE = "_preflight"


class PreflightWorkers(Protocol):
    """What a runner offers for it."""

    def everywhere(self, call: Callable[[], str]) -> Mapping[str, str]:
        """Return what a function returns in one worker of each node, by the node's name."""


@dataclass(frozen=True)
class Preflight:
    """What a job reads and writes, and what its folders are to be."""

    reads: Sequence[Folder]
    writes: Sequence[Folder] = ()
    # Single files, such as weights, in folders that need not be listed.
    files: Sequence[tuple[Folder, str]] = ()
    roles: Sequence[Use] = ()

    def __call__(self) -> str:
        """Return what storage says no to, or nothing."""
        try:
            self._read()
            self._write()
        except StorageRefused as error:
            return str(error)
        return ""

    def here(self) -> None:
        """Raise `ConfigError` if storage refuses this process anything, or a folder is another's.

        Nothing is written before it is known what the folders are.
        """
        try:
            self._read()
            require(self.roles)
            self._write()
        except StorageRefused as error:
            raise ConfigError(str(error)) from None

    def _read(self) -> None:
        for folder in self.reads:
            folder.require_readable()
        for folder, name in self.files:
            folder.require_readable(name)

    def _write(self) -> None:
        for folder in self.writes:
            folder.require_writable(_PROBE)

    def in_workers(self, workers: PreflightWorkers) -> None:
        """Raise `ConfigError` if it refuses a worker: it may lack what this process has."""
        folders = (*self.reads, *self.writes, *(folder for folder, _ in self.files))
        if not any(folder.is_s3 for folder in folders):
            return
        for node, fault in workers.everywhere(self).items():
            if fault:
                raise ConfigError(f"a worker on {node} is refused by storage: {fault}")
