"""The formats of a weight matrix in few bits: each as a formula, from float32 and back. NF4 has a file of its own.

    int8          w = scale * q,              q in -127..127, one scale for each output channel
    dynamic int8  the same weight; the inputs are rounded too, row by row, when they come: x = scale' * p
    int4          w = scale * q + minimum,    q in 0..15, a scale and a minimum for each group of inputs (GGUF's Q4_1)
    symmetric     w = scale * (q - 8)         no minimum, half a bit less at groups of 32 (GGUF's Q4_0)
    3 bits        q in 0..7, 4 in place of 8: for study

Rounding is to the nearest code. The numbers of a group are float16 values, rounded before the codes are chosen, so that
what is stored is what was meant. K is a multiple of 32; where it is none of the group's, the last group is shorter (576
inputs in groups of 128 are four of them and one of 64). Legend: N outputs, K inputs, G groups.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llm_journey.core.errors import BadInputError

GROUP_SIZES = (32, 64, 128)
GROUP_BITS = (3, 4)
_STEP = 32  # what every group is a multiple of
_LARGEST_FLOAT16 = 65504.0


class QuantizedWeight(Protocol):
    """A matrix (N, K) in few bits."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def dequantize(self) -> Tensor:
        """(N, K) float32."""


@dataclass(frozen=True)
class Int8Weight:
    """codes_nk: int8 (N, K). scale_n: float32 (N,)."""

    codes_nk: Tensor
    scale_n: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes_nk.shape[0], self.codes_nk.shape[1]

    def dequantize(self) -> Tensor:
        """(N, K) float32."""
        return self.codes_nk * self.scale_n[:, None]


@dataclass(frozen=True)
class DynamicInt8Weight(Int8Weight):
    """An Int8Weight whose products round their inputs as well, so that integers alone are multiplied."""


@dataclass(frozen=True)
class Int4Weight:
    """codes_nk: uint8 (N, K), each below 2^bits. scale_ng, minimum_ng: float32 (N, G).

    symmetric: the minimum is -2^(bits - 1) scales everywhere, and need not be stored.
    """

    codes_nk: Tensor
    scale_ng: Tensor
    minimum_ng: Tensor
    group_size: int
    bits: int = 4
    symmetric: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes_nk.shape[0], self.codes_nk.shape[1]

    @property
    def even_size(self) -> int:
        """The largest group into which the inputs can be cut without a shorter one, each inside one of the groups."""
        return math.gcd(self.group_size, self.codes_nk.shape[1])

    def even(self, values_ng: Tensor) -> Tensor:
        """Scales or minimums of the groups as those of groups of `even_size`."""
        repeats = self.group_size // self.even_size
        return values_ng.repeat_interleave(repeats, 1)[:, : self.codes_nk.shape[1] // self.even_size]

    def dequantize(self) -> Tensor:
        """(N, K) float32."""
        codes_ngk = torch.unflatten(self.codes_nk, 1, (-1, self.even_size))
        scale_ng, minimum_ng = self.even(self.scale_ng), self.even(self.minimum_ng)
        return torch.addcmul(minimum_ng[:, :, None], codes_ngk, scale_ng[:, :, None]).flatten(1)


def quantize_int8(weight_nk: Tensor) -> Int8Weight:
    """Symmetric, per output channel: the largest magnitude becomes 127."""
    return Int8Weight(*_int8_rows(checked(weight_nk)))


def quantize_dynamic_int8(weight_nk: Tensor) -> DynamicInt8Weight:
    """`quantize_int8`, to be multiplied with rounded inputs."""
    return DynamicInt8Weight(*_int8_rows(checked(weight_nk)))


def quantize_rows(x_nk: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs of a dynamic product: int8 codes (N, K) and the scale of each row (N,)."""
    return _int8_rows(x_nk.float())


def quantize_int4(weight_nk: Tensor, group_size: int = 32, *, bits: int = 4, symmetric: bool = False) -> Int4Weight:
    """By groups of inputs, to the nearest code of `group_grid`.

    A matrix that lies on such a grid already, with both ends used, comes back as it was. Raises BadInputError where K
    is no multiple of 32.
    """
    weight_nk = checked(weight_nk)
    check_groups(weight_nk.shape[1], group_size)
    parts = []
    for part_ngk in in_groups(weight_nk, group_size):
        scale_ng, minimum_ng = group_grid(part_ngk, bits, symmetric)
        codes_ngk = nearest_code(part_ngk, scale_ng[..., None], minimum_ng[..., None], bits)
        parts.append((codes_ngk.to(torch.uint8).flatten(1), scale_ng, minimum_ng))
    codes_nk, scale_ng, minimum_ng = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    return Int4Weight(codes_nk, scale_ng, minimum_ng, group_size, bits, symmetric)


def check_groups(num_inputs: int, group_size: int) -> None:
    """Raise BadInputError where a row of so many inputs cannot be cut into groups."""
    if num_inputs % _STEP:
        raise BadInputError(
            f"{num_inputs} inputs are no multiple of {_STEP}, and cannot be cut into groups of {group_size}"
        )


def in_groups(weight_nk: Tensor, group_size: int) -> list[Tensor]:
    """The whole groups (N, G, K / G), and the shorter last one (N, 1, rest), where there are such."""
    whole = weight_nk.shape[1] // group_size * group_size
    parts = [torch.unflatten(weight_nk[:, :whole], 1, (-1, group_size))] if whole else []
    return parts + ([weight_nk[:, None, whole:]] if whole < weight_nk.shape[1] else [])


def group_grid(weight_ngk: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """(scale_ng, minimum_ng) of groups (N, G, K / G), float16 values in the groups' own type.

    Asymmetric: from a group's smallest weight (code 0) to its largest (the last code). Symmetric: its weight of the
    largest magnitude becomes code 0, whatever its sign, since that side has one code more.
    """
    if symmetric:
        half = 2 ** (bits - 1)
        largest_ng1 = weight_ngk.abs().argmax(-1, keepdim=True)
        scale_ng = _as_float16(weight_ngk.gather(-1, largest_ng1)[..., 0] / -half)
        return scale_ng, -half * scale_ng
    smallest_ng, largest_ng = weight_ngk.amin(-1), weight_ngk.amax(-1)
    return _as_float16((largest_ng - smallest_ng) / (2**bits - 1)), _as_float16(smallest_ng)


def nearest_code(weight: Tensor, scale: Tensor, minimum: Tensor, bits: int) -> Tensor:
    """The code of each weight, in its own float type; all shapes fit each other. A scale of 0 has code 0."""
    divisor = torch.where(scale == 0, torch.inf, scale)
    return ((weight - minimum) / divisor).round().clamp(0, 2**bits - 1)


def checked(weight_nk: Tensor) -> Tensor:
    """The matrix in float32. Raises BadInputError where it holds NaN or infinity."""
    weight_nk = weight_nk.detach().float()
    if not bool(torch.isfinite(weight_nk).all()):
        raise BadInputError("the weight holds NaN or infinity: it is damaged, or its training diverged")
    return weight_nk


def _int8_rows(x_nk: Tensor) -> tuple[Tensor, Tensor]:
    scale_n = x_nk.abs().amax(1) / 127
    divisor_n = torch.where(scale_n > 0, scale_n, 1.0)
    return (x_nk / divisor_n[:, None]).round().clamp(-127, 127).to(torch.int8), scale_n


def _as_float16(values: Tensor) -> Tensor:
    """The nearest numbers that float16 has."""
    if values.numel() and float(values.abs().max()) > _LARGEST_FLOAT16:
        raise BadInputError(
            f"weights reach {float(values.abs().max()):.3g}, and float16, in which a group's scale is stored, ends at "
            f"{_LARGEST_FLOAT16:g}"
        )
    return values.half().to(values.dtype)
