"""Encoded images to pixels of one size, and the way back from model input to the image."""
