"""The fast encoders behind a Tokenizer: tiktoken's core where a rank table says all, tokenizers' where merges must.

tiktoken joins two neighbours whenever their bytes together are a token, and takes a word that is a token as it is. For
merges that training produced, this equals applying the merges one by one: a stretch of text that tokens cover exactly
develops as it would alone (no merge crosses its ends), so a token's bytes can be reached in one way only. For merges
of unknown origin `rank_table` checks that property, token by token; where it fails, the merges run in tokenizers.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import tiktoken
from tokenizers import models

from llm_journey.tokenizer.bpe import Pair
from llm_journey.tokenizer.byte_level import to_characters
from llm_journey.tokenizer.pretokenize import PATTERNS, split

# tiktoken's pattern engine aborts on a run of about a million white spaces; such texts are cut by `regex` instead.
_LONG_RUN = 400_000


class Core(Protocol):
    """Encodes text and single words into ids, specials unknown to it."""

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text without lone surrogates."""
        ...

    def encode_word(self, word: bytes) -> list[int]:
        """The ids of one pre-token."""
        ...


class RankCore:
    """tiktoken's core. `ids[rank]` is the id of each rank; None where they are the same."""

    def __init__(self, ranks: dict[bytes, int], ids: Sequence[int] | None, pattern: str) -> None:
        self._encoding = tiktoken.Encoding(
            "llm_journey", pat_str=PATTERNS[pattern].source, mergeable_ranks=ranks, special_tokens={}
        )
        self._ids = ids
        self._pattern = pattern

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text without lone surrogates."""
        if has_long_white_space(text):
            return [token for word in split(text, self._pattern) for token in self.encode_word(word.encode())]
        return self._renumber(self._encoding.encode_ordinary(text))

    def encode_word(self, word: bytes) -> list[int]:
        """The ids of one pre-token; its bytes need not be UTF-8."""
        return self._renumber(self._encoding._encode_single_piece(word))

    def _renumber(self, ranks: list[int]) -> list[int]:
        return ranks if self._ids is None else [self._ids[rank] for rank in ranks]


class MergeCore:
    """tokenizers' BPE model, for merges that no rank table can express."""

    def __init__(
        self, vocabulary: Mapping[bytes, int], merges: Sequence[Pair], pattern: str, whole_words_first: bool
    ) -> None:
        names = {token: to_characters(data) for data, token in vocabulary.items()}
        self._model = models.BPE(
            {name: token for token, name in names.items()},
            [(names[left], names[right]) for left, right in merges],
            ignore_merges=whole_words_first,
        )
        self._pattern = pattern

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text without lone surrogates."""
        return [token for word in split(text, self._pattern) for token in self.encode_word(word.encode())]

    def encode_word(self, word: bytes) -> list[int]:
        """The ids of one pre-token; its bytes need not be UTF-8."""
        return [token.id for token in self._model.tokenize(to_characters(word))]


def build_core(
    vocabulary: Mapping[bytes, int], merges: Sequence[Pair], pattern: str, *, whole_words_first: bool = False
) -> Core:
    """The fastest core that encodes exactly as these merges do.

    `vocabulary` holds all 256 bytes and, for each merge (a pair of ids), the joined bytes. `whole_words_first` takes a
    word that is a token as it is (`ignore_merges` in tokenizer.json).
    """
    by_rank = rank_table(vocabulary, merges, whole_words_first=whole_words_first)
    if by_rank is None:
        return MergeCore(vocabulary, merges, pattern, whole_words_first)
    if sorted(vocabulary.values()) == [vocabulary[data] for data in by_rank]:
        return RankCore({data: vocabulary[data] for data in by_rank}, None, pattern)
    ranks = {data: rank for rank, data in enumerate(by_rank)}
    return RankCore(ranks, [vocabulary[data] for data in by_rank], pattern)


def rank_table(
    vocabulary: Mapping[bytes, int], merges: Sequence[Pair], *, whole_words_first: bool
) -> list[bytes] | None:
    """Tokens in the order in which they are made, if joining whatever makes a token equals these merges; else None."""
    data_of = {token: data for data, token in vocabulary.items()}
    made: dict[bytes, list[Pair]] = {}
    for left, right in merges:
        made.setdefault(data_of[left] + data_of[right], []).append((left, right))
    single = [data for data in vocabulary if len(data) == 1]
    if len(single) + len(made) != len(vocabulary):
        return None  # a token that no merge makes
    ranks = {vocabulary[data]: rank for rank, data in enumerate(made)} | {vocabulary[data]: -1 for data in single}
    rank_of = {pair: ranks[vocabulary[data]] for data, pairs in made.items() for pair in pairs}
    if any(max(ranks[left], ranks[right]) >= rank for (left, right), rank in rank_of.items()):
        return None  # used before it is made
    if len(made) == len(merges):
        parts = {vocabulary[data]: pairs[0] for data, pairs in made.items()}
        if not all(_made_alone(pair, parts, ranks, rank_of) for pair in merges):
            return None
    elif not (whole_words_first and _holds_every_split(vocabulary, made)):
        return None
    return [*sorted(single, key=lambda data: vocabulary[data]), *made]


def _made_alone(pair: Pair, parts: Mapping[int, Pair], ranks: Mapping[int, int], rank_of: Mapping[Pair, int]) -> bool:
    """Whether the bytes of `pair`, encoded alone, become its two halves: no earlier merge crosses their border.

    At the border stand, over time, the last part of the left half's last part, and so on up to the left half itself,
    and likewise the first parts of the right half. Each stands there until its own merge takes it up.
    """
    final = rank_of[pair]
    left, left_end = pair[0], final
    while True:
        right, right_end = pair[1], final
        while True:
            rank = rank_of.get((left, right), final)
            # A merge at the same rank goes to the place further left: the crossing one, before the right half's own.
            if rank < final and rank < left_end and rank <= right_end:
                return False
            if right not in parts:
                break
            right, right_end = parts[right][0], ranks[right]
        if left not in parts:
            return True
        left, left_end = parts[left][1], ranks[left]


def _holds_every_split(vocabulary: Mapping[bytes, int], made: Mapping[bytes, list[Pair]]) -> bool:
    """Whether each token can be made from any two tokens that spell it (as in Llama 3's file)."""
    for data, pairs in made.items():
        splits = ((data[:cut], data[cut:]) for cut in range(1, len(data)))
        possible = sum(left in vocabulary and right in vocabulary for left, right in splits)
        if possible != len(set(pairs)):
            return False
    return True


def has_long_white_space(text: str) -> bool:
    """Whether `text` has a run of white space long enough to be a danger to tiktoken. Looks at few characters."""
    for start in range(_LONG_RUN, len(text), _LONG_RUN):
        if text[start].isspace() and text[start - _LONG_RUN // 2 : start + _LONG_RUN // 2].isspace():
            return True
    return False
