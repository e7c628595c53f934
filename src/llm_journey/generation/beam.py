"""Beam search: the most probable sequences that a model of next tokens can be led to, several at a time.

    score(Y) = log P(Y) / lp(Y),   lp(Y) = (5 + |Y|)^a / (5 + 1)^a      (Wu et al. 2016, eq. 14)

The search knows a step function alone, so it serves any model; `write_targets` makes one of an encoder-decoder,
`continue_text` of a decoder. With as
many beams as there are sequences it is exhaustive; with one it is greedy. Coverage (eq. 15 there), diverse groups and
sampling inside beams are left out.

Legend: B sentences searched for at once, K beams of each, N = B * K rows, V vocabulary, S source positions, T tokens
so far, C candidates.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor

from llm_journey.core.config import STRICT
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets.batching import pad_batch
from llm_journey.generation.decode import next_logits
from llm_journey.generation.kv_cache import KVCache
from llm_journey.generation.prompt import check_prompt
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder_decoder import EncoderDecoder

# (ids (N, T), rows (N,)) -> log-probabilities (N, V) of the next token. T is 1 at first and grows by one; `rows` says
# which row of the call before each row goes on from, so that a cache can follow (itself, at the first call).
Step = Callable[[Tensor, Tensor], Tensor]
MAX_BEAMS = 256
# Length |Y|, the end token included -> what its log-probability is divided by. It must not fall and rise again.
Penalty = Callable[[int], float]


def wu_penalty(alpha: float) -> Penalty:
    """Wu et al. 2016, eq. 14. alpha 0: none; the paper finds 0.6 to 0.7 best."""
    return lambda length: ((5 + length) / 6) ** alpha


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """Settings of a search. length_penalty: alpha of eq. 14. max_new_tokens: None is what the context holds."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    num_beams: int = 4
    length_penalty: float = 0.6
    early_stopping: bool = False
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_beams <= MAX_BEAMS:
            raise ValueError(f"num_beams must lie in 1 to {MAX_BEAMS}, not {self.num_beams}")
        if not -10 <= self.length_penalty <= 10:
            raise ValueError(f"length_penalty must lie in -10 to 10, not {self.length_penalty}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1 or null, not {self.max_new_tokens}")


@dataclass(frozen=True)
class Hypothesis:
    """One sequence found: `ids` without begin and end token; `ended` is False where max_length cut it off."""

    ids: tuple[int, ...]
    log_probability: float
    score: float
    ended: bool


@dataclass
class _Pool:
    """The best finished hypotheses of one sentence, best first."""

    size: int
    found: list[Hypothesis] = field(default_factory=list)
    done: bool = False

    @property
    def full(self) -> bool:
        return len(self.found) == self.size

    @property
    def worst(self) -> float:
        return self.found[-1].score if self.full else -math.inf

    def add(self, hypothesis: Hypothesis) -> None:
        self.found = sorted([*self.found, hypothesis], key=lambda item: -item.score)[: self.size]


def beam_search(
    step: Step,
    *,
    begin_id: int,
    end_id: int,
    max_length: int,
    num_sentences: int = 1,
    num_beams: int = 4,
    penalty: Penalty | None = None,
    early_stopping: bool = False,
    device: torch.device | None = None,
) -> list[list[Hypothesis]]:
    """For each sentence its best hypotheses, at most `num_beams`, best first.

    max_length counts new tokens, the end token included. A sentence is done once no open beam can come to a better
    score than its finished ones; with `early_stopping` (and always with one beam, which is greedy search) as soon as
    `num_beams` are finished. penalty: `wu_penalty(0.6)` if not given. Raises BadInputError for counts below 1,
    JourneyError where the model gives numbers that are none.
    """
    if min(max_length, num_sentences, num_beams) < 1:
        raise BadInputError("max_length, num_sentences and num_beams must each be at least 1")
    penalty = penalty or wu_penalty(0.6)
    early_stopping = early_stopping or num_beams == 1
    pools = [_Pool(num_beams) for _ in range(num_sentences)]
    ids_nt = torch.full((num_sentences * num_beams, 1), begin_id, dtype=torch.long, device=device)
    rows_n = torch.arange(len(ids_nt), device=device)
    totals_bk = torch.full((num_sentences, num_beams), -math.inf, device=device)
    totals_bk[:, 0] = 0.0  # all beams begin alike: only one of them may grow
    first_row_b1 = torch.arange(num_sentences, device=device)[:, None] * num_beams
    for length in range(1, max_length + 1):
        totals_bc, parents_bc, tokens_bc = _candidates(step(ids_nt, rows_n), totals_bk)
        ends_bc = tokens_bc == end_id
        cut = length == max_length
        finished_bk = (ends_bc | cut)[:, :num_beams] & totals_bc[:, :num_beams].isfinite()
        for sentence, place in finished_bk.nonzero().tolist():
            if not pools[sentence].done:
                row = ids_nt[first_row_b1[sentence, 0] + parents_bc[sentence, place], 1:].tolist()
                token, total = int(tokens_bc[sentence, place]), float(totals_bc[sentence, place])
                ids = row if token == end_id else [*row, token]
                pools[sentence].add(Hypothesis(tuple(ids), total, total / penalty(length), token == end_id))
        if cut:
            break
        # At most one candidate of each beam ends, so among 2 K there are K that go on.
        totals_bk, chosen_bk = totals_bc.masked_fill(ends_bc, -math.inf).topk(num_beams, dim=1)
        # Log-probabilities are at most 0: the best that can come of one is no more of it under the largest divisor.
        divisor = max(penalty(length + 1), penalty(max_length))
        for pool, best_open in zip(pools, totals_bk[:, 0].tolist(), strict=True):
            pool.done = pool.done or best_open / divisor <= pool.worst or (early_stopping and pool.full)
        if all(pool.done for pool in pools):
            break
        rows_n = (first_row_b1 + parents_bc.gather(1, chosen_bk)).flatten()
        ids_nt = torch.cat((ids_nt[rows_n], tokens_bc.gather(1, chosen_bk).flatten()[:, None]), dim=1)
    return [pool.found for pool in pools]


def _candidates(log_probabilities_nv: Tensor, totals_bk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The 2 K best continuations of each sentence, best first: (log-probability, beam, token), each (B, C)."""
    if bool(log_probabilities_nv.isnan().any()):
        raise JourneyError("the model's probabilities are not numbers (NaN), so no sequence can be searched for")
    num_sentences, num_beams = totals_bk.shape
    vocab_size = log_probabilities_nv.shape[-1]
    grown_bkv = totals_bk[:, :, None] + log_probabilities_nv.float().view(num_sentences, num_beams, vocab_size)
    if vocab_size < 2:
        raise BadInputError("a vocabulary of one token leaves nothing to search; it must hold the end and more")
    totals_bc, places_bc = grown_bkv.flatten(1).topk(2 * num_beams, dim=1)
    return totals_bc, places_bc // vocab_size, places_bc % vocab_size


@torch.inference_mode()
def write_targets(
    model: EncoderDecoder,
    sources: Sequence[Sequence[int]],
    *,
    begin_id: int,
    end_id: int,
    pad_id: int,
    max_length: int,
    num_beams: int = 4,
    penalty: Penalty | None = None,
    early_stopping: bool = False,
    never: Sequence[int] = (),
) -> list[list[Hypothesis]]:
    """What an encoder-decoder writes for each source: see `beam_search`. All sources are searched for at once.

    never: ids that no sequence holds (Marian's padding, whose logit was never trained: transformers' `bad_words_ids`).
    Dropout is off meanwhile. Raises BadInputError for an empty source, and for a source or a max_length that the
    model's context does not hold (naming both numbers).
    """
    context = model.config.context
    for ids in sources:
        if not ids:
            raise BadInputError("the text is empty: give at least one token")
        if len(ids) > context:
            raise BadInputError(
                f"the text has {len(ids)} tokens, the model's context holds {context}: shorten the text"
            )
    if max_length > context:
        raise BadInputError(f"max_length {max_length} is more than the model's context of {context}")
    source, mask = (torch.from_numpy(array).to(model.device) for array in pad_batch(sources, pad_id=pad_id))
    was_training = model.training
    model.eval()
    try:
        return beam_search(
            _CachedStep(model, source, mask, num_beams, max_length, never),
            begin_id=begin_id,
            end_id=end_id,
            max_length=max_length,
            num_sentences=len(sources),
            num_beams=num_beams,
            penalty=penalty,
            early_stopping=early_stopping,
            device=model.device,
        )
    finally:
        model.train(was_training)


class _CachedStep:
    """A Step of an encoder-decoder: the source is read once, and of the target the newest token alone."""

    def __init__(
        self,
        model: EncoderDecoder,
        source_bs: Tensor,
        mask_bs: Tensor,
        num_beams: int,
        max_length: int,
        never: Sequence[int],
    ) -> None:
        self._model, self._never = model, list(never)
        memory_bsd = model.encode(source_bs, mask_bs)
        self._mask_ns = mask_bs.repeat_interleave(num_beams, dim=0)
        self._memory = [
            (k_bkse.repeat_interleave(num_beams, dim=0), v_bkse.repeat_interleave(num_beams, dim=0))
            for k_bkse, v_bkse in model.keys_values(memory_bsd)
        ]
        self._cache = KVCache(
            model.config,
            batch=len(self._mask_ns),
            capacity=max_length,
            dtype=memory_bsd.dtype,
            device=memory_bsd.device,
        )

    def __call__(self, ids_nt: Tensor, rows_n: Tensor) -> Tensor:
        # A row never goes on from another sentence's, so that the memory stays where it is.
        self._cache.reorder(rows_n)
        hidden_ntd = self._model.decode(
            ids_nt[:, -1:], self._memory, source_padding_mask_bs=self._mask_ns, cache=self._cache
        )
        log_probabilities_nv = self._model.logits(hidden_ntd[:, -1]).float().log_softmax(-1)
        log_probabilities_nv[:, self._never] = -math.inf
        return log_probabilities_nv


@torch.inference_mode()
def continue_text(
    model: Decoder,
    ids: Sequence[int],
    *,
    end_ids: Collection[int],
    max_length: int,
    num_beams: int = 4,
    penalty: Penalty | None = None,
    early_stopping: bool = False,
) -> list[Hypothesis]:
    """What a decoder may go on with after `ids`, best first: see `beam_search`. max_length: new tokens, the end's too.

    Any of `end_ids` ends a sequence; their probabilities are added. Dropout is off meanwhile. Raises BadInputError as
    `generate` does, and where there is no end token or the context does not hold max_length tokens more.
    """
    check_prompt(ids, model.config.vocab_size, model.config.context)
    if not end_ids:
        raise BadInputError("a beam search needs an end token, and the model has none")
    if len(ids) + max_length > model.config.context:
        raise BadInputError(
            f"{len(ids)} tokens and {max_length} new ones are more than the model's context of {model.config.context}"
        )
    was_training = model.training
    model.eval()
    try:
        (found,) = beam_search(
            _ContinuedStep(model, ids, sorted(end_ids), num_beams, max_length),
            begin_id=ids[-1],
            end_id=min(end_ids),
            max_length=max_length,
            num_beams=num_beams,
            penalty=penalty,
            early_stopping=early_stopping,
            device=model.device,
        )
    finally:
        model.train(was_training)
    return found


class _ContinuedStep:
    """A Step of a decoder: the prompt is read once, and of what follows the newest token alone."""

    def __init__(
        self, model: Decoder, ids: Sequence[int], end_ids: Sequence[int], num_beams: int, max_length: int
    ) -> None:
        self._model, self._end_ids = model, list(end_ids)
        weight, room = model.embed.weight, len(ids) + max_length
        self._cache = KVCache(model.config, batch=num_beams, capacity=room, dtype=weight.dtype, device=weight.device)
        if len(ids) > 1:  # the last one is the search's first token
            read = KVCache(model.config, batch=1, capacity=len(ids), dtype=weight.dtype, device=weight.device)
            model.hidden(torch.tensor([list(ids[:-1])], device=weight.device), cache=read)
            self._cache.begin_as(read)

    def __call__(self, ids_nt: Tensor, rows_n: Tensor) -> Tensor:
        self._cache.reorder(rows_n)
        logits_nv = next_logits(self._model, ids_nt[:, -1:], self._cache)
        log_probabilities_nv = logits_nv.float().log_softmax(-1)
        ends_n = log_probabilities_nv[:, self._end_ids].logsumexp(-1)
        log_probabilities_nv[:, self._end_ids] = -math.inf
        log_probabilities_nv[:, self._end_ids[0]] = ends_n
        return log_probabilities_nv
