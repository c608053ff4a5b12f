"""Training of the patches against the dense model."""
