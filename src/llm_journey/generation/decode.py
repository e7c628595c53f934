"""Streamed decoding in its plain form, one prompt with a dense cache: what the engine is measured against.

Prompt and new tokens together never exceed the context, so what was generated can always be read back.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from llm_journey.generation.kv_cache import KVCache
from llm_journey.generation.prompt import FinishReason, check_prompt
from llm_journey.generation.sampling import SamplingConfig, make_generator, sample
from llm_journey.model.decoder import Decoder
from llm_journey.model.transformer import with_prefix_logits


class Generation(Iterator[int]):
    """New token ids, computed as they are asked for. `finish_reason` is None until the last one has been given."""

    def __init__(
        self,
        model: Decoder,
        ids: Sequence[int],
        config: SamplingConfig,
        *,
        stop_ids: Collection[int] = (),
        on_token: Callable[[int], None] | None = None,
    ) -> None:
        check_prompt(ids, model.config.vocab_size, model.config.context)
        self.finish_reason: FinishReason | None = None
        self.prompt_length = len(ids)
        self._model, self._config, self._stop_ids, self._on_token = model, config, frozenset(stop_ids), on_token
        self._last = min(model.config.context, len(ids) + config.max_new_tokens)
        weight = model.embed.weight
        self._ids_bt = torch.zeros(1, self._last, dtype=torch.long, device=weight.device)
        self._ids_bt[0, : len(ids)] = torch.tensor(ids)
        self._length = len(ids)
        self._cache = KVCache(model.config, batch=1, capacity=self._last, dtype=weight.dtype, device=weight.device)
        self._generator = make_generator(config, weight.device)

    @property
    def new_ids(self) -> list[int]:
        """The ids generated so far."""
        new_ids: list[int] = self._ids_bt[0, self.prompt_length : self._length].tolist()
        return new_ids

    def __next__(self) -> int:
        if self.finish_reason is None and self._length >= self._last:
            limit_reached = self._length - self.prompt_length >= self._config.max_new_tokens
            self.finish_reason = "length" if limit_reached else "context"
        if self.finish_reason is not None:
            raise StopIteration
        token = self._next_token()
        if token in self._stop_ids:
            self.finish_reason = "stop"
            raise StopIteration
        self._ids_bt[0, self._length] = token
        self._length += 1
        if self._on_token is not None:
            self._on_token(token)
        return token

    @torch.inference_mode()
    def _next_token(self) -> int:
        ids_bt = self._ids_bt[:, : self._length]
        logits_bv = next_logits(self._model, ids_bt[:, self._cache.length :], self._cache)
        return int(sample(logits_bv, ids_bt, self._config, self._generator, prompt_length=self.prompt_length))


def generate(
    model: Decoder,
    ids: Sequence[int],
    config: SamplingConfig,
    *,
    stop_ids: Collection[int] = (),
    on_token: Callable[[int], None] | None = None,
) -> Generation:
    """An iterator of new ids after the prompt `ids`; on_token is called with each. It ends at a stop id, after
    max_new_tokens, or where the context is full; `.finish_reason` says which.

    Raises BadInputError at once for an empty prompt, an id outside the vocabulary, and a prompt longer than the
    context (with both counts). The model's training mode is put back after every token.
    """
    return Generation(model, ids, config, stop_ids=stop_ids, on_token=on_token)


def next_logits(model: Decoder, ids_bt: Tensor, cache: KVCache) -> Tensor:
    """Logits (B, V) after the last of `ids_bt` (B, T), which follow the positions in `cache`. Dropout is off."""
    training = model.training
    if training:
        model.eval()
    try:
        last_bd = model.hidden(ids_bt, cache=cache)[:, -1]
        return with_prefix_logits(torch.nn.functional.linear(last_bd, model.head_weight), model.config)
    finally:
        if training:
            model.train()
