"""Settings from a preset, a YAML file, `--set a.b=c` and flags.

Each source beats the one before it. An unknown name is an error that says the nearest known one.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence

import yaml
from pydantic import BaseModel, ValidationError

from patchlake.pipeline.config.frozen import Raw
from patchlake.pipeline.config.settings import Settings, known_names
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.presets import PRESETS
from patchlake.pipeline.shown import refused, shown, value_shown, without_secrets

# PyYAML leaves a date such as 2026-13-01 to datetime, which raises ValueError, and other odd values
# to whatever Python says of them.
_NOT_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError)
# Settings lie three levels deep, and are some hundred lines.
_DEEPEST, _MOST_CHARACTERS = 20, 1_000_000
_EXTRA = "extra_forbidden"


def load_settings(
    text: str = "", assignments: Sequence[str] = (), flags: Raw | None = None
) -> Settings:
    """Return the settings of a YAML text, `a.b=c` assignments and flags, the last one winning.

    Raises:
        ConfigError: on an unknown name, a value of the wrong type, or text that is not YAML.
    """
    layers: list[Raw] = [_parse_yaml(text)]
    layers += [_parse_assignment(assignment) for assignment in assignments]
    layers.append(flags or {})
    preset = next((layer["preset"] for layer in reversed(layers) if "preset" in layer), None)
    if preset is not None:
        if str(preset) not in PRESETS:
            raise ConfigError(
                f"preset {shown(str(preset))} is unknown{nearest(str(preset), PRESETS)}"
            )
        layers.insert(0, PRESETS[str(preset)])
    merged: Raw = {}
    for layer in layers:
        merged = _merge(merged, layer)
    return check_settings(merged)


def check_settings(raw: Raw) -> Settings:
    """Return `raw` as settings, or raise `ConfigError` with every fault in one message."""
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(raw, fault) for fault in error.errors())) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for an unknown name, or the known ones where none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"


class _Loader(yaml.SafeLoader):
    """YAML without aliases, of which a few lines can mean gigabytes, and without repeated names."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {event.start_mark.line + 1} has an alias; repeat the value")
        return super().compose_node(parent, index)

    def construct_mapping(  # as SafeLoader has it
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002
    ) -> dict[object, object]:
        names: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in names:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} names '{name}' a second time")
            names.add(name)
        return super().construct_mapping(node, deep=deep)


def _loaded(text: str, what: str) -> object:
    """Return what a YAML text says. Raises `ConfigError`, in one line."""
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"{what} has {len(text)} characters, more than {_MOST_CHARACTERS}")
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except RecursionError:
        raise ConfigError(f"{what} nests too deeply; settings lie three levels deep") from None
    except _NOT_YAML as error:
        raise ConfigError(f"{what} is not YAML: {_said(error)}") from None


def _said(error: Exception) -> str:
    """Return what is wrong and where, without the text itself: it may hold a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return without_secrets(" ".join(str(error).split()))[:300]


def _parse_yaml(text: str) -> Raw:
    parsed = _loaded(text, "the config file")
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        raise ConfigError(f"the config file holds a {type(parsed).__name__}, not settings by name")
    return parsed


def _parse_assignment(assignment: str) -> Raw:
    name, equals, value = assignment.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set takes name=value, got {shown(assignment)}")
    if name.count(".") > _DEEPEST:
        raise ConfigError(f"--set {name[:80]}...: no setting lies {name.count('.')} levels deep")
    nested = _loaded(value, f"--set {name}: the value")
    for part in reversed(name.split(".")):
        nested = {part: nested}
    assert isinstance(nested, dict)
    return nested


def _merge(below: Raw, above: Raw) -> Raw:
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        both = isinstance(under, Mapping) and isinstance(value, Mapping)
        merged[name] = _merge(under, value) if both else value  # type: ignore[arg-type]
    return merged


def _describe(raw: Raw, fault: Mapping[str, object]) -> str:
    location = fault["loc"]
    assert isinstance(location, tuple)
    # Pydantic adds the branch of a union to the location; a setting's name stops before it.
    parts: list[object] = []
    known: type[BaseModel] | None = Settings
    for part in location:
        if known is None:
            break
        parts.append(part)
        inner = known.model_fields[part].annotation if part in known.model_fields else None
        known = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else None
    name = ".".join(map(str, parts))
    if fault["type"] == _EXTRA:
        names = {*known_names(), *Settings.model_fields}
        return f"setting '{name}' is unknown{nearest(name, names)}"
    value: object = raw
    for part in parts:
        value = value.get(part) if isinstance(value, Mapping) else value
    if name == "storage.endpoint":  # somebody may have put a password into it
        return f"setting '{name}': {refused(str(fault['msg']))}"
    wanted = refused(str(fault["msg"]))
    if fault["type"] == "tuple_type":
        wanted = "write a list, [A, B]"
    elif fault["type"] == "missing":
        wanted = f"it needs '{location[-1]}', too"
    return f"setting '{name}' is {value_shown(value)}: {wanted}"
