"""Edited models as one GGUF file, for llama.cpp and the tools built on it."""
