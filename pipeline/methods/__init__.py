"""One paper a file: `patchcore.py` is the method "patchcore", and exports it as `METHOD`."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, cast

from pydantic import TypeAdapter, ValidationError

# A method that is imported becomes an attribute of this package, in the place of any that has its
# name: what a paper may be called is imported under another one.
from patchlake.pipeline.config import Scalar
from patchlake.pipeline.config import nearest as nearest_name
from patchlake.pipeline.errors import ConfigError
from patchlake.pipeline.shown import refused, value_shown

if TYPE_CHECKING:
    # It imports torch, which a worker that only decodes or writes never needs.
    from patchlake.pipeline.methods.shared.contract import Method


def names() -> list[str]:
    """Return the methods there are: the modules of this package, of which none is imported."""
    # What methods have in common is a package in this one, `shared`.
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg]


def build(name: str, options: Mapping[str, Scalar]) -> "Method":
    """Return the method of that name with its settings.

    Raises:
        ConfigError: on an unknown method or setting, or a value of the wrong type.
    """
    if name not in names():
        raise ConfigError(f"method.name '{name}' is unknown{nearest_name(name, names())}")
    kind = importlib.import_module(f"{__name__}.{name}").METHOD
    known = _settings_of(name)
    for option, value in options.items():
        if option not in known:
            having = [other for other in names() if option in _settings_of(other)]
            hint = nearest_name(option, [*known, "name"])
            if having:
                hint = f" to method '{name}'; it is a setting of {', '.join(having)}"
            raise ConfigError(f"setting 'method.{option}' is unknown{hint}")
        # pydantic takes true for 1, and 1 for true.
        is_switch = known[option] is bool
        if isinstance(value, bool) != is_switch:
            given = str(value).lower() if isinstance(value, bool) else repr(value)
            wanted = "true or false" if is_switch else "a number or a name"
            raise ConfigError(f"setting 'method.{option}' is {given}; give {wanted}")
    try:
        return cast("Method", TypeAdapter(kind).validate_python(dict(options)))
    except ValidationError as error:
        faults = (_refused(name, fault["loc"], fault["msg"], options) for fault in error.errors())
        raise ConfigError("; ".join(faults)) from None


def _refused(
    method: str, place: tuple[int | str, ...], message: str, options: Mapping[str, Scalar]
) -> str:
    # A check of several settings has no place.
    if not place:
        return f"method '{method}': {refused(message)}"
    option = str(place[0])
    return f"setting 'method.{option}' is {value_shown(options[option])}: {refused(message)}"


def _settings_of(name: str) -> dict[str, object]:
    """Return the settings of a method, and the type of each."""
    kind = importlib.import_module(f"{__name__}.{name}").METHOD
    return {field.name: field.type for field in fields(kind)}


def options_of(method: "Method") -> dict[str, Scalar]:
    """Return all settings of a method, defaults included."""
    return asdict(method)  # type: ignore[call-overload, no-any-return]


def rotations_of(options: Mapping[str, Scalar]) -> int:
    """Return how many inputs are made of each training image: it, and copies that are turned.

    Args:
        options: All settings of a method; those that only learn images as they are have no such.
    """
    return int(options.get("rotations") or 1)
