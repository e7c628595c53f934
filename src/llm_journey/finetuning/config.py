"""What a fine-tuning recipe may choose of its method."""

import math
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from llm_journey.core.config import STRICT

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which matrices get a low-rank update, and of what kind.

    targets: names of modules, each a pattern (`*`, `?`) of the whole name (blocks.0.attention.q) or of its end (q);
    "all-linear" is every linear layer of the blocks. The token embedding is called embed. The update is scaled by
    alpha / rank, or by alpha / sqrt(rank) with rslora (Kalajdzievski 2023). dora: magnitude and direction are learned
    apart (Liu et al. 2024). dropout: of the update's input, while training.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be at least 1, not {self.rank}")
        if not math.isfinite(self.alpha) or self.alpha <= 0:
            raise ValueError(f"alpha must be positive, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if not self.targets:
            raise ValueError(f"targets must name a module, or be [{ALL_LINEAR}]")

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """How many learned tokens stand before every chat."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    tokens: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= 1024:
            raise ValueError(f"tokens must lie in 1 to 1024, not {self.tokens}")
