"""Before any test: what a function says of the shape and type of an array is checked at each call.

Ray's workers, and the processes that decode images and read footers, are not ours to check.
"""

import os
from pathlib import Path

from jaxtyping import install_import_hook

# Greedy selection calls these functions for each row that it picks, and the checks take as long as
# the call.
UNCHECKED = ("patchlake.pipeline.maths.shard",)

# Every module that says what an array holds is in one of these: tests/test_annotations.py.
CHECKED = [
    *(
        f"patchlake.pipeline.{room}"
        for room in (
            *("driver", "evaluation", "features", "groups", "images"),
            *("index", "lake", "methods", "scores", "stages"),
        )
    ),
    # The hook takes a package with all that is in it, so this one is named module by module.
    *(
        name
        for path in sorted((Path(__file__).parent / "pipeline" / "maths").glob("[!_]*.py"))
        if (name := f"patchlake.pipeline.maths.{path.stem}") not in UNCHECKED
    ),
]

# As for mypy, an int is a float. Of a sequence the first item is checked, not one by chance: what
# fails once fails each time. `make test-slow` turns the checks off.
if "UNCHECKED_ARRAYS" not in os.environ:
    install_import_hook(
        CHECKED,
        "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, is_random=False))",
    )
