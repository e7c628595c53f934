"""GGUF, llama.cpp's file format, in and out.

`format`, `quants`, `reader` and `writer` need NumPy alone; `names` and `vocabulary` know what a model needs; `model`
joins them.
"""
