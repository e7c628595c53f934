"""Token shards in memory whose tokens (end tokens aside) are all different, so that each can be followed."""

from pathlib import Path

import numpy as np

from llm_journey.core.files import sha256_json
from llm_journey.datasets.shards import TokenShards

END = 0
VOCAB = 60_000


def numbered_shards(lengths, *, first=1, shard_tokens=37):
    """Documents of the given lengths (their end tokens not counted), numbered through from `first`."""
    documents, token = [], first
    for length in lengths:
        documents.append([*range(token, token + length), END])
        token += length
    tokens = np.concatenate([np.array(document, dtype=np.int64) for document in documents])
    offsets = np.cumsum([0, *map(len, documents)])
    return TokenShards(
        directory=Path("memory"),
        split="train",
        vocab_size=VOCAB,
        end_id=END,
        num_tokens=len(tokens),
        num_documents=len(documents),
        num_bytes=len(tokens),
        fingerprint=sha256_json(documents),
        document_starts=offsets[:-1],
        _offsets=offsets,
        _shards=tuple(np.split(tokens.astype(np.uint16), range(shard_tokens, len(tokens), shard_tokens))),
        _shard_tokens=shard_tokens,
    )
