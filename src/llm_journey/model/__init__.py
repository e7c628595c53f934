"""The transformer in raw PyTorch: one configuration, one block, visible choices. Knows nothing of text or files."""
