"""Dense models, what we know of them, passes over them, and views of them."""
