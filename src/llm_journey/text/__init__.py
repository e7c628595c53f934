"""Text before it is tokens: reading files, cleaning, quality filters, deduplication. Never imports torch."""
