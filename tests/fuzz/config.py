"""Config texts and `--set`: settings, or a ConfigError."""

import random

from patchlake.pipeline.config import load_settings
from patchlake.pipeline.errors import ConfigError
from tests.fuzz.harness import main

_PIECES = [
    *("seed", "image", "resize", "method", "columns", "score", "scored_at", "preset", "<<", "? "),
    *(
        ": ",
        "\n",
        "\n  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&a ",
        "*a",
        "!!binary ",
        "!!python/name:os ",
    ),
    *(
        "2026-13-01",
        "1" * 5000,
        "1e999",
        ".nan",
        "0x" + "f" * 99,
        "~",
        "yes",
        "'",
        '"',
        "\0",
        "é",
        "|",
    ),
]


def case(random: random.Random) -> None:
    """Load one text, or one assignment."""
    deep = random.choice([1, 10, 3000])
    text = "".join(random.choice(_PIECES) for _ in range(random.randrange(1, 25)))
    text = random.choice([text, "[" * deep + text, "a: {" * deep, f"seed: {text}"])
    name = (
        ".".join(["a"] * deep) if random.random() < 0.3 else random.choice(["seed", "image.resize"])
    )
    try:
        if random.random() < 0.5:
            load_settings(text)
        else:
            load_settings("", [f"{name}={text}"])
    except ConfigError:
        pass


if __name__ == "__main__":
    main("tests.fuzz.config", case)
