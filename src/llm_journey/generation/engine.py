"""The engine: many prompts in, their tokens out one by one, all of them sharing each pass through the model.

`submit` queues a prompt, `step` runs one pass and hands every new token to its request, `cancel` lets one go at once.
The engine is for one thread; `generation.worker` gives it a thread of its own. What a request answers does not depend
on who shares its passes beyond the last bits of float arithmetic: it has its own random numbers.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_journey.core.errors import JourneyError, unknown_name
from llm_journey.generation.blocks import BlockPool
from llm_journey.generation.paged_cache import PagedCache
from llm_journey.generation.prompt import FinishReason, check_prompt
from llm_journey.generation.runner import Runner, Share
from llm_journey.generation.sampling import SamplingConfig, make_generator, probabilities, sample
from llm_journey.generation.scheduler import LiveSequence, Planned, Scheduler
from llm_journey.generation.speculative import Drafter, Guesses, PromptLookup, judge

_CACHE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Room of an engine. cache_tokens: positions of the key-value cache (0: four contexts, at most 16,384, at least one
    context). block_size: positions of a block. max_running: requests in a pass. max_tokens: tokens in a pass.
    cache_dtype: float32, bfloat16 or int8. reuse: share the blocks of equal beginnings."""

    cache_tokens: int = 0
    block_size: int = 16
    max_running: int = 16
    max_tokens: int = 512
    cache_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    reuse: bool = True


class Constraint(Protocol):
    """What a request may write, token by token. A JourneyError of its methods ends the request, and no other."""

    def allowed(self) -> Tensor:
        """Booleans (V,): which tokens may come next; at least one. Tokens beyond its length may not."""
        ...

    def accept(self, token: int) -> None:
        """Go on past a token."""
        ...

    @property
    def done(self) -> bool:
        """Whether nothing more may follow."""
        ...


@dataclass(frozen=True)
class Token:
    """A new token; its log-probability under the model and the likeliest alternatives, where they were asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(eq=False)
class Request:
    """A prompt on its way through the engine. `tokens` and `finish_reason` grow as it goes; `num_guessed` tokens were
    guessed, of which `num_kept` came true."""

    sequence: LiveSequence
    config: SamplingConfig
    prompt_length: int
    stop_ids: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    logprobs: int | None = None
    on_token: Callable[[Token], None] | None = None
    on_finish: Callable[[FinishReason], None] | None = None
    generator: torch.Generator | None = None
    drafter: Drafter | None = None
    guesses: Guesses | None = None
    num_guessed: int = 0
    num_kept: int = 0
    error: JourneyError | None = None
    tokens: list[Token] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def takes_likeliest(self) -> bool:
        """Whether the model's likeliest token is its next one, whatever else is known of it."""
        return self.config.likeliest and self.constraint is None and self.logprobs is None


class Engine:
    """A runner, its cache and its scheduler."""

    def __init__(self, runner: Runner, config: EngineConfig | None = None) -> None:
        config = config or EngineConfig()
        model = runner.config
        tokens = config.cache_tokens or max(model.context, min(4 * model.context, 16_384))
        self.runner, self.config = runner, config
        self.pool = BlockPool(-(-tokens // config.block_size), config.block_size)
        self.cache = PagedCache(
            model,
            num_blocks=self.pool.num_blocks,
            block_size=config.block_size,
            dtype=_CACHE_DTYPES[config.cache_dtype],
            device=runner.device,
        )
        self.scheduler = Scheduler(
            self.pool,
            max_running=config.max_running,
            max_tokens=config.max_tokens,
            reuse=config.reuse,
            window=model.sliding_window,
        )
        self._requests: dict[LiveSequence, Request] = {}

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or running."""
        return bool(self._requests)

    def submit(
        self,
        ids: Sequence[int],
        config: SamplingConfig,
        *,
        stop_ids: Collection[int] = (),
        constraint: Constraint | None = None,
        drafter: Drafter | None = None,
        logprobs: int | None = None,
        adapter: str | None = None,
        on_token: Callable[[Token], None] | None = None,
        on_finish: Callable[[FinishReason], None] | None = None,
    ) -> Request:
        """Queue a prompt; the callbacks are told of each new token and of the end, within `step` or `cancel`.

        The stop texts of `config` are for whoever turns ids into text (generation.stop). drafter: guesses tokens, for
        this request alone (default: as config.speculate says). logprobs: give each token's log-probability and so many
        alternatives (default: config.logprobs). adapter: one of the runner's, by name. Raises BadInputError for an
        empty prompt, an id outside the vocabulary, a prompt longer than the context (with both counts), and an adapter
        that is not there.
        """
        if adapter is not None and adapter not in self.runner.adapters:
            raise unknown_name("adapter", adapter, self.runner.adapters)
        check_prompt(ids, self.runner.config.vocab_size, self.runner.config.context)
        longest = min(self.runner.config.context, len(ids) + config.max_new_tokens)
        request = Request(
            LiveSequence(list(ids), longest, adapter),
            config,
            len(ids),
            frozenset(stop_ids),
            constraint,
            config.logprobs if logprobs is None else logprobs,
            on_token,
            on_finish,
            make_generator(config, self.runner.device) if config.temperature > 0 else None,
            PromptLookup() if drafter is None and config.speculate == "lookup" else drafter,
        )
        if len(ids) >= longest:  # a prompt that fills the context leaves nothing to write
            self._finish(request, "context")
            return request
        self.scheduler.add(request.sequence)
        self._requests[request.sequence] = request
        return request

    def cancel(self, request: Request) -> None:
        """Let a request go now; nothing happens where it has ended."""
        if request.finish_reason is None:
            self._finish(request, "cancelled")

    def cancel_all(self) -> None:
        """Let every request go."""
        for request in list(self._requests.values()):
            self.cancel(request)

    def step(self) -> None:
        """One pass: read what the scheduler has planned, choose a token for each sequence that is read to its end, and
        one more behind each guess that came true."""
        self._guess()
        planned = self.scheduler.plan()
        if not planned:
            return
        logits_rv = self.runner([_share(each) for each in planned], self.cache)
        self.scheduler.computed(planned)
        self._choose(planned, logits_rv)

    def _guess(self) -> None:
        for sequence in self.scheduler.running:
            request = self._requests[sequence]
            room = sequence.max_length - len(sequence.ids) - 1
            if request.drafter is not None and sequence.num_waiting == 1 and room > 0:
                request.guesses = request.drafter.guess(sequence.ids, room)
                sequence.guesses = list(request.guesses.ids)

    @torch.inference_mode()
    def _choose(self, planned: Sequence[Planned], logits_rv: Tensor) -> None:
        likeliest: list[int] = []
        if any(self._requests[each.sequence].takes_likeliest for each in planned):
            likeliest = logits_rv.argmax(-1).tolist()
        first = 0
        for each in planned:
            rows = slice(first, first + 1 + len(each.sequence.guesses))
            first = rows.stop
            if each.sequence.num_waiting == 0:  # else a piece of a prompt, whose end is still to be read
                self._answer(self._requests[each.sequence], logits_rv[rows], likeliest[rows])

    def _answer(self, request: Request, logits_rv: Tensor, likeliest: Sequence[int]) -> None:
        """A token for each row, as long as what was guessed is what comes."""
        guesses, request.sequence.guesses = request.sequence.guesses, []
        request.num_guessed += len(guesses)
        for row, logits_v in enumerate(logits_rv):
            try:
                if request.takes_likeliest:
                    token = Token(likeliest[row])
                else:
                    token = choose(request, logits_v, row if row < len(guesses) else None)
                self._advance(request, token)
            except JourneyError as error:
                request.error = error
                self._finish(request, "error")
                return
            if row == len(guesses) or token.id != guesses[row]:
                return
            request.num_kept += 1
            if request.finish_reason is not None:
                return
            request.sequence.computed += 1  # its key is in the cache; those of guesses that failed are written over

    def _advance(self, request: Request, token: Token) -> None:
        """Take a token into a request, and end the request where that is its end."""
        if token.id in request.stop_ids:
            self._finish(request, "stop")
            return
        request.sequence.ids.append(token.id)
        request.tokens.append(token)
        if request.constraint is not None:
            request.constraint.accept(token.id)
        if request.on_token is not None:
            request.on_token(token)
        if request.finish_reason is not None:  # the callback cancelled it
            return
        if request.constraint is not None and request.constraint.done:
            self._finish(request, "stop")
        elif len(request.tokens) >= request.config.max_new_tokens:
            self._finish(request, "length")
        elif len(request.sequence.ids) >= request.sequence.max_length:
            self._finish(request, "context")

    def _finish(self, request: Request, reason: FinishReason) -> None:
        request.finish_reason = reason
        if self._requests.pop(request.sequence, None) is not None:
            self.scheduler.remove(request.sequence)
        if request.on_finish is not None:
            request.on_finish(reason)
        # Whoever listened holds the request, which holds a grammar: in a circle they stay for minutes.
        request.on_token = request.on_finish = None


def choose(request: Request, logits_v: Tensor, guess: int | None = None) -> Token:
    """The next token of a request after what it holds, drawn from its own random numbers.

    guess: number of the guess that stands at this place, if one does.
    """
    config, device = request.config, logits_v.device
    allowed_1v = None
    if request.constraint is not None:
        allowed_v = request.constraint.allowed().to(device)[: len(logits_v)]
        # A model's vocabulary may be longer than its tokenizer's.
        allowed_1v = F.pad(allowed_v, (0, len(logits_v) - len(allowed_v)))[None]
    seen_1t = torch.tensor(request.sequence.ids, device=device)[None]
    guesses = request.guesses
    if guess is None or guesses is None or guesses.shares_gv is None or config.temperature == 0:
        token = int(sample(logits_v[None], seen_1t, config, request.generator, allowed_1v, request.prompt_length))
    else:
        shares_1v = probabilities(logits_v[None], seen_1t, config, allowed_1v, request.prompt_length)
        token = judge(shares_1v[0], guesses.ids[guess], guesses.shares_gv[guess], request.generator)
    if request.logprobs is None:
        return Token(token)
    logprobs_v = logits_v.float().log_softmax(-1)
    top = logprobs_v.topk(min(request.logprobs, len(logprobs_v)))
    alternatives = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return Token(token, float(logprobs_v[token]), alternatives)


def _share(planned: Planned) -> Share:
    sequence = planned.sequence
    fresh = sequence.ids[sequence.computed : sequence.computed + planned.count]
    guesses = sequence.guesses
    return Share(
        ids=[*fresh, *guesses],
        start=sequence.computed,
        table=sequence.table,
        all_logits=bool(guesses),
        adapter=sequence.adapter,
    )
