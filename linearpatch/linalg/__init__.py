"""Linear algebra of our own."""
