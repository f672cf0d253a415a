"""The record of a run: what was planned, what failed, whether it lives, how it ended."""
