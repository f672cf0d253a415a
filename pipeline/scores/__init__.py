"""Heatmaps, and the calibration of scores by those of normal images."""
