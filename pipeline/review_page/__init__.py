"""The page on which a person reviews images: served to this machine alone, to who has its link."""
