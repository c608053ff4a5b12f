"""Runs compared: tables as papers have them, figures, and one page to explore them."""
