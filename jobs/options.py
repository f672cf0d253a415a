"""Options that several verbs share, and how they become settings."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from patchlake.pipeline.errors import ConfigError, StorageRefused

if TYPE_CHECKING:
    from patchlake.pipeline.config import Raw, Settings
    from patchlake.pipeline.driver.execution import Execution

RunnerName = Literal["auto", "ray", "local"]

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
    typer.Option(
        "--runner",
        help="ray: a cluster, or one on this machine; local: this process; auto: ray where a "
        "cluster is named or there are more than 5,000 images, else local. All write the same "
        "bytes.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster to join (auto, HOST:PORT); else that of RAY_ADDRESS, which "
        "`ray job submit` sets; else --runner ray starts one on this machine.",
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
OfGroup = Annotated[
    str | None, typer.Option("--group", metavar="NAME", help="Only images of this group.")
]
OfNight = Annotated[
    str | None,
    typer.Option(
        "--night",
        metavar="NIGHT",
        help="Only images of this night: a value of the hive key dt, date, day or night, or "
        "without one a day on which they were scored, as 2026-11-21.",
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
        "--weights",
        help="safetensors file (path or URI), or 'untrained'; else what is installed or on the "
        "timm hub.",
    ),
]


def execution(runner: RunnerName, address: str | None) -> "Execution":
    """Return where a job runs; its progress is shown on stderr."""
    from patchlake.jobs.console import Terminal, rays_own_aside
    from patchlake.pipeline.driver.execution import Execution

    return Execution(runner, address, Terminal(), rays_own_aside)


def read_settings(
    config: str | None, assignments: Sequence[str] | None, flags: "Raw"
) -> "Settings":
    """Return the effective settings. Raises `ConfigError`."""
    # Imported here: they bring the stores, for which a usage error need not wait.
    from patchlake.pipeline.config import load_settings
    from patchlake.pipeline.driver.settings import effective, with_environment
    from patchlake.pipeline.storage.folder import split_uri

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
    return effective(settings)


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
        raise ConfigError("--json goes with --dry-run; `status --json` reports a finished run")


def nested(flags: Mapping[str, object]) -> "Raw":
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
