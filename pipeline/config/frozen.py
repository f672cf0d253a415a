"""What sections of settings have in common."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

Scalar = bool | int | float | str | None
# A nested mapping, as YAML gives it, before it is checked.
Raw = Mapping[str, object]


class Frozen(BaseModel):
    """A section: an unknown name is refused, and nothing is changed once it is there."""

    model_config = ConfigDict(extra="forbid", frozen=True)
