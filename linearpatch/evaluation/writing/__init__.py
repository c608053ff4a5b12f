"""Tasks whose answers a model must write, made by rules: no data is needed, and chance is known."""
