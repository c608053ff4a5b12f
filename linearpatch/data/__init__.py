"""Corpora, and token blocks cut from them."""
