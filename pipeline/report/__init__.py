"""The page of a score table that people look at: what is counted, what is shown, and how."""
