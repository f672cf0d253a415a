"""A folder of a web server: its files can be read by name. It has no listing, and takes nothing."""

import io
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.stores import Entry
from patchlake.pipeline.storage.web import Web


@dataclass(frozen=True)
class WebStore:
    """The files below a URL, which has no slash at its end."""

    root: str
    storage: StorageSettings

    pins_versions = False

    def open(self, name: str, version: str) -> BinaryIO:  # noqa: ARG002 - it has only the newest
        """Open a file for reading; all of it is in memory."""
        return io.BytesIO(self.read(name, None))

    def read(self, name: str, at_most: int | None) -> bytes:
        """Return a file's bytes, or its first `at_most`."""
        return self._web().read(f"{self.root}/{name}", at_most)

    def entry(self, name: str) -> Entry:
        """Return one file's entry, as it is now."""
        return self._web().entry(f"{self.root}/{name}", name)

    def exists(self, name: str) -> bool:
        """Return whether there is such a file."""
        try:
            self.entry(name)
        except FileNotFoundError:
            return False
        return True

    def entries(self, below: str) -> Iterable[Entry]:  # noqa: ARG002 - none can be listed
        """Refuse."""
        self._refuse()

    def names(self, below: str) -> Iterable[str]:  # noqa: ARG002 - none can be listed
        """Refuse."""
        self._refuse()

    def folders(self, below: str) -> Iterable[str]:  # noqa: ARG002 - none can be listed
        """Refuse."""
        self._refuse()

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:  # noqa: ARG002 - read only
        """Refuse."""
        self._refuse()

    def create(self, name: str, content: bytes) -> bool:  # noqa: ARG002 - read only
        """Refuse."""
        self._refuse()

    def move(self, name: str, to: str) -> None:  # noqa: ARG002 - read only
        """Refuse."""
        self._refuse()

    def remove(self, name: str, *, recursive: bool) -> None:  # noqa: ARG002 - read only
        """Refuse."""
        self._refuse()

    def _web(self) -> Web:
        return Web([self.root], self.storage)

    def _refuse(self) -> NoReturn:
        raise ConfigError(
            f"{shown(self.root)} is on a web server, whose files cannot be listed or written, only "
            "read one by one: name them in a manifest or a column 'uri' with image.uri_prefixes, "
            "or copy them to a disk or an object store"
        )
