"""The `patchlake` command: one module a verb, which parses, chooses a runner and reports."""
