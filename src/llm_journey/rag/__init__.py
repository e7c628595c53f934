"""Retrieval for generation: lexical and dense search, their fusion, diversity."""
