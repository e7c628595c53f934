"""From logits to the next token: penalties, filters, the draw. Pure functions on (B, V) logits.

Each filter sets what it drops to -inf and always keeps the most likely token. They apply in transformers' order, and
tests/equivalence/test_sampling.py proves each equal to its class there. Legend: B batch, T positions, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor

from llm_journey.core.config import STRICT
from llm_journey.core.errors import JourneyError

_NEVER = float("-inf")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are chosen. temperature 0 is greedy: the most likely token, no draw.

    top_k: keep the k most likely, null for all. top_p: keep the smallest set of that probability (1: all). min_p: keep
    what is at least that share of the likeliest token's probability (0: all). repetition_penalty: 1 for none. seed: of
    the draws, null for another one each time. max_new_tokens: at most so many.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        _require(0 <= self.temperature < math.inf, f"temperature must be 0 (greedy) or more, not {self.temperature}")
        _require(self.top_k is None or self.top_k >= 1, f"top_k must be at least 1 or null, not {self.top_k}")
        _require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, not {self.top_p}")
        _require(0 <= self.min_p <= 1, f"min_p must be from 0 to 1, not {self.min_p}")
        penalty = self.repetition_penalty
        _require(0.1 <= penalty <= 10, f"repetition_penalty must be from 0.1 to 10 (1 for none), not {penalty}")
        _require(self.seed is None or 0 <= self.seed < 1 << 63, f"seed must be from 0 to 2^63 - 1, not {self.seed}")
        _require(self.max_new_tokens >= 1, f"max_new_tokens must be at least 1, not {self.max_new_tokens}")


def penalise_repetition(logits_bv: Tensor, ids_bt: Tensor, penalty: float) -> Tensor:
    """Logits of tokens that already stand in `ids_bt` divided by `penalty` (multiplied where negative).

    Keskar et al. 2019, section 4.1, with the sign rule that keeps a penalty a penalty.
    """
    seen_bv = torch.zeros_like(logits_bv, dtype=torch.bool).scatter_(1, ids_bt, True)
    return torch.where(seen_bv, torch.where(logits_bv < 0, logits_bv * penalty, logits_bv / penalty), logits_bv)


def keep_top_k(logits_bv: Tensor, k: int) -> Tensor:
    """The k largest logits (Fan et al. 2018, section 5.4); those equal to the k-th stay too."""
    kth_b1 = logits_bv.topk(min(k, logits_bv.shape[-1])).values[:, -1:]
    return logits_bv.masked_fill(logits_bv < kth_b1, _NEVER)


def keep_top_p(logits_bv: Tensor, p: float) -> Tensor:
    """Nucleus sampling: the smallest set of tokens whose probability reaches p (Holtzman et al. 2020, section 3.1).

    Read from the least likely up: a token goes as long as the mass up to and with it is at most 1 - p.
    """
    ascending_bv, order_bv = logits_bv.sort(dim=-1)
    dropped_bv = ascending_bv.softmax(-1).cumsum(-1) <= 1 - p
    dropped_bv[:, -1] = False
    return logits_bv.masked_fill(torch.zeros_like(dropped_bv).scatter_(1, order_bv, dropped_bv), _NEVER)


def keep_min_p(logits_bv: Tensor, p: float) -> Tensor:
    """Tokens at least p times as likely as the likeliest (Nguyen et al. 2024, section 3)."""
    probabilities_bv = logits_bv.softmax(-1)
    return logits_bv.masked_fill(probabilities_bv < p * probabilities_bv.amax(-1, keepdim=True), _NEVER)


def adjust(logits_bv: Tensor, ids_bt: Tensor, config: SamplingConfig) -> Tensor:
    """Logits (B, V) to draw from after the tokens `ids_bt` (B, T), up to a constant; temperature 0 only penalises."""
    if config.repetition_penalty != 1:
        logits_bv = penalise_repetition(logits_bv, ids_bt, config.repetition_penalty)
    if config.temperature == 0:
        return logits_bv
    # Measured from the largest, so that no temperature, however low, turns a logit into +inf; float32 must hold it.
    temperature = max(config.temperature, torch.finfo(torch.float32).tiny)
    logits_bv = (logits_bv - logits_bv.amax(-1, keepdim=True)) / temperature
    if config.top_k is not None:
        logits_bv = keep_top_k(logits_bv, config.top_k)
    if config.top_p < 1:
        logits_bv = keep_top_p(logits_bv, config.top_p)
    if config.min_p > 0:
        logits_bv = keep_min_p(logits_bv, config.min_p)
    return logits_bv


def sample(
    logits_bv: Tensor,
    ids_bt: Tensor,
    config: SamplingConfig,
    generator: torch.Generator | None,
    allowed_bv: Tensor | None = None,
) -> Tensor:
    """The next token of each row, (B,), after the tokens `ids_bt` (B, T).

    allowed_bv: False at tokens that may not come. Raises JourneyError where the model's logits hold NaN or infinity:
    such a model has diverged.
    """
    if not bool(torch.isfinite(logits_bv).all()):
        raise JourneyError("the model's logits are not finite: its weights are damaged or its training diverged")
    logits_bv = logits_bv.float()
    if allowed_bv is not None:
        logits_bv = logits_bv.masked_fill(~allowed_bv, _NEVER)
    logits_bv = adjust(logits_bv, ids_bt, config)
    if config.temperature == 0:
        return logits_bv.argmax(-1)
    return torch.multinomial(logits_bv.softmax(-1), 1, generator=generator).squeeze(1)


def make_generator(config: SamplingConfig, device: torch.device) -> torch.Generator:
    """A random generator of its own, so that drawing tokens never disturbs a training run's random numbers."""
    generator = torch.Generator(device)
    if config.seed is None:
        generator.seed()
    else:
        generator.manual_seed(config.seed)
    return generator


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
