"""Components for LinearPatch: one module each."""
