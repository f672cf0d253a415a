"""The model folder and the files of arrays in it."""
