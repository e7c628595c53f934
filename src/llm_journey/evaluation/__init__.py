"""Held-out measurements: compressors and n-gram models that a language model has to beat, counted the same way."""
