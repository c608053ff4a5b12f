"""Pruned, patched models as folders: written, read, put on a dense model, and put to work."""
