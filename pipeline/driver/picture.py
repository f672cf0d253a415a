"""picture: one heatmap of a score table, by the `heatmap_path` of its row."""

from patchlake.pipeline.config import StorageSettings
from patchlake.pipeline.errors import ConfigError, StorageRefused
from patchlake.pipeline.score_table import heatmaps
from patchlake.pipeline.shown import shown
from patchlake.pipeline.storage.folder import split_uri


def read(path: str, storage: StorageSettings) -> bytes:
    """Return a picture as JPEG, of at most 64 MiB; both ways to keep them are known by the path.

    Args:
        path: SCORES and the `heatmap_path` of a row, with a slash between them.
        storage: How S3 is reached.

    Raises:
        ConfigError: if the path is none, nothing is there, it is not what patchlake writes, or
            storage refuses.
        StorageError: if storage gives no answer.
    """
    try:
        return heatmaps.read(path, storage)
    except StorageRefused as error:
        raise ConfigError(str(error)) from None


def copy(path: str, out: str, storage: StorageSettings) -> str:
    """Write a picture to a file of its own, replacing what is there; return the file's full path.

    Args:
        path: As of `read`.
        out: Path or URI of the file. No name in it comes from what is read.
        storage: How S3 is reached.

    Raises:
        ConfigError: as `read`, or if the file cannot be written.
        StorageError: if storage gives no answer.
    """
    picture = read(path, storage)
    folder, name = split_uri(out, storage)
    if not name:
        raise ConfigError(f"{shown(out)} is a folder; name the file that the picture is written to")
    try:
        folder.write(name, picture)
    except StorageRefused as error:
        raise ConfigError(str(error)) from None
    return folder.path(name)
