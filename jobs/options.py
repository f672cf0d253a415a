"""Options that several verbs share, and how they become settings and a runner."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from pipeline.cluster.runner import Runner
from pipeline.config import Raw, Settings, load_settings
from pipeline.errors import ConfigError
from pipeline.lake.folder import split_uri

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
        help="Keep only fragments whose partition keys match, e.g. \"dt >= '2026-11-20'\".",
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
    def start(self, workers: int | None) -> Iterator[Runner]:
        """Yield the runner."""
        if self.runner == "local":
            from pipeline.cluster.local import LocalRunner

            yield LocalRunner()
            return
        from pipeline.cluster.on_ray import RayRunner, connected

        with connected(self.address):
            yield RayRunner(workers)


def read_settings(config: str | None, assignments: Sequence[str] | None, flags: Raw) -> Settings:
    """Return the effective settings. Raises `ConfigError`."""
    text = ""
    if config is not None:
        folder, name = split_uri(config)
        try:
            text = folder.read(name).decode()
        except FileNotFoundError:
            raise ConfigError(f"config file '{config}' does not exist") from None
        except UnicodeDecodeError:
            raise ConfigError(f"config file '{config}' is not UTF-8 text") from None
    return _with_full_weights(load_settings(text, assignments or (), flags))


def _with_full_weights(settings: Settings) -> Settings:
    """Return the settings with a full path of the weights: workers run in other folders."""
    weights = settings.backbone.weights
    if weights in (None, "untrained"):
        return settings
    folder, name = split_uri(str(weights))
    backbone = settings.backbone.model_copy(update={"weights": folder.path(name)})
    return settings.model_copy(update={"backbone": backbone})


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
