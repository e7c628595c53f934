"""How a model's matrices are held: one choice of format and its settings, and the tensors that it is stored as.

    format        tensors of a matrix (N, K)                                                        bits a weight
    int8          codes int8 (N, K); scale float32 (N,)                                             8 + 32 / K
    dynamic-int8  the same                                                                          8 + 32 / K
    int4          codes uint8 (N, K bits / 8); scale, minimum float16 (N, G)                        bits + 32 G / K
      symmetric   codes; scale                                                                      bits + 16 G / K
    nf4           codes uint8 (N K / 2,); absmax uint8, one for 64 weights; largest, offset float32 4.127

Of two 4-bit codes in a byte the first lies in the lower half; eight 3-bit codes lie in three bytes, the first lowest.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from llm_journey.core.config import STRICT
from llm_journey.quantization import nf4
from llm_journey.quantization.formats import (
    GROUP_BITS,
    GROUP_SIZES,
    DynamicInt8Weight,
    Int4Weight,
    Int8Weight,
    QuantizedWeight,
    check_groups,
    quantize_dynamic_int8,
    quantize_int4,
    quantize_int8,
)
from llm_journey.quantization.nf4 import Nf4Weight, quantize_nf4

FormatName = Literal["int8", "dynamic-int8", "int4", "nf4"]
Layout = Mapping[str, tuple[tuple[int, ...], torch.dtype]]  # of each tensor: its shape and type


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """bits, group_size and symmetric are int4's: codes of 3 or 4 bits, inputs to a scale, without a minimum or with."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    format: FormatName = "int4"
    bits: int = 4
    group_size: int = 32
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.bits not in GROUP_BITS:
            raise ValueError(f"bits must be one of {_listed(GROUP_BITS)}, not {self.bits}")
        if self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size must be one of {_listed(GROUP_SIZES)}, not {self.group_size}")

    def describe(self) -> str:
        """In words."""
        if self.format != "int4":
            return self.format
        kind = "symmetric, " if self.symmetric else ""
        return f"{self.bits} bits, {kind}groups of {self.group_size}"


def quantize(weight_nk: Tensor, scheme: Scheme) -> QuantizedWeight:
    """The matrix in the scheme's format, to the nearest code."""
    match scheme.format:
        case "int8":
            return quantize_int8(weight_nk)
        case "dynamic-int8":
            return quantize_dynamic_int8(weight_nk)
        case "int4":
            return quantize_int4(weight_nk, scheme.group_size, bits=scheme.bits, symmetric=scheme.symmetric)
        case "nf4":
            return quantize_nf4(weight_nk)


def scheme_of(weight: QuantizedWeight) -> Scheme:
    """The scheme that a weight is in."""
    match weight:
        case DynamicInt8Weight():
            return Scheme(format="dynamic-int8")
        case Int8Weight():
            return Scheme(format="int8")
        case Int4Weight():
            return Scheme(bits=weight.bits, group_size=weight.group_size, symmetric=weight.symmetric)
        case _:
            return Scheme(format="nf4")


def scheme_for(name: str, scheme: Scheme) -> Scheme:
    """The scheme of one layer: the embedding and the head, which every token passes, keep 8 bits."""
    return Scheme(format="int8") if name in ("embed", "head") else scheme


def layout(scheme: Scheme, shape: tuple[int, int]) -> Layout:
    """The tensors that a matrix of `shape` is stored as. Raises BadInputError where the shape does not fit."""
    rows, columns = shape
    match scheme.format:
        case "int8" | "dynamic-int8":
            return {"codes": ((rows, columns), torch.int8), "scale": ((rows,), torch.float32)}
        case "int4":
            check_groups(columns, scheme.group_size)
            groups = ((rows, math.ceil(columns / scheme.group_size)), torch.float16)
            codes = ((rows, columns * scheme.bits // 8), torch.uint8)
            minimum = {} if scheme.symmetric else {"minimum": groups}
            return {"codes": codes, "scale": groups, **minimum}
        case "nf4":
            blocks = math.ceil(rows * columns / nf4.BLOCK)
            return {
                "codes": ((math.ceil(rows * columns / 2),), torch.uint8),
                "absmax": ((blocks,), torch.uint8),
                "largest": ((math.ceil(blocks / nf4.ABSMAX_BLOCK),), torch.float32),
                "offset": ((1,), torch.float32),
            }


def stored(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The weight as tensors, as `layout` says."""
    match weight:
        case Int8Weight():
            return {"codes": weight.codes_nk, "scale": weight.scale_n}
        case Int4Weight():
            tensors = {"codes": _PACK[weight.bits](weight.codes_nk), "scale": weight.scale_ng.half()}
            return tensors | ({} if weight.symmetric else {"minimum": weight.minimum_ng.half()})
        case Nf4Weight():
            codes = weight.codes_nk.flatten()
            codes = torch.nn.functional.pad(codes, (0, len(codes) % 2))
            return {
                "codes": _pack4(codes),
                "absmax": weight.absmax,
                "largest": weight.largest,
                "offset": weight.offset,
            }
        case _:
            raise TypeError(f"no quantized weight: {type(weight).__name__}")


def restored(scheme: Scheme, tensors: Mapping[str, Tensor], shape: tuple[int, int]) -> QuantizedWeight:
    """The weight that `stored` gave the tensors of."""
    codes = tensors["codes"]
    match scheme.format:
        case "int8":
            return Int8Weight(codes, tensors["scale"])
        case "dynamic-int8":
            return DynamicInt8Weight(codes, tensors["scale"])
        case "int4":
            scale_ng = tensors["scale"].float()
            half = 2 ** (scheme.bits - 1)
            minimum_ng = -half * scale_ng if scheme.symmetric else tensors["minimum"].float()
            codes_nk, size = _UNPACK[scheme.bits](codes), scheme.group_size
            return Int4Weight(codes_nk, scale_ng, minimum_ng, size, scheme.bits, scheme.symmetric)
        case "nf4":
            codes_nk = _unpack4(codes)[: shape[0] * shape[1]].view(shape)
            return Nf4Weight(codes_nk, tensors["absmax"], tensors["largest"], tensors["offset"])


def joined(weights: list[QuantizedWeight]) -> QuantizedWeight | None:
    """Several matrices of one input, one under another, as one; None where their schemes differ or do not allow it."""
    first = weights[0]
    if len(weights) == 1:
        return first
    if any(scheme_of(weight) != scheme_of(first) for weight in weights):
        return None
    if isinstance(first, Int8Weight):
        same = [weight for weight in weights if isinstance(weight, Int8Weight)]
        return type(first)(torch.cat([each.codes_nk for each in same]), torch.cat([each.scale_n for each in same]))
    if isinstance(first, Int4Weight):
        groups = [weight for weight in weights if isinstance(weight, Int4Weight)]
        return Int4Weight(
            torch.cat([each.codes_nk for each in groups]),
            torch.cat([each.scale_ng for each in groups]),
            torch.cat([each.minimum_ng for each in groups]),
            first.group_size,
            first.bits,
            first.symmetric,
        )
    return None  # NF4's blocks run on from row to row, and each matrix has an offset of its own


def num_bytes(weight: QuantizedWeight) -> int:
    """Bytes as stored."""
    return sum(tensor.nbytes for tensor in stored(weight).values())


def _pack4(codes: Tensor) -> Tensor:
    return codes[..., ::2] | codes[..., 1::2] << 4


def _unpack4(packed: Tensor) -> Tensor:
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


def _pack3(codes: Tensor) -> Tensor:
    """Eight codes as a number of 24 bits, in three bytes."""
    places = torch.arange(0, 24, 3, device=codes.device)
    numbers = (torch.unflatten(codes.int(), -1, (-1, 8)) << places).sum(-1, keepdim=True)
    return (numbers >> torch.arange(0, 24, 8, device=codes.device) & 255).to(torch.uint8).flatten(-2)


def _unpack3(packed: Tensor) -> Tensor:
    bytes_ = torch.unflatten(packed.int(), -1, (-1, 3))
    numbers = (bytes_ << torch.arange(0, 24, 8, device=packed.device)).sum(-1, keepdim=True)
    return (numbers >> torch.arange(0, 24, 3, device=packed.device) & 7).to(torch.uint8).flatten(-2)


_PACK: dict[int, Callable[[Tensor], Tensor]] = {3: _pack3, 4: _pack4}
_UNPACK: dict[int, Callable[[Tensor], Tensor]] = {3: _unpack3, 4: _unpack4}


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
