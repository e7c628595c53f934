"""A decoder's norms as the engine computes them: an RMSNorm as PyTorch's one operator, and as what a compiler takes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_journey.core.errors import BadInputError
from llm_journey.model.attention import Attention
from llm_journey.model.norms import LayerNorm, RMSNorm


class EngineNorm:
    """A norm of the decoder, an RMSNorm as PyTorch's one operator."""

    def __init__(self, module: nn.Module) -> None:
        if not isinstance(module, RMSNorm | LayerNorm):
            raise BadInputError(f"no norm of ours: {type(module).__name__}")
        rms, self._epsilon = isinstance(module, RMSNorm), module.epsilon
        self.kind = f"{'rmsnorm' if rms else 'layernorm'} {module.epsilon}"
        self.function: Callable[..., Tensor] = self._rmsnorm if rms else self._layernorm
        self.tensors = tuple(parameter.detach().float() for parameter in module.parameters())

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, *self.tensors)

    def _rmsnorm(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.rms_norm(x, weight.shape, weight, self._epsilon)

    def _layernorm(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, self._epsilon)


def head_norm(attention: Attention, name: str) -> EngineNorm | None:
    """The q_norm or k_norm of an attention, None where it has none."""
    module = getattr(attention, name)
    return None if module is None else EngineNorm(module)
