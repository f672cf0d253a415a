"""The score table: parts and their commit, expiry, compaction, and its Iceberg twin."""
