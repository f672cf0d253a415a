"""One group's model: fitted, updated, calibrated, written, and loaded to score with."""
