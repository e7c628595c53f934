"""The honest baselines of a run: bits per byte of its held-out text under compressors and n-gram models.

Every arm sees the same split as the model: held-out documents are counted whole, training documents may be learned
from. An n-gram reads the model's own tokens; for both, each document is `[end] + tokens`, the closing end token is no
target, and the bits are divided by the UTF-8 bytes of the text.

Measured once for given data and tokenizer, then read back from a cache: the key is made of both splits' fingerprints.
"""

import contextlib
import json
import math
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from llm_journey.core import files, paths
from llm_journey.core.errors import BadInputError
from llm_journey.datasets.shards import TokenShards
from llm_journey.evaluation.compressors import MAX_PRIMING_BYTES, bits_per_byte_compressed, join_texts
from llm_journey.evaluation.ngram import MAX_ORDER, Ints, KneserNey, count_ngrams

# N-grams learn from at most this many training tokens (the first ones): about 1.2 GB of counts.
MAX_NGRAM_TOKENS = 10_000_000
NAMES = ("gzip", "xz", "xz_primed", *(f"kneser_ney_{order}" for order in range(1, MAX_ORDER + 1)))
_METHOD = 1  # raised when a change of method changes numbers, so that older cached ones are not taken


def measure(
    prepared: Path, train: TokenShards, validation: TokenShards, *, cache: Path | None = None
) -> dict[str, float]:
    """Bits per byte of the held-out text: `gzip`, `xz`, `xz_primed`, `kneser_ney_1` .. `kneser_ney_5`.

    `prepared` is the folder of prepared documents that both splits of shards were made from; `cache` is the folder for
    measured results (default: in the user's cache). Raises BadInputError where the splits were made by different
    tokenizers.
    """
    if (train.vocab_size, train.end_id) != (validation.vocab_size, validation.end_id):
        raise BadInputError(
            f"training and validation shards come from different tokenizers ({train.vocab_size} and "
            f"{validation.vocab_size} tokens); prepare the data again"
        )
    key = files.sha256_json({"method": _METHOD, "train": train.fingerprint, "validation": validation.fingerprint})
    path = (cache or paths.cache_dir() / "baselines") / f"{key}.json"
    found = _read_cached(path)
    if found is None:
        found = {**_compressed(prepared), **ngram_bits_per_byte(train, validation)}
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the result
            files.write_json(path, found)
    return found


def ngram_bits_per_byte(train: TokenShards, validation: TokenShards, max_order: int = MAX_ORDER) -> dict[str, float]:
    """Bits per byte of `validation` under the n-grams of orders 1 to `max_order`, all made from one counting."""
    counts = count_ngrams(_training_stream(train), order=max_order, vocab_size=train.vocab_size, end_id=train.end_id)
    held_out = _stream(validation, validation.num_tokens)
    return {
        f"kneser_ney_{order}": KneserNey.from_counts(counts, order).bits_per_byte_of_stream(
            held_out, validation.num_bytes
        )
        for order in range(1, max_order + 1)
    }


def _compressed(prepared: Path) -> dict[str, float]:
    from llm_journey.datasets.prepare import iterate_texts

    return bits_per_byte_compressed(
        _last_bytes(iterate_texts(prepared, "train"), MAX_PRIMING_BYTES),
        join_texts(iterate_texts(prepared, "validation")),
    )


def _last_bytes(texts: Iterable[str], limit: int) -> bytes:
    """The last texts whose UTF-8 bytes first reach `limit`, joined; earlier ones are not kept in memory."""
    kept: deque[bytes] = deque()
    size = 0
    for text in texts:
        kept.append(join_texts([text]))
        size += len(kept[-1])
        while size - len(kept[0]) >= limit:
            size -= len(kept.popleft())
    return b"".join(kept)


def _training_stream(train: TokenShards) -> Ints:
    """The first whole documents of up to MAX_NGRAM_TOKENS tokens (at least one document)."""
    if train.num_tokens <= MAX_NGRAM_TOKENS:
        return _stream(train, train.num_tokens)
    whole = int(np.searchsorted(train.document_starts, MAX_NGRAM_TOKENS, side="right")) - 1
    stop = int(train.document_starts[max(whole, 1)]) if train.num_documents > 1 else train.num_tokens
    return _stream(train, stop)


def _stream(shards: TokenShards, stop: int) -> Ints:
    return np.concatenate([np.array([shards.end_id], dtype=np.int64), shards.read(0, stop)])


def _read_cached(path: Path) -> dict[str, float] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(value, dict) or set(value) != set(NAMES):
        return None
    whole = all(isinstance(number, int | float) and math.isfinite(number) and number >= 0 for number in value.values())
    return {name: float(value[name]) for name in NAMES} if whole else None
