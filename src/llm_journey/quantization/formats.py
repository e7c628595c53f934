"""The formats of a weight matrix in few bits: each as a formula, from float32 and back.

    int8    w = scale * q,              q in -127..127, one scale for each output channel
    int4    w = scale * q + minimum,    q in 0..15, one scale and one minimum for each group of inputs (as GGUF's Q4_1)

Rounding is to the nearest code. Legend: N outputs, K inputs, G groups of K / G inputs each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_journey.core.errors import BadInputError

GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Int8Weight:
    """codes_nk: int8 (N, K). scale_n: float32 (N,)."""

    codes_nk: Tensor
    scale_n: Tensor

    def dequantize(self) -> Tensor:
        """(N, K) float32."""
        return self.codes_nk * self.scale_n[:, None]


@dataclass(frozen=True)
class Int4Weight:
    """codes_nk: uint8 (N, K), each 0 to 15. scale_ng, minimum_ng: float32 (N, G)."""

    codes_nk: Tensor
    scale_ng: Tensor
    minimum_ng: Tensor

    @property
    def group_size(self) -> int:
        return self.codes_nk.shape[1] // self.scale_ng.shape[1]

    def dequantize(self) -> Tensor:
        """(N, K) float32."""
        codes_ngk = torch.unflatten(self.codes_nk, 1, (-1, self.group_size))
        return torch.addcmul(self.minimum_ng[:, :, None], codes_ngk, self.scale_ng[:, :, None]).flatten(1)


def quantize_int8(weight_nk: Tensor) -> Int8Weight:
    """Symmetric, per output channel: the largest magnitude becomes 127."""
    weight_nk = _checked(weight_nk)
    scale_n = weight_nk.abs().amax(1) / 127
    divisor_n = torch.where(scale_n > 0, scale_n, 1.0)
    return Int8Weight((weight_nk / divisor_n[:, None]).round().clamp(-127, 127).to(torch.int8), scale_n)


def quantize_int4(weight_nk: Tensor, group_size: int = 32) -> Int4Weight:
    """Asymmetric, by groups of inputs: a group's smallest weight becomes 0, its largest 15.

    A matrix that lies on such a grid already, with both ends used, comes back as it was. Raises BadInputError where K
    is no multiple of the group.
    """
    weight_nk = _checked(weight_nk)
    if weight_nk.shape[1] % group_size:
        raise BadInputError(f"{weight_nk.shape[1]} inputs cannot be cut into groups of {group_size}")
    weight_ngk = torch.unflatten(weight_nk, 1, (-1, group_size))
    minimum_ng, maximum_ng = weight_ngk.amin(-1), weight_ngk.amax(-1)
    scale_ng = (maximum_ng - minimum_ng) / 15
    divisor_ng = torch.where(scale_ng > 0, scale_ng, 1.0)
    codes_ngk = ((weight_ngk - minimum_ng[:, :, None]) / divisor_ng[:, :, None]).round().clamp(0, 15)
    return Int4Weight(codes_ngk.to(torch.uint8).flatten(1), scale_ng, minimum_ng)


def _checked(weight_nk: Tensor) -> Tensor:
    weight_nk = weight_nk.detach().float()
    if not bool(torch.isfinite(weight_nk).all()):
        raise BadInputError("the weight holds NaN or infinity: it is damaged, or its training diverged")
    return weight_nk
