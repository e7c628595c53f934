"""From logits to the next token: penalties, filters, the draw. Pure functions on (B, V) logits.

Each filter sets what it drops to -inf; all but typical_p, which may drop it on purpose, keep the most likely token.
They apply in transformers' order, and tests/equivalence/test_sampling.py proves each equal to its class there. None of
them sorts a vocabulary where its largest few hundred tokens decide. Legend: B batch, T positions, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, ConfigDict
from torch import Tensor

from llm_journey.core.config import STRICT
from llm_journey.core.errors import JourneyError

_NEVER = float("-inf")
# So many of the likeliest tokens are looked at before a whole vocabulary is sorted. One core, V = 49,152: topk of 512
# takes 0.5 ms, a sort 11.5 ms.
_CANDIDATES = 512
# Sums of probabilities in another order differ by less than this; a decision that lies closer is left to the sort.
_ROUNDING = 1e-5
MAX_STOPS, MAX_STOP_LENGTH, MAX_LOGPROBS = 16, 1000, 20


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How tokens are chosen. temperature 0 is greedy: the most likely token, no draw.

    top_k: keep the k most likely, null for all. top_p: keep the smallest set of that probability (1: all). min_p: keep
    what is at least that share of the likeliest token's probability (0: all). typical_p: keep the tokens of the most
    expected surprise, up to that probability (1: all). repetition_penalty: 1 for none; of prompt and answer.
    frequency_penalty, presence_penalty: 0 for none; of the answer alone. seed: of the draws, null for another one each
    time. max_new_tokens: at most so many. stop: texts that end the answer and are no part of it. logprobs: so many
    alternatives beside each token. speculate: "lookup" guesses that the answer repeats what stands before it; it
    changes the speed, never the answer.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    max_new_tokens: int = 256
    stop: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()
    logprobs: int | None = None
    speculate: Literal["lookup"] | None = None

    def __post_init__(self) -> None:
        _require(0 <= self.temperature < math.inf, f"temperature must be 0 (greedy) or more, not {self.temperature}")
        _require(self.top_k is None or self.top_k >= 1, f"top_k must be at least 1 or null, not {self.top_k}")
        _require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, not {self.top_p}")
        _require(0 <= self.min_p <= 1, f"min_p must be from 0 to 1, not {self.min_p}")
        _require(0 < self.typical_p <= 1, f"typical_p must be above 0 and at most 1, not {self.typical_p}")
        penalty = self.repetition_penalty
        _require(0.1 <= penalty <= 10, f"repetition_penalty must be from 0.1 to 10 (1 for none), not {penalty}")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            _require(-2 <= value <= 2, f"{name} must be from -2 to 2 (0 for none), not {value}")
        _require(self.seed is None or 0 <= self.seed < 1 << 63, f"seed must be from 0 to 2^63 - 1, not {self.seed}")
        _require(self.max_new_tokens >= 1, f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        _require(len(self.stop) <= MAX_STOPS, f"stop must be at most {MAX_STOPS} texts, not {len(self.stop)}")
        fits = all(0 < len(text) <= MAX_STOP_LENGTH for text in self.stop)
        _require(fits, f"each text of stop must have from 1 to {MAX_STOP_LENGTH} characters")
        fits = self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS
        _require(fits, f"logprobs must be from 0 to {MAX_LOGPROBS} or null, not {self.logprobs}")

    @property
    def likeliest(self) -> bool:
        """Whether the token of the largest logit is taken: greedy, without penalties."""
        penalised = self.repetition_penalty != 1 or self.frequency_penalty or self.presence_penalty
        return self.temperature == 0 and not penalised


def penalise_repetition(logits_bv: Tensor, ids_bt: Tensor, penalty: float) -> Tensor:
    """Logits of tokens that already stand in `ids_bt` divided by `penalty` (multiplied where negative).

    Keskar et al. 2019, section 4.1, with the sign rule that keeps a penalty a penalty.
    """
    seen_bv = torch.zeros_like(logits_bv, dtype=torch.bool).scatter_(1, ids_bt, True)
    return torch.where(seen_bv, torch.where(logits_bv < 0, logits_bv * penalty, logits_bv / penalty), logits_bv)


def penalise_counts(logits_bv: Tensor, new_ids_bt: Tensor, frequency: float, presence: float) -> Tensor:
    """Logits less `frequency` for each time that a token stands in `new_ids_bt`, and less `presence` where it stands
    there at all. OpenAI's definition (API reference, "Frequency and presence penalties"); the prompt does not count.
    """
    counts_bv = torch.zeros_like(logits_bv).scatter_add_(
        1, new_ids_bt, torch.ones_like(new_ids_bt, dtype=logits_bv.dtype)
    )
    return logits_bv - frequency * counts_bv - presence * (counts_bv > 0)


def keep_top_k(logits_bv: Tensor, k: int) -> Tensor:
    """The k largest logits (Fan et al. 2018, section 5.4); those equal to the k-th stay too."""
    kth_b1 = logits_bv.topk(min(k, logits_bv.shape[-1])).values[:, -1:]
    return logits_bv.masked_fill(logits_bv < kth_b1, _NEVER)


def keep_top_p(logits_bv: Tensor, p: float, candidates: int = _CANDIDATES) -> Tensor:
    """Nucleus sampling: the smallest set of tokens whose probability reaches p (Holtzman et al. 2020, section 3.1).

    Read from the least likely up: a token goes as long as the mass up to and with it is at most 1 - p. The likeliest
    `candidates` decide alone where they hold the border, no token on it is tied with another, and no rounding could
    move it; the result is that of `sorted_top_p`.
    """
    if candidates >= logits_bv.shape[-1]:
        return sorted_top_p(logits_bv, p)
    descending_bk = logits_bv.topk(candidates).values
    shares_bk = (descending_bk - logits_bv.logsumexp(-1, keepdim=True)).exp()
    # Mass of a token and of all that are less likely, as the sort adds it up from the other end.
    below_bk = 1 - shares_bk.double().cumsum(-1) + shares_bk
    kept_bk = below_bk > 1 - p
    kept_bk[:, 0] = True
    count_b1 = kept_bk.sum(-1, keepdim=True)
    if bool((count_b1 == candidates).any()) or bool(((below_bk - (1 - p)).abs() < _ROUNDING).any()):
        return sorted_top_p(logits_bv, p)
    last_b1 = descending_bk.gather(1, count_b1 - 1)
    if bool((descending_bk.gather(1, count_b1) == last_b1).any()):
        return sorted_top_p(logits_bv, p)
    return logits_bv.masked_fill(logits_bv < last_b1, _NEVER)


def sorted_top_p(logits_bv: Tensor, p: float) -> Tensor:
    """`keep_top_p` by sorting every logit."""
    ascending_bv, order_bv = logits_bv.sort(dim=-1)
    dropped_bv = ascending_bv.softmax(-1).cumsum(-1) <= 1 - p
    dropped_bv[:, -1] = False
    return logits_bv.masked_fill(torch.zeros_like(dropped_bv).scatter_(1, order_bv, dropped_bv), _NEVER)


def keep_min_p(logits_bv: Tensor, p: float) -> Tensor:
    """Tokens at least p times as likely as the likeliest (Nguyen et al. 2024, section 3)."""
    probabilities_bv = logits_bv.softmax(-1)
    return logits_bv.masked_fill(probabilities_bv < p * probabilities_bv.amax(-1, keepdim=True), _NEVER)


def keep_typical_p(logits_bv: Tensor, p: float, candidates: int = _CANDIDATES) -> Tensor:
    """Locally typical sampling (Meister et al. 2022, section 4): tokens whose information -log q(x) is nearest to the
    entropy H(q) = -sum_x q(x) log q(x), until their probability reaches p; those as near as the last stay too.

    The nearest `candidates` decide alone where their probability reaches p beyond doubt; the result is that of the
    sort.
    """
    logprobs_bv = logits_bv.log_softmax(-1)
    entropy_b1 = -(logprobs_bv * logprobs_bv.exp()).nansum(-1, keepdim=True)
    distance_bv = (-logprobs_bv - entropy_b1).abs()
    if candidates < logits_bv.shape[-1]:
        nearest = distance_bv.topk(candidates, largest=False)
        reached_bk = logprobs_bv.gather(1, nearest.indices).exp().double().cumsum(-1)
        if bool((reached_bk[:, -1] > p).all()) and not bool(((reached_bk - p).abs() < _ROUNDING).any()):
            last_b1 = nearest.values.gather(1, (reached_bk < p).sum(-1, keepdim=True))
            return logits_bv.masked_fill(distance_bv > last_b1, _NEVER)
    ascending_bv, order_bv = distance_bv.sort(dim=-1)
    reached_bv = logits_bv.gather(1, order_bv).softmax(-1).cumsum(-1)
    index_b1 = (reached_bv < p).sum(-1, keepdim=True).clamp(max=logits_bv.shape[-1] - 1)
    return logits_bv.masked_fill(distance_bv > ascending_bv.gather(1, index_b1), _NEVER)


def adjust(logits_bv: Tensor, ids_bt: Tensor, config: SamplingConfig, prompt_length: int = 0) -> Tensor:
    """Logits (B, V) to draw from after the tokens `ids_bt` (B, T), of which the first `prompt_length` are the prompt's;
    up to a constant. temperature 0 only penalises."""
    if config.repetition_penalty != 1:
        logits_bv = penalise_repetition(logits_bv, ids_bt, config.repetition_penalty)
    if config.frequency_penalty or config.presence_penalty:
        new_ids_bt = ids_bt[:, prompt_length:]
        logits_bv = penalise_counts(logits_bv, new_ids_bt, config.frequency_penalty, config.presence_penalty)
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
    if config.typical_p < 1:
        logits_bv = keep_typical_p(logits_bv, config.typical_p)
    return logits_bv


def probabilities(
    logits_bv: Tensor,
    ids_bt: Tensor,
    config: SamplingConfig,
    allowed_bv: Tensor | None = None,
    prompt_length: int = 0,
) -> Tensor:
    """What the next token of each row is drawn from, (B, V); a 1 at the likeliest token where temperature is 0.

    allowed_bv: False at tokens that may not come. Raises JourneyError where the model's logits hold NaN or infinity:
    such a model has diverged.
    """
    logits_bv = _adjusted(logits_bv, ids_bt, config, allowed_bv, prompt_length)
    if config.temperature == 0:
        return torch.zeros_like(logits_bv).scatter_(1, logits_bv.argmax(-1, keepdim=True), 1.0)
    return logits_bv.softmax(-1)


def _adjusted(
    logits_bv: Tensor, ids_bt: Tensor, config: SamplingConfig, allowed_bv: Tensor | None, prompt_length: int
) -> Tensor:
    if not math.isfinite(float(logits_bv.sum())) and not bool(torch.isfinite(logits_bv).all()):
        raise JourneyError("the model's logits are not finite: its weights are damaged or its training diverged")
    logits_bv = logits_bv.float()
    if allowed_bv is not None:
        logits_bv = logits_bv.masked_fill(~allowed_bv, _NEVER)
    return adjust(logits_bv, ids_bt, config, prompt_length)


def sample(
    logits_bv: Tensor,
    ids_bt: Tensor,
    config: SamplingConfig,
    generator: torch.Generator | None,
    allowed_bv: Tensor | None = None,
    prompt_length: int = 0,
) -> Tensor:
    """The next token of each row, (B,), after the tokens `ids_bt` (B, T). See `probabilities`."""
    if config.temperature == 0:
        return _adjusted(logits_bv, ids_bt, config, allowed_bv, prompt_length).argmax(-1)
    return draw(probabilities(logits_bv, ids_bt, config, allowed_bv, prompt_length), generator)


def draw(shares_bv: Tensor, generator: torch.Generator | None) -> Tensor:
    """One token of each row, (B,), each as likely as its share: where the running sum passes a uniform number.

    torch.multinomial draws a number for every token of the vocabulary: 3.4 ms at V = 49,152 on one core, this 0.06.
    """
    sums_bv = shares_bv.double().cumsum(-1)
    uniform_b1 = torch.rand(len(sums_bv), 1, dtype=torch.double, device=sums_bv.device, generator=generator)
    whole_b1 = sums_bv[:, -1:].contiguous()
    found_b1 = torch.searchsorted(sums_bv, uniform_b1 * whole_b1, right=True)
    # A product that rounds up to the whole sum would lie behind the last token that has a share.
    last_b1 = torch.searchsorted(sums_bv, whole_b1)
    return torch.minimum(found_b1, last_b1).squeeze(1)


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
