"""LLM Journey: from raw text to a language model you trained, measured and put to work."""
