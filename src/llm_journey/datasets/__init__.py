"""Corpora on disk: catalog, preparation, token shards, and what feeds them to training. Never imports torch."""
