"""Other people's tables: which files are live, where our columns are, and how they are cut."""
