"""Settings of tables: what our columns are called in other people's, and what they say."""

from typing import Annotated

from pydantic import BeforeValidator, ValidationInfo, field_validator

from patchlake.pipeline.config.frozen import Frozen
from patchlake.pipeline.words import plain


def _words(value: object) -> object:
    """Return a setting's words as text: a 0, true or a single word from YAML are words as well."""
    if isinstance(value, set | frozenset):
        # Whose order is another one in another process.
        return tuple(sorted(map(_word, value), key=str))
    return tuple(map(_word, value if isinstance(value, list | tuple) else [value]))


def _word(value: object) -> object:
    """Return a number or a truth as a table's column of them is spelled."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    return str(value) if isinstance(value, int) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
# The fields of `ColumnSettings` that say what values mean, and not where they are.
VOCABULARY = ("good_labels", "test_splits", "train_splits")


class ColumnSettings(Frozen):
    """Names of our columns in other people's tables, and columns to pass through to the scores."""

    image_id: str = "image_id"
    image: str = "image"
    uri: str = "uri"
    group: str = "group"
    split: str = "split"
    label: str = "label"
    mask: str = "mask"
    # Images with the same one show one piece; a lot or a time will do as well. Verdicts are
    # calibrated part by part.
    part_id: str = "part_id"
    # A mask of each image that says what of it counts; "": there is none. Nothing is taken for one
    # by its name alone, since what it hides is not looked at.
    roi: str = ""
    extra: tuple[str, ...] = ()
    # The group of all images of a table that has none: neither a column nor a folder names it.
    one_group: str | None = None
    # What those columns say (`lake.selection`), compared as `pipeline.words` does. A label
    # that is none of these is a type of defect; a split of neither list is refused.
    good_labels: Words = ("good", "ok", "normal", "pass")
    test_splits: Words = (
        *("test", "testing", "val", "valid", "validation"),
        *("eval", "evaluation", "dev", "holdout", "hold-out"),
    )
    # And a null: a table without splits is there to train on.
    train_splits: Words = ("train", "training")

    @field_validator("train_splits")
    @classmethod
    def _not_both(cls, train: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        tests = {plain(word) for word in info.data.get("test_splits", ())}
        both = [word for word in train if plain(word) in tests]
        if both:
            raise ValueError(f"{both} is in columns.test_splits too; set both lists")
        return train

    @property
    def renamed(self) -> dict[str, str]:
        """Return those of our columns that are called otherwise here: our name -> theirs.

        One that is called nothing, "", is said to be nowhere.
        """
        names = ("image_id", "image", "uri", "group", "split", "label", "mask", "part_id")
        called = {name: str(getattr(self, name)) for name in names}
        named = {name: theirs for name, theirs in called.items() if theirs not in ("", name)}
        # Of this one, the name is no default either where it is ours.
        return named | ({"roi": self.roi} if self.roi else {})

    @property
    def vocabulary(self) -> dict[str, list[str]]:
        """Return what decides which rows are trained on, and no score depends on."""
        return {name: list(getattr(self, name)) for name in VOCABULARY}

    def over(self, fitted: "ColumnSettings") -> "ColumnSettings":
        """Return a model's settings, with those that the user has named in their place."""
        named = {name: getattr(self, name) for name in self.model_fields_set}
        return fitted.model_copy(update=named)

    def meaning_as(self, other: "ColumnSettings") -> "ColumnSettings":
        """Return these settings with a model's vocabulary and `roi`, where the user names none."""
        unnamed = [name for name in (*VOCABULARY, "roi") if name not in self.model_fields_set]
        return self.model_copy(update={name: getattr(other, name) for name in unnamed})
