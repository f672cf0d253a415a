"""Nearest neighbours in the memory bank, and its faiss files."""
