"""Pure numpy: no files, no torch, no Ray."""
