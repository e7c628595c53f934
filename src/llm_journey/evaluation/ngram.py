"""Interpolated modified Kneser-Ney n-grams over token ids: the baseline that a neural model has to beat.

S. F. Chen and J. Goodman, "An empirical study of smoothing techniques for language modeling", Computer Speech and
Language 13 (1999), section 3. For an n-gram `h w` (context `h`, shortened context `h'` without its first token):

    p(w | h) = (a(h w) - D(a(h w))) / a(h .) + gamma(h) p(w | h')                                       (eq. 21)
    gamma(h) = (D1 N1(h .) + D2 N2(h .) + D3 N3+(h .)) / a(h .)                                         (eq. 24)
    Y = n1 / (n1 + 2 n2),  D1 = 1 - 2 Y n2/n1,  D2 = 2 - 3 Y n3/n2,  D3 = 3 - 4 Y n4/n3                 (eq. 26)

`a` is the count at the highest order and the number of different tokens seen to the left (the continuation count) at
every lower one; n1..n4 are that order's counts of counts; below the unigram lies the uniform distribution.

A document is `[end] + tokens + [end]`: the end-of-text token opens it as context and closes it as a target, just as in
the token stream that a neural model reads. N-grams never cross it. Nothing stands to the left of an n-gram that opens
with `end`, so such an n-gram keeps its plain count at every order (as in KenLM: Heafield et al., 2013, section 3).

Each n-gram is coded as (identity of its context, last token) in one 64-bit integer, order upon order, so codes never
overflow. Left out: pruning, and files of any kind; counts live in memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from llm_journey.core.errors import BadInputError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MAX_ORDER = 5
_UNSEEN = -1
# Where counts of counts leave a discount undefined or out of (0, i]: half the count (KenLM's --discount_fallback).
_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class _Level:
    """The G different n-grams of one order, sorted by code; C contexts, numbered as the rows of the order below."""

    codes: Ints  # (G,) context * vocabulary size + last token
    counts: Ints  # (G,) occurrences
    continuations: Ints  # (G,) different left neighbours; occurrences where the n-gram opens a document
    num_contexts: int


@dataclass(frozen=True)
class NgramCounts:
    """Counts of all n-grams up to `order`; the models of every order up to it are made from the same counts."""

    order: int
    vocab_size: int
    end_id: int
    levels: tuple[_Level, ...]  # levels[k - 1] holds the k-grams


def join_documents(documents: Iterable[Sequence[int] | Ints], end_id: int) -> Ints:
    """The stream `[end] d0 [end] d1 [end] ...` of documents given with or without a closing end token. int64 (N,)."""
    parts: list[Ints] = [np.array([end_id], dtype=np.int64)]
    for document in documents:
        tokens = np.asarray(document, dtype=np.int64)
        parts.append(tokens if len(tokens) and tokens[-1] == end_id else np.append(tokens, end_id))
    return np.concatenate(parts)


def count_ngrams(stream: Ints, *, order: int, vocab_size: int, end_id: int) -> NgramCounts:
    """Count the n-grams of orders 1 to `order` in a stream made by `join_documents`.

    Raises BadInputError for an order out of 1..5, a stream without text, or ids outside the vocabulary.
    """
    if not 1 <= order <= MAX_ORDER:
        raise BadInputError(f"n-gram order {order} is not offered; choose 1 to {MAX_ORDER}")
    _check_stream(stream, vocab_size, end_id)
    depth = _depths(stream, end_id)
    counts = np.bincount(stream[1:], minlength=vocab_size)
    levels = [_Level(np.arange(vocab_size, dtype=np.int64), counts, counts, 1)]
    identities = stream  # row, in the newest level, of the k-gram that ends at each position
    for size in range(2, order + 1):
        positions = np.flatnonzero(depth >= size - 1)
        codes = identities[positions - 1] * vocab_size + stream[positions]
        codes, rows, counts = np.unique(codes, return_inverse=True, return_counts=True)
        example = np.empty(len(codes), dtype=np.int64)  # a position where each different n-gram ends
        example[rows] = positions
        below = levels[-1]
        levels[-1] = replace(below, continuations=_continuations(below, identities, depth, example, size - 1))
        levels.append(_Level(codes, counts, counts, len(below.codes)))
        identities = np.full(len(stream), _UNSEEN, dtype=np.int64)
        identities[positions] = rows
    return NgramCounts(order, vocab_size, end_id, tuple(levels))


class KneserNey:
    """An interpolated modified Kneser-Ney model of one order, 1 to 5."""

    def __init__(self, order: int, vocab_size: int, end_id: int) -> None:
        self.order = order
        self.vocab_size = vocab_size
        self.end_id = end_id
        self._levels: list[_SmoothedLevel] = []

    @classmethod
    def from_counts(cls, counts: NgramCounts, order: int) -> "KneserNey":
        """The model of `order` from counts of at least that order; nothing is counted again."""
        if not 1 <= order <= counts.order:
            raise BadInputError(f"n-gram order {order} is not among the counted ones, 1 to {counts.order}")
        model = cls(order, counts.vocab_size, counts.end_id)
        below = [_smooth(level, level.continuations, counts.vocab_size) for level in counts.levels[: order - 1]]
        top = counts.levels[order - 1]
        model._levels = [*below, _smooth(top, top.counts, counts.vocab_size)]
        return model

    def fit(self, documents: Iterable[Sequence[int] | Ints]) -> "KneserNey":
        """Count and smooth the documents' n-grams; a document is its token ids, the end token not needed."""
        stream = join_documents(documents, self.end_id)
        counts = count_ngrams(stream, order=self.order, vocab_size=self.vocab_size, end_id=self.end_id)
        self._levels = KneserNey.from_counts(counts, self.order)._levels
        return self

    def log2_probabilities(self, stream: Ints) -> Floats:
        """log2 p of each text token of a stream made by `join_documents`; end tokens are not among them. (N_text,)"""
        _check_stream(stream, self.vocab_size, self.end_id)
        depth = _depths(stream, self.end_id)
        probability = np.full(len(stream), 1.0 / self.vocab_size)
        previous = np.zeros(len(stream), dtype=np.int64)  # the empty context
        for size, level in enumerate(self._fitted(), start=1):
            contexts = np.where(depth >= size - 1, previous, _UNSEEN)
            probability, rows = level.interpolate(contexts, stream, self.vocab_size, probability)
            previous = np.concatenate([[_UNSEEN], rows[:-1]])
        return np.asarray(np.log2(probability[stream != self.end_id]), dtype=np.float64)

    def distribution(self, context: Sequence[int]) -> Floats:
        """p(. | context) over the vocabulary, (V,); `context` is read from its last end token on."""
        tokens = list(context)
        if self.end_id in tokens:
            tokens = tokens[len(tokens) - 1 - tokens[::-1].index(self.end_id) :]
        every = np.arange(self.vocab_size, dtype=np.int64)
        probability = np.full(self.vocab_size, 1.0 / self.vocab_size)
        levels = self._fitted()
        for size in range(1, min(self.order, len(tokens) + 1) + 1):
            identity = self._row(tokens[len(tokens) - size + 1 :])
            contexts = np.full(self.vocab_size, identity, dtype=np.int64)
            probability, _ = levels[size - 1].interpolate(contexts, every, self.vocab_size, probability)
        return probability

    def bits_per_byte(self, documents: Iterable[Sequence[int] | Ints], num_bytes: int) -> float:
        """Bits that the model spends on all text tokens of the documents, over their text's UTF-8 bytes."""
        return self.bits_per_byte_of_stream(join_documents(documents, self.end_id), num_bytes)

    def bits_per_byte_of_stream(self, stream: Ints, num_bytes: int) -> float:
        """`bits_per_byte` for documents that already stand in one stream, as `join_documents` makes it."""
        if num_bytes <= 0:
            raise BadInputError("bits per byte need held-out text of at least one byte")
        return float(-self.log2_probabilities(stream).sum() / num_bytes)

    def _row(self, ngram: Sequence[int]) -> int:
        """Row of an n-gram in its own level, found token by token; 0 for the empty one, `_UNSEEN` if not counted."""
        row = np.zeros(1, dtype=np.int64)
        for level, token in zip(self._fitted(), ngram, strict=False):
            row = level.find(row, np.array([token], dtype=np.int64), self.vocab_size)
        return int(row[0])

    def _fitted(self) -> "list[_SmoothedLevel]":
        if not self._levels:
            raise RuntimeError("fit the n-gram model before asking it for probabilities")
        return self._levels


@dataclass(frozen=True)
class _SmoothedLevel:
    """One order, smoothed: what an n-gram keeps of its context's mass, and what each context hands down."""

    codes: Ints  # (G,)
    kept: Floats  # (G,) (a - D(a)) / a(h .)
    gamma: Floats  # (C,) 1 where the context was never seen

    def find(self, contexts: Ints, tokens: Ints, vocab_size: int) -> Ints:
        """Row of each n-gram (context, token), `_UNSEEN` where it was not counted."""
        if not len(self.codes):
            return np.full(len(tokens), _UNSEEN, dtype=np.int64)
        codes = contexts * vocab_size + tokens
        rows = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where((contexts != _UNSEEN) & (self.codes[rows] == codes), rows, _UNSEEN)

    def interpolate(self, contexts: Ints, tokens: Ints, vocab_size: int, lower: Floats) -> tuple[Floats, Ints]:
        """p(w | h) from p(w | h'), and the rows of the n-grams; an unseen context hands everything down."""
        rows = self.find(contexts, tokens, vocab_size)
        if not len(self.codes):  # no document of the training text was this long
            return lower, rows
        kept = np.where(rows != _UNSEEN, self.kept[rows], 0.0)
        gamma = np.where(contexts != _UNSEEN, self.gamma[contexts], 1.0)
        return kept + gamma * lower, rows


def discounts(adjusted: Ints) -> tuple[float, float, float]:
    """D1, D2, D3+ of one order from its adjusted counts (eq. 26).

    Where counts of counts leave one undefined or not in (0, i] (tiny corpora), it is half of i.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(adjusted == value)) for value in (1, 2, 3, 4))
    found = list(_FALLBACK_DISCOUNTS)
    if n1 and n2:
        y = n1 / (n1 + 2 * n2)
        found[0] = 1 - 2 * y * n2 / n1
        found[1] = 2 - 3 * y * n3 / n2
        if n3:
            found[2] = 3 - 4 * y * n4 / n3
    d1, d2, d3 = (
        value if 0 < value <= size else fallback
        for size, (value, fallback) in enumerate(zip(found, _FALLBACK_DISCOUNTS, strict=True), start=1)
    )
    return d1, d2, d3


def _smooth(level: _Level, adjusted: Ints, vocab_size: int) -> _SmoothedLevel:
    d1, d2, d3 = discounts(adjusted)
    discount = np.array([0.0, d1, d2, d3])[np.minimum(adjusted, 3)]
    contexts = level.codes // vocab_size
    totals = np.bincount(contexts, weights=adjusted, minlength=level.num_contexts)
    handed_down = np.bincount(contexts, weights=discount, minlength=level.num_contexts)
    seen = totals > 0
    gamma = np.divide(handed_down, totals, out=np.ones(level.num_contexts), where=seen)
    kept = np.divide(adjusted - discount, totals[contexts], out=np.zeros(len(adjusted)), where=seen[contexts])
    return _SmoothedLevel(level.codes, kept, gamma)


def _continuations(level: _Level, identities: Ints, depth: Ints, example: Ints, size: int) -> Ints:
    """Left neighbours of each `size`-gram: each longer n-gram (one of them ends at each `example`) adds one."""
    found = np.bincount(identities[example], minlength=len(level.codes))
    opening = np.flatnonzero(depth == size - 1) if size > 1 else np.empty(0, dtype=np.int64)
    rows = identities[opening]
    found[rows] = level.counts[rows]
    return found


def _depths(stream: Ints, end_id: int) -> Ints:
    """For each position, how many tokens lie between it and the end token that opens its document, itself included."""
    positions = np.arange(len(stream))
    opened = np.maximum.accumulate(np.where(stream == end_id, positions, 0))
    return np.concatenate([[0], positions[1:] - opened[:-1]])


def _check_stream(stream: Ints, vocab_size: int, end_id: int) -> None:
    if len(stream) < 2 or not (stream != end_id).any():
        raise BadInputError("n-grams need text of at least one token; these documents hold none")
    if stream[0] != end_id or stream[-1] != end_id:
        raise BadInputError(f"the token stream must start and close with the end-of-text id {end_id}")
    if stream.min() < 0 or stream.max() >= vocab_size:
        raise BadInputError(f"token ids must lie in 0..{vocab_size - 1}; found {stream.min()}..{stream.max()}")
