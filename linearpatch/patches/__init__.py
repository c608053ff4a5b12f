"""Operators that bridge the gap: one file each."""
