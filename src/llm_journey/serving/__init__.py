"""Models behind an address that OpenAI's clients understand: routes, limits, keys, logs, metrics."""
