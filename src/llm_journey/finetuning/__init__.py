"""Adapting a trained model: low-rank adapters, learned prompts, and the files that they are kept in."""
