"""patchlake finds defects in images at the scale of a data lake."""
