"""The errors that an operator acts on, and the exit code of each.

PatchlakeError            1
├── ConfigError           2   a setting, a flag or an argument
│   ├── TableError        2   a table that is not what its schema says
│   └── ModelError        2   a model that is absent, changed, or of other weights
├── FragmentsFailed       3   the job is done, but not all of it
└── Stopped               4   asked to stop; the same command goes on from there

`ImageError` is none of these: one image that cannot be scored is a row of the result.
"""

from typing import Literal

Status = Literal["ok", "unreadable", "too_large", "unsupported", "missing", "no_model"]


class PatchlakeError(Exception):
    """A fault that is reported in one message; `exit_code` is the process's."""

    exit_code = 1


class ConfigError(PatchlakeError):
    """Wrong usage or configuration."""

    exit_code = 2


class TableError(ConfigError):
    """A table lacks a column, or a column has another type than the schema says."""


class ModelError(ConfigError):
    """A model is absent, damaged, or does not belong to the weights at hand."""


class FragmentsFailed(PatchlakeError):  # noqa: N818 - an outcome, not a fault of the program
    """The job went to its end, but fragments failed or too many rows are errors."""

    exit_code = 3


class Stopped(PatchlakeError):  # noqa: N818 - an outcome, not a fault of the program
    """The job was asked to stop; what is committed stays."""

    exit_code = 4


class ImageError(Exception):
    """One image cannot be scored: `status` and the message go into its row."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status: Status = status
