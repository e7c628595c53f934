"""Normalisation over the last axis. Shapes in and out are equal; statistics are taken in float32.

layernorm: y = (x - mean) / sqrt(var + eps) * weight + bias   (Ba et al. 2016, eq. 4)
rmsnorm:   y = x / sqrt(mean(x^2) + eps) * weight             (Zhang and Sennrich 2019, eq. 4)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_journey.core.errors import unknown_name


class LayerNorm(nn.Module):
    """Layer normalisation over a last axis of `width`, with an optional bias."""

    def __init__(self, width: int, epsilon: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over a last axis of `width`; no mean, no bias."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.epsilon)
        return (x * scale).type_as(x) * self.weight


def make_norm(name: str, width: int, epsilon: float, bias: bool) -> nn.Module:
    """The norm called `name`; raises BadInputError for an unknown one."""
    match name:
        case "layernorm":
            return LayerNorm(width, epsilon, bias)
        case "rmsnorm":
            return RMSNorm(width, epsilon)
        case _:
            raise unknown_name("norm", name, ("layernorm", "rmsnorm"))
