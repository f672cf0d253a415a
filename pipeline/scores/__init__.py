"""Heatmaps and what they are scaled by."""
