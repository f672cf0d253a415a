"""Options that several verbs share, and how they become settings and a runner."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import typer

from patchlake.jobs.console import log
from patchlake.pipeline.cluster.kernels import kernels
from patchlake.pipeline.cluster.runner import Runner
from patchlake.pipeline.config import Raw, Settings, StorageSettings, load_settings
from patchlake.pipeline.errors import ConfigError, StorageRefused
from patchlake.pipeline.storage.folder import Folder, split_uri
from patchlake.pipeline.storage.preflight import Preflight

RunnerName = Literal["ray", "local"]

ConfigFile = Annotated[
    str | None, typer.Option("--config", help="YAML file of settings (path or URI).")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="One setting, e.g. method.coreset_fraction=0.1."
    ),
]
RunnerChoice = Annotated[
    RunnerName,
    typer.Option("--runner", help="ray: this machine's cores or a cluster; local: one process."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster to join (auto, HOST:PORT); else that of RAY_ADDRESS, which "
        "`ray job submit` sets; else a local Ray is started.",
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        "--where",
        help="Keep only what matches, by partition keys and columns: "
        "\"dt >= '2026-11-20' and line in ('L1', 'L2')\".",
    ),
]
OneGroup = Annotated[
    str | None,
    typer.Option(
        "--group",
        metavar="NAME",
        help="The group of all images, for a table that has none. Sets columns.one_group.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the plan, and time and memory estimated from a small sample that is really "
        "done, here; write nothing.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights", help="safetensors file (path or URI), or 'untrained'; else the timm hub."
    ),
]


@dataclass(frozen=True)
class Execution:
    """Where the stages run."""

    runner: RunnerName
    address: str | None

    @property
    def threads(self) -> int:
        """Threads of one stage: all cores here; one CPU a task on Ray."""
        return (os.cpu_count() or 1) if self.runner == "local" else 1

    @contextmanager
    def start(self, workers: int | None, preflight: Preflight | None = None) -> Iterator[Runner]:
        """Yield the runner, when its workers may use the storage. Raises `ConfigError`."""
        log.info("BLAS kernels here: %s", ", ".join(kernels()))
        with self._start(workers) as runner:
            if preflight is not None:
                preflight.in_workers(runner)
            for node, found in runner.everywhere(kernels).items():
                log.info("BLAS kernels on %s: %s", node, ", ".join(found))
            yield runner

    @contextmanager
    def _start(self, workers: int | None) -> Iterator[Runner]:
        if self.runner == "local":
            from patchlake.pipeline.cluster.local import LocalRunner

            yield LocalRunner()
            return
        from patchlake.pipeline.cluster.connection import connected
        from patchlake.pipeline.cluster.on_ray import RayRunner

        with connected(self.address):
            yield RayRunner(workers)


def read_settings(config: str | None, assignments: Sequence[str] | None, flags: Raw) -> Settings:
    """Return the effective settings. Raises `ConfigError`."""
    text = ""
    if config is not None:
        # What is set beside the file says how the file is reached.
        storage = with_environment(load_settings("", assignments or (), flags).storage)
        folder, name = split_uri(config, storage)
        try:
            text = folder.read(name).decode()
        except FileNotFoundError:
            raise ConfigError(f"config file '{config}' does not exist") from None
        except UnicodeDecodeError:
            raise ConfigError(f"config file '{config}' is not UTF-8 text") from None
        except StorageRefused as error:
            raise ConfigError(str(error)) from None
    settings = load_settings(text, assignments or (), flags)
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


def parse_since(text: str, now: datetime) -> datetime:
    """Return the time of `--since`: of days, the midnight (UTC) before, so that a rerun says alike.

    Raises:
        ConfigError: if it is neither days nor a time of ISO 8601.
    """
    days = re.fullmatch(r"(\d+)d", text.strip())
    if days:
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight - timedelta(days=int(days[1]))
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(
            f"--since takes days as 2d, or a time as 2026-11-22 or 2026-11-22T18:00, not {text!r}"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def require_dry_run(*, as_json: bool, dry_run: bool) -> None:
    """Raise `ConfigError` where JSON is asked of a job that prints none."""
    if as_json and not dry_run:
        raise ConfigError("--json goes with --dry-run; a finished run is told by `status --json`")


def nested(flags: Mapping[str, object]) -> Raw:
    """Return dotted names that were given (not None) as a tree."""
    tree: dict[str, object] = {}
    for name, value in flags.items():
        if value is not None:
            *above, last = name.split(".")
            branch = tree
            for part in above:
                branch = branch.setdefault(part, {})  # type: ignore[assignment]
            branch[last] = value
    return tree


def weight_files(weights: str | None, storage: StorageSettings) -> list[tuple[Folder, str]]:
    """Return the file of the weights, if they are one."""
    return [] if weights in (None, "untrained") else [split_uri(str(weights), storage)]
