"""Corrupt text so that a model learns to put it right: BERT's masking and T5's span corruption. NumPy in and out.

What is drawn comes from the generator that is handed in; nothing else here is random. Both ways are lossless: what was
there before follows from the result (`unmasked`, `restored`). Whole-word masking and ELECTRA's replacement by a small
generator are left out.

Legend: B rows, T positions of a row, N tokens of one text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm_journey.core.errors import BadInputError
from llm_journey.datasets.batching import IGNORED, Batch, BoolArray, Int64Array

MASK_TOKEN = "[MASK]"  # noqa: S105 - a token of text, as in BERT's vocabulary
SENTINEL_PREFIX = "<extra_id_"
RATE = 0.15  # share of the tokens that are corrupted, in both papers
MEAN_SPAN = 3.0
NO_TOKEN = -1
_MASKED, _RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stays as it is


@dataclass(frozen=True, eq=False)
class MaskedBatch(Batch):
    """Rows with tokens hidden in them; the targets are what was hidden."""

    def num_tokens(self) -> int:
        """Every token is read, whether it is asked for or not."""
        return int(self.inputs.size)


def sentinel_tokens(count: int) -> tuple[str, ...]:
    """The names of T5's sentinels, first to last."""
    return tuple(f"{SENTINEL_PREFIX}{number}>" for number in range(count))


def mask_tokens(
    ids_bt: Int64Array,
    generator: np.random.Generator,
    *,
    mask_id: int,
    replacements: Int64Array,
    eligible_bt: BoolArray | None = None,
    rate: float = RATE,
) -> MaskedBatch:
    """Devlin et al. 2019 (BERT), section 3.1: hide some tokens of each row, and ask for those alone.

    Of each row's eligible positions (all, if not given) round(rate * number) are chosen, at least one where there is
    any. A chosen token becomes `mask_id` with probability 0.8, one of `replacements` with 0.1, and stays with 0.1: so
    the model must keep a good state for every position, also for those that it sees. The targets are the chosen
    tokens, IGNORED elsewhere. Raises BadInputError for a rate outside (0, 1].
    """
    _check_rate(rate)
    allowed_bt = np.ones(ids_bt.shape, dtype=bool) if eligible_bt is None else eligible_bt
    counts_b = allowed_bt.sum(axis=1)
    wanted_b = np.where(counts_b > 0, np.maximum(np.rint(rate * counts_b), 1), 0)
    # The smallest of one random key a position: a uniform choice without replacement, for all rows at once.
    keys_bt = np.where(allowed_bt, generator.random(ids_bt.shape), np.inf)
    ranks_bt = keys_bt.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    chosen_bt = ranks_bt < wanted_b[:, None]
    fate_bt = generator.random(ids_bt.shape)
    random_bt = generator.choice(replacements, size=ids_bt.shape)
    hidden_bt = np.where(fate_bt < _MASKED, mask_id, np.where(fate_bt < _MASKED + _RANDOM, random_bt, ids_bt))
    return MaskedBatch(inputs=np.where(chosen_bt, hidden_bt, ids_bt), targets=np.where(chosen_bt, ids_bt, IGNORED))


def unmasked(batch: Batch) -> Int64Array:
    """The rows (B, T) that `mask_tokens` was given."""
    return np.where(batch.targets != IGNORED, batch.targets, batch.inputs)


def corrupt_spans(
    ids_n: Int64Array,
    generator: np.random.Generator,
    *,
    sentinels: Sequence[int],
    rate: float = RATE,
    mean_span: float = MEAN_SPAN,
) -> tuple[Int64Array, Int64Array]:
    """Raffel et al. 2020 (T5), section 3.1.4: spans leave the text, and the target says what stood there.

    Returns (source, target). In the source each span is replaced by a sentinel of its own, in the order given; the
    target is each sentinel followed by its span, and one more sentinel at the end (figure 2 there). round(rate * N)
    tokens leave, in round(that / mean_span) spans, at least one and at most N - 1 of them; spans never touch. Raises
    BadInputError for a text of fewer than 2 tokens, one that holds a sentinel, or too few sentinels.
    """
    _check_rate(rate)
    length = len(ids_n)
    num_spans = number_of_spans(length, rate, mean_span)
    if num_spans >= len(sentinels):
        raise BadInputError(f"{num_spans} spans need {num_spans + 1} sentinel tokens, there are {len(sentinels)}")
    if np.isin(ids_n, sentinels).any():
        raise BadInputError("the text to corrupt holds a sentinel token itself; leave those tokens out of the text")
    num_noise = _number_of_noise_tokens(length, rate)
    noise = _partition(num_noise, num_spans, generator)
    kept = _partition(length - num_noise, num_spans, generator, last_may_be_empty=True)
    source: list[Int64Array] = []
    target: list[Int64Array] = []
    start = 0
    for sentinel, num_kept, num_gone in zip(sentinels, kept[:-1].tolist(), noise.tolist(), strict=False):
        mark = np.array([sentinel], dtype=np.int64)
        source += [ids_n[start : start + num_kept], mark]
        target += [mark, ids_n[start + num_kept : start + num_kept + num_gone]]
        start += num_kept + num_gone
    source.append(ids_n[start:])
    target.append(np.array([sentinels[num_spans]], dtype=np.int64))
    return np.concatenate(source), np.concatenate(target)


def number_of_spans(length: int, rate: float = RATE, mean_span: float = MEAN_SPAN) -> int:
    """How many spans leave a text of `length` tokens. Raises BadInputError below 2 tokens: nothing would be left."""
    if length < 2:
        raise BadInputError(f"a text of {length} tokens cannot lose a span; at least 2 are needed")
    if mean_span < 1:
        raise BadInputError(f"mean_span {mean_span} must be at least 1")
    num_noise = _number_of_noise_tokens(length, rate)
    # Each span but the first needs a kept token before it.
    return max(min(round(num_noise / mean_span), num_noise, length - num_noise), 1)


def restored(source: Int64Array, target: Int64Array, sentinels: Sequence[int]) -> Int64Array:
    """The text that `corrupt_spans` was given. Raises BadInputError where a sentinel of the source has no span."""
    spans: dict[int, Int64Array] = {}
    marks = np.flatnonzero(np.isin(target, sentinels))
    for place, following in zip(marks.tolist(), [*marks[1:].tolist(), len(target)], strict=True):
        spans[int(target[place])] = target[place + 1 : following]
    known = set(sentinels)
    pieces: list[Int64Array] = [np.empty(0, dtype=np.int64)]
    for token in source.tolist():
        if token in known and token not in spans:
            raise BadInputError(f"the target has no span for sentinel {token} of the source")
        pieces.append(spans[token] if token in known else np.array([token], dtype=np.int64))
    return np.concatenate(pieces)


def tokens_before(source: Int64Array, target: Int64Array, sentinels: Sequence[int]) -> Int64Array:
    """For each token of `target` (no end token in it) the one that stood before it in the text.

    NO_TOKEN where the text began with it, and at the sentinels, which are no part of the text. With it the spans can be
    guessed as running text would be, from the token before.
    """
    is_sentinel = np.isin(target, sentinels)
    # In the source the token before a span's sentinel stood before the span's first token: spans never touch.
    known = set(sentinels)
    places = {token: place for place, token in enumerate(source.tolist()) if token in known}
    before = np.concatenate([[NO_TOKEN], target[:-1]]).astype(np.int64)
    for place in np.flatnonzero(is_sentinel[:-1]).tolist():
        origin = places.get(int(target[place]), 0)
        before[place + 1] = source[origin - 1] if origin else NO_TOKEN
    return np.where(is_sentinel, NO_TOKEN, before)


def _number_of_noise_tokens(length: int, rate: float) -> int:
    return min(max(round(rate * length), 1), length - 1)


def _partition(
    total: int, parts: int, generator: np.random.Generator, *, last_may_be_empty: bool = False
) -> Int64Array:
    """`total` as a sum of random whole numbers: `parts` that are at least 1, each composition as likely as the next.

    With `last_may_be_empty` one more number, 0 or more, follows them, and the first may be 0 too: what stands before
    the first span and behind the last.
    """
    if not last_may_be_empty:
        cuts = np.sort(generator.choice(total - 1, size=parts - 1, replace=False)) + 1
        return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)
    # Two more items to give away, then one taken back from each end: the ends may be empty, what lies between may not.
    found = _partition(total + 2, parts + 1, generator)
    found[[0, -1]] -= 1
    return found


def _check_rate(rate: float) -> None:
    if not 0 < rate <= 1:
        raise BadInputError(f"the corruption rate {rate} must lie above 0 and at most at 1")
