"""The errors that an operator acts on, and the exit code of each.

    PatchlakeError            1
    ├── ConfigError           2   a setting, a flag or an argument
    │   ├── TableError        2   a table that is not what its schema says
    │   │   └── FileDamaged   2   one file of it cannot be read: where others can, it fails alone
    │   └── ModelError        2   a model that is absent, changed, or of other weights
    ├── FragmentsFailed       3   the job is done, but not all of it
    ├── DiskFull              1   no fragment could be written: the job ends, and can go on later
    └── WorkersLost           1   processes died more often than the job tries again

    Stopped                   4   asked to stop; the same command goes on from there

`ImageError` is none of these: one image that cannot be scored is a row of the result. Nor is
`InputChanged`, which is one fragment's, nor `StorageError`: stages try again, and then give up the
fragment; where the job itself cannot go on without the storage it ends with exit code 4, and before
it has begun (`storage.preflight`) with 2.
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


class FileDamaged(TableError):  # noqa: N818 - what happened, in two words
    """One file of a table cannot be read. Its fragments fail; others go on."""


class ModelError(ConfigError):
    """A model is absent, damaged, or does not belong to the weights at hand."""


class FragmentsFailed(PatchlakeError):  # noqa: N818 - an outcome, not a fault of the program
    """The job went to its end, but fragments failed or too many rows are errors.

    `result` is what the job would have returned, where it came so far: what is done is done.
    """

    exit_code = 3

    def __init__(self, message: str, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class Stopped(KeyboardInterrupt):
    """The job was asked to stop; what is committed stays.

    No `Exception`: a library that goes on after whatever was raised must not go on after this. And
    the one kind that all of them let pass, Ray's C++ too.
    """

    exit_code = 4


class DiskFull(PatchlakeError):  # noqa: N818 - what it is, in two words
    """A file could not be written for want of space; what is committed stays."""


class WorkersLost(PatchlakeError):  # noqa: N818 - what happened, in two words
    """Processes of the job died too often; what is committed stays."""


class InputChanged(Exception):  # noqa: N818 - what happened, in two words
    """A file is not what it was when the work was planned. Its fragments fail; others go on."""


class ImageError(Exception):
    """One image cannot be scored: `status` and the message go into its row."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status: Status = status


class StorageError(OSError):
    """Storage gave no answer, or not a whole one, however often it was asked."""

    exit_code = Stopped.exit_code


class StorageRefused(StorageError):  # noqa: N818 - as `Stopped`
    """Storage says no, or is not there: credentials, permissions, bucket, endpoint."""
