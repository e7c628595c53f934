"""Generation from token ids to token ids: sampling, key-value cache, streamed decoding. Text is the caller's part."""
