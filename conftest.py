"""Before any test: what a function says of the shape and type of an array is checked at each call.

Ray's workers, and the processes that decode images and read footers, are not ours to check.
"""

from jaxtyping import install_import_hook

# Every module that says what an array holds is in one of these: tests/test_annotations.py.
CHECKED = [
    f"patchlake.pipeline.{room}"
    for room in (
        *("driver", "evaluation", "features", "groups", "images", "index"),
        *("lake", "maths", "methods", "scores", "stages"),
    )
]

# As for mypy, an int is a float.
install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
