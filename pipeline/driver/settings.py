"""The settings of a job as it runs: with what the environment says, and full paths."""

import os

from patchlake.pipeline.config import Settings, StorageSettings, load_settings
from patchlake.pipeline.storage.folder import Folder, split_uri


def effective(settings: Settings) -> Settings:
    """Return the settings as they travel to the workers, which have other environments and folders.

    Raises:
        ConfigError: if an endpoint of the environment is no plain URL, or a prefix has credentials.
    """
    for prefix in settings.image.uri_prefixes:
        Folder(prefix)  # refuses credentials, which settings would carry everywhere
    storage = with_environment(settings.storage)
    return _with_full_weights(settings.model_copy(update={"storage": storage}))


def with_environment(storage: StorageSettings) -> StorageSettings:
    """Return the settings with what the AWS SDK's variables say where nothing is set.

    Workers have other environments; what is taken here goes to them.

    Raises:
        ConfigError: if the variable of the endpoint is no plain URL.
    """
    named = {
        "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    }
    found = {
        setting: next((os.environ[name] for name in names if os.environ.get(name)), None)
        for setting, names in named.items()
    }
    given = {name: value for name, value in found.items() if value is not None}
    flags = {"storage": given | storage.model_dump(exclude_none=True)}
    return load_settings(flags=flags).storage


def _with_full_weights(settings: Settings) -> Settings:
    """Return the settings with a full path of the weights: workers run in other folders."""
    for folder, name in weight_files(settings.backbone.weights, settings.storage):
        backbone = settings.backbone.model_copy(update={"weights": folder.path(name)})
        return settings.model_copy(update={"backbone": backbone})
    return settings


def weight_files(weights: str | None, storage: StorageSettings) -> list[tuple[Folder, str]]:
    """Return the file of the weights, if they are one."""
    return [] if weights in (None, "untrained") else [split_uri(str(weights), storage)]
