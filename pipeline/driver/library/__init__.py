"""The verbs as functions: what `import patchlake` gives.

They print nothing and configure no logging; what they log is below the logger "patchlake". They
raise `PatchlakeError` for whatever a user or operator can mend, `StorageError` where storage gives
no answer, and `InputChanged` where a file was replaced under them (`pipeline.errors`).

Every function takes, where it has a use for them:

    settings    as `settings` or `load_settings` return them; those of the defaults if absent
    runner      "local": in this process and its threads; "ray": on this machine's cores, or on the
                cluster at `address`, or that of RAY_ADDRESS; "auto": "ray" where a cluster is named
                or there are more than 5,000 images, else "local"
    observer    is told how far the job is; see `pipeline.driver.observer`

The examples are run in a folder that has `pictures` (44 of two products, 12 of each good ones to
train on), what `ingest` makes of them in `images`, a `model` of `images`, and `scores` of both, by
small settings without a download, which models and scores keep:

    >>> quick = {
    ...     "image": {"resize": (64, 64)},
    ...     "backbone": {"name": "resnet10t.c3_in1k", "weights": "untrained"},
    ...     "method": {"coreset_fraction": 0.1},
    ... }
"""
