"""A changed model beside the model it was made from, on the same windows of text: what it cost, and how surely.

Every figure is a mean over windows, whose positions hang together; so windows are what the bootstrap draws (Efron
1979), and a difference between two changes is taken window by window. Legend: T positions, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

DRAWS = 10_000


@dataclass(frozen=True)
class WindowFigures:
    """One window. reference_nats, other_nats: mean negative log-likelihood of its tokens but the first.
    kl: mean KL(reference || other) over all positions; same: share of positions with the same most likely token."""

    reference_nats: float
    other_nats: float
    kl: float
    same: float

    def describe(self) -> dict[str, float]:
        """The figures as JSON values."""
        return asdict(self)


def compare_window(ids_t: Tensor, reference_tv: Tensor, other_tv: Tensor) -> WindowFigures:
    """Figures of a window, from both models' logits over it. Sums over the vocabulary are taken in float64."""
    log_p_tv, log_q_tv = torch.log_softmax(reference_tv.float(), -1), torch.log_softmax(other_tv.float(), -1)
    next_t1 = ids_t[1:, None]
    kl_t = (log_p_tv.exp() * (log_p_tv - log_q_tv)).sum(-1, dtype=torch.float64)
    return WindowFigures(
        reference_nats=-float(log_p_tv[:-1].gather(1, next_t1).double().mean()),
        other_nats=-float(log_q_tv[:-1].gather(1, next_t1).double().mean()),
        kl=float(kl_t.mean()),
        same=float((reference_tv.argmax(-1) == other_tv.argmax(-1)).double().mean()),
    )


@dataclass(frozen=True)
class TextComparison:
    """The windows of a text together."""

    windows: Sequence[WindowFigures]

    @property
    def reference_perplexity(self) -> float:
        return math.exp(_mean([each.reference_nats for each in self.windows]))

    @property
    def perplexity(self) -> float:
        return math.exp(_mean([each.other_nats for each in self.windows]))

    @property
    def mean_kl(self) -> float:
        return _mean([each.kl for each in self.windows])

    @property
    def greedy_agreement(self) -> float:
        return _mean([each.same for each in self.windows])

    def perplexity_change(self) -> tuple[float, tuple[float, float]]:
        """perplexity / reference_perplexity - 1, and its 95% interval."""
        differences = [each.other_nats - each.reference_nats for each in self.windows]
        low, high = bootstrap_interval(differences)
        return math.expm1(_mean(differences)), (math.expm1(low), math.expm1(high))

    def kl_difference(self, other: "TextComparison") -> tuple[float, tuple[float, float]]:
        """This change's mean KL minus another's on the same windows, and its 95% interval."""
        differences = [mine.kl - theirs.kl for mine, theirs in zip(self.windows, other.windows, strict=True)]
        return _mean(differences), bootstrap_interval(differences)

    def describe(self) -> dict[str, Any]:
        """The figures as JSON values."""
        change, interval = self.perplexity_change()
        return {
            "reference_perplexity": self.reference_perplexity,
            "perplexity": self.perplexity,
            "perplexity_change": change,
            "perplexity_change_interval": list(interval),
            "mean_kl": self.mean_kl,
            "mean_kl_interval": list(bootstrap_interval([each.kl for each in self.windows])),
            "greedy_agreement": self.greedy_agreement,
        }


def bootstrap_interval(values: Sequence[float], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The percentile interval of the mean of `values`, each drawn with replacement as often as there are values."""
    array = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(array), (DRAWS, len(array)))
    low, high = np.quantile(array[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
