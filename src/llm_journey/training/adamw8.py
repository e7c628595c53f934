"""AdamW whose moments lie in 8 bits: 2 bytes a weight instead of 8 (Dettmers et al. 2022, "8-bit Optimizers via
Block-wise Quantization", sections 2 and 3).

Each moment is cut into blocks of 256 numbers, each scaled by its largest and rounded to the nearest of 256 numbers of a
dynamic tree: signed for the mean of gradients, of twice the precision and no sign for the mean of their squares. A mean
of squares that is not zero is never rounded to zero: an update divides by its root. Moments are whole only while their
own tensor is updated. Tensors of fewer than 4,096 numbers, and those of groups with `whole` (embeddings, whose rows
differ by orders of magnitude: section 2.3), stay in float32.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from llm_journey.quantization.dynamic import dequantize_dynamic, quantize_dynamic

_WHOLE_BELOW = 4096
_MOMENTS = (("exp_avg", True), ("exp_avg_sq", False))  # name, whether it has a sign


class AdamW8bit(torch.optim.Optimizer):
    """The update of AdamW (Loshchilov and Hutter 2019, algorithm 2), from moments that were rounded in between."""

    def __init__(self, params: Iterable[Any], lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "whole": False})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002 - no closure here
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        (mean_beta, square_beta), step = group["betas"], int(state.get("step", 0)) + 1
        mean, square = (_load(state, name, parameter, signed=signed) for name, signed in _MOMENTS)
        mean.lerp_(gradient, 1 - mean_beta)
        square.mul_(square_beta).addcmul_(gradient, gradient, value=1 - square_beta)
        scale = (square / (1 - square_beta**step)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(mean, scale, value=-group["lr"] / (1 - mean_beta**step))
        state["step"] = torch.tensor(float(step))
        for (name, signed), value in zip(_MOMENTS, (mean, square), strict=True):
            if group["whole"] or value.numel() < _WHOLE_BELOW:
                state[name] = value
            else:
                _store(state, name, value, signed=signed)


def _load(state: dict[str, Any], name: str, like: Tensor, *, signed: bool) -> Tensor:
    if name in state:
        found: Tensor = state[name]
        return found
    if f"{name}_codes" not in state:
        return torch.zeros_like(like)
    return dequantize_dynamic(state[f"{name}_codes"], state[f"{name}_absmax"], signed=signed).view_as(like)


def _store(state: dict[str, Any], name: str, value: Tensor, *, signed: bool) -> None:
    flat = value.flatten()
    codes, absmax = quantize_dynamic(flat, signed=signed)
    if not signed:
        codes.clamp_(min=1).mul_(flat > 0)  # code 0 is zero itself
    state[f"{name}_codes"], state[f"{name}_absmax"] = codes, absmax
