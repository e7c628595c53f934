"""JSON schemas, made narrower until a grammar can express them. Neither text nor tokens."""
