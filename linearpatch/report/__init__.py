"""Runs compared: tables as papers have them, figures, and one page to explore them."""

FACETS = ("pruner", "patch", "distill", "settings")  # what figures can have a panel for each of
