"""Speculative decoding: several tokens are guessed, and one pass of the model judges them all.

A guess x that was drawn with probability q(x) is kept with probability min(1, p(x) / q(x)), p being what the model
itself would draw from; where it is not kept, the token comes from norm(max(0, p - q)) instead. What comes out is
distributed as p exactly (Leviathan et al. 2023, Algorithm 1 and appendix A.1). A pass over a few tokens costs little
more than a pass over one, because both read all weights once. A guess that was certain (q(x) = 1) is kept with p(x);
that is drawing from p and looking whether x came, so that the draws are those of plain decoding, one for one.

Two sources of guesses: what followed the same words earlier in the text (prompt lookup, Saxena 2023), which is good
where an answer quotes its prompt, and a smaller model of the same vocabulary. The engine does the judging, token by
token as always, so that penalties, constraints and stops see each kept guess before the next. Trees of guesses are
left out.

Legend: G guesses, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llm_journey.core.errors import BadInputError
from llm_journey.generation.blocks import BlockPool
from llm_journey.generation.paged_cache import PagedCache
from llm_journey.generation.runner import Runner, Share
from llm_journey.generation.sampling import SamplingConfig, draw, make_generator, probabilities

FIRST_GUESSES, LOOKUP_GUESSES, LOOKUP_LONGEST, LOOKUP_SHORTEST = 3, 10, 3, 2
DRAFT_GUESSES = 4
_BLOCK_SIZE = 64


@dataclass(frozen=True)
class Guesses:
    """`ids` of the tokens to come. shares_gv: what each was drawn from; None: each was certain."""

    ids: list[int]
    shares_gv: Tensor | None = None


class Drafter(Protocol):
    """Guesses for one answer; it is asked again after each pass."""

    def guess(self, ids: Sequence[int], limit: int) -> Guesses:
        """At most `limit` tokens behind `ids`, which are prompt and answer so far; none where nothing is known."""
        ...


class PromptLookup:
    """What followed the last few tokens when they stood in the text before: the longest match, and of it the newest.

    Twice as many tokens are guessed after guesses that all came true, as many as came true after others: each is a row
    of the pass, which is not free. SmolLM2 in int4 on one core: one row 15 ms, each further one 3.
    """

    def __init__(self, first: int = FIRST_GUESSES) -> None:
        self._num_guesses = first
        self._guessed, self._asked_at = 0, 0
        self._length = 0
        self._behind: dict[tuple[int, ...], int] = {}  # a few tokens -> the position behind where they stood last

    def guess(self, ids: Sequence[int], limit: int) -> Guesses:
        # The last position is left for the next call: tokens must not be found as their own earlier occurrence.
        for stop in range(self._length + 1, len(ids)):
            for count in range(LOOKUP_SHORTEST, min(LOOKUP_LONGEST, stop) + 1):
                self._behind[tuple(ids[stop - count : stop])] = stop
        self._length = len(ids) - 1
        if self._guessed:
            kept = min(len(ids) - self._asked_at - 1, self._guessed)
            self._num_guesses = max(1, 2 * kept if kept == self._guessed else kept)
        self._guessed, self._asked_at = 0, len(ids)
        for count in range(min(LOOKUP_LONGEST, len(ids)), LOOKUP_SHORTEST - 1, -1):
            start = self._behind.get(tuple(ids[-count:]))
            if start is not None:
                found = list(ids[start : start + min(limit, self._num_guesses, LOOKUP_GUESSES)])
                self._guessed = len(found)
                return Guesses(found)
        return Guesses([])


class DraftModel:
    """A smaller model's own draws, with its own cache of one sequence and its own random numbers.

    It draws by the settings of the answer, which makes its guesses likelier to be kept and is not needed for what comes
    out to be right.
    """

    def __init__(self, runner: Runner, config: SamplingConfig, num_guesses: int = DRAFT_GUESSES) -> None:
        self._runner, self._config, self._num_guesses = runner, config, num_guesses
        self._pool = BlockPool(-(-runner.config.context // _BLOCK_SIZE), _BLOCK_SIZE)
        self._cache = PagedCache(
            runner.config, num_blocks=self._pool.num_blocks, block_size=_BLOCK_SIZE, device=runner.device
        )
        self._table: list[int] = []
        self._read: list[int] = []  # tokens whose keys and values are in the cache
        self._generator = make_generator(config, runner.device)

    @torch.inference_mode()
    def guess(self, ids: Sequence[int], limit: int) -> Guesses:
        limit = min(limit, self._num_guesses, self._runner.config.context - len(ids) + 1)
        if limit < 1:
            return Guesses([])
        known = list(ids)
        kept = next((i for i, (a, b) in enumerate(zip(self._read, known, strict=False)) if a != b), len(self._read))
        self._read = self._read[: min(kept, len(known) - 1)]
        shares: list[Tensor] = []
        for _ in range(limit):
            fresh = known[len(self._read) :]
            self._pool.grow(self._table, len(known))
            logits_1v = self._runner([Share(ids=fresh, start=len(self._read), table=self._table)], self._cache)
            self._read = list(known)
            shares.append(probabilities(logits_1v, torch.tensor([known], device=logits_1v.device), self._config))
            known.append(int(draw(shares[-1], self._generator)))
        return Guesses(known[len(ids) :], torch.cat(shares))


def judge(shares_v: Tensor, guess: int, guess_shares_v: Tensor, generator: torch.Generator | None) -> int:
    """The token that takes the place of `guess`: the guess itself where it is kept.

    shares_v: p, what the model draws from. guess_shares_v: q, what the guess was drawn from.
    """
    uniform = float(torch.rand((), dtype=torch.double, device=shares_v.device, generator=generator))
    if uniform * float(guess_shares_v[guess]) < float(shares_v[guess]):
        return guess
    rest_v = (shares_v - guess_shares_v).clamp(min=0)
    # Equal up to rounding, p - q leaves nothing to draw from; then either distribution is right.
    return int(draw((rest_v if float(rest_v.sum()) > 0 else shares_v)[None], generator))


def check_draft(target: Runner, draft: Runner) -> None:
    """Raises BadInputError where a draft model's ids are not the target's."""
    ours, theirs = target.config.vocab_size, draft.config.vocab_size
    if ours != theirs:
        raise BadInputError(
            f"the draft model has a vocabulary of {theirs} tokens, the model one of {ours}: take one with "
            "the same tokenizer"
        )
