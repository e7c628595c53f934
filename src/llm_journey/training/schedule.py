"""Learning-rate schedules as pure functions of progress: they return the factor of the peak, in [0, 1].

Progress is the share of the budget that is used, in [0, 1], whatever the budget is in (steps, tokens, seconds).

cosine  linear warmup, then half a cosine down to `final`      (Loshchilov and Hutter 2017, eq. 5)
wsd     linear warmup, constant, then linear decay to `final`  (Hu et al. 2024, "MiniCPM", eq. 1)
constant linear warmup, then constant
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from llm_journey.core.config import STRICT
from llm_journey.core.errors import unknown_name


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """warmup and decay are shares of the budget; final is the factor at its end."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Literal["cosine", "wsd", "constant"] = "wsd"
    warmup: float = 0.02
    decay: float = 0.5
    final: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.warmup <= 1 and 0 <= self.decay <= 1 and self.warmup + self.decay <= 1):
            raise ValueError("warmup and decay are shares of the budget; each and their sum must lie in [0, 1]")
        if not 0 <= self.final <= 1:
            raise ValueError(f"final must lie in [0, 1], not {self.final}")


def learning_rate_factor(config: ScheduleConfig, progress: float) -> float:
    """Factor of the peak learning rate at `progress` (clamped to [0, 1])."""
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return progress / config.warmup
    match config.name:
        case "constant":
            return 1.0
        case "cosine":
            done = (progress - config.warmup) / max(1.0 - config.warmup, 1e-12)
            return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * done))
        case "wsd":
            if progress <= 1.0 - config.decay:
                return 1.0
            return config.final + (1.0 - config.final) * min((1.0 - progress) / config.decay, 1.0)
        case _:
            raise unknown_name("schedule", config.name, ("cosine", "wsd", "constant"))
