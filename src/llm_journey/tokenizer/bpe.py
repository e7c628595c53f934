"""Byte pair encoding in its readable form: the oracle that the fast versions are proven equal to.

Training (Sennrich et al. 2016, algorithm 1, on bytes as in GPT-2): count the adjacent pairs of all words, replace the
most frequent pair by a new token, repeat. Encoding: apply the learned merges to a word, the earliest learned first.
Speed is left out on purpose; see bpe_fast for training and tokenizer for encoding.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from llm_journey.tokenizer.byte_level import BYTE_TO_ID, NUM_BYTES
from llm_journey.tokenizer.pretokenize import split

Pair = tuple[int, int]
_NEVER = 1 << 62


def count_words(texts: Iterable[str], pattern: str) -> Counter[str]:
    """How often each pre-token stands in `texts`."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(text, pattern))
    return counts


def word_bytes(word: str) -> bytes:
    """A pre-token as bytes: UTF-8, where a lone surrogate takes the three bytes that its number would have."""
    return word.encode("utf-8", "surrogatepass")


def merge(ids: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """`ids` with each `pair`, from the left, replaced by `new_id`."""
    merged: list[int] = []
    for token in ids:
        if merged and (merged[-1], token) == pair:
            merged[-1] = new_id
        else:
            merged.append(token)
    return merged


def train(word_counts: Mapping[str, int], num_merges: int) -> list[Pair]:
    """The first `num_merges` merges, or fewer where no pair is left; merge i makes token 256 + i.

    Among equally frequent pairs the one with the smaller ids wins. Hugging Face's BpeTrainer does the same.
    """
    words = {word: list(word_bytes(word).translate(BYTE_TO_ID)) for word in word_counts}
    merges: list[Pair] = []
    while len(merges) < num_merges:
        pair_counts: Counter[Pair] = Counter()
        for word, ids in words.items():
            for pair in pairwise(ids):
                pair_counts[pair] += word_counts[word]
        if not pair_counts:
            break
        best = min(pair_counts, key=lambda pair: (-pair_counts[pair], pair))
        words = {word: merge(ids, best, NUM_BYTES + len(merges)) for word, ids in words.items()}
        merges.append(best)
    return merges


def encode_word(word: bytes, merge_ids: Mapping[Pair, int]) -> list[int]:
    """The ids of one pre-token. `merge_ids` maps each pair to its new id; ids rise in the order of learning.

    Where several merges apply, the one whose new id is smallest goes first, at all its places from the left.
    """
    ids = list(word.translate(BYTE_TO_ID))
    while len(ids) > 1:
        best = min(pairwise(ids), key=lambda pair: merge_ids.get(pair, _NEVER))
        if best not in merge_ids:
            break
        ids = merge(ids, best, merge_ids[best])
    return ids


def encode(text: str, merge_ids: Mapping[Pair, int], pattern: str) -> list[int]:
    """The ids of `text`, pre-token by pre-token."""
    return [token for word in split(text, pattern) for token in encode_word(word_bytes(word), merge_ids)]
