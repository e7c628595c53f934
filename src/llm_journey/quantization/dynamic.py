"""Blockwise 8-bit codes of a dynamic tree (Dettmers et al. 2022, section 2.1): small numbers keep their precision.

Equal to bitsandbytes' map and codes; what NF4's second quantization and 8-bit optimizer state are made of.
"""

import functools

import torch
from torch import Tensor

BLOCK = 256


@functools.cache
def dynamic_points(*, signed: bool = True) -> Tensor:
    """The dynamic tree's 256 numbers, rising, in [-1, 1] or [0, 1]: midpoints of 2^e even steps (2^(e + 1) where no
    bit is for the sign) in [0.1, 1], times 10^(e - 6)."""
    magnitudes = []
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (exponent + (not signed)) + 1, dtype=torch.float32)
        magnitudes.append(10.0 ** (exponent - 6) * (edges[:-1] + edges[1:]) / 2)
    positive = torch.cat(magnitudes)
    ends = torch.tensor([0.0, 1.0])
    return torch.cat((-positive, positive, ends) if signed else (positive, ends)).sort().values


def quantize_dynamic(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """(codes uint8 of the length of `values`, absmax float32 of each block of 256) of a vector."""
    blocks = in_blocks(values, BLOCK)
    absmax = blocks.abs().amax(1)
    codes = nearest(blocks / torch.where(absmax > 0, absmax, 1.0)[:, None], dynamic_points(signed=signed))
    return codes.flatten()[: len(values)], absmax


def dequantize_dynamic(codes: Tensor, absmax: Tensor, *, signed: bool) -> Tensor:
    """The numbers, float32, that codes stand for."""
    numbers = dynamic_points(signed=signed).to(codes.device)[codes.int()]
    return (in_blocks(numbers, BLOCK) * absmax[:, None]).flatten()[: len(codes)]


def in_blocks(values: Tensor, size: int) -> Tensor:
    """(blocks, size), the last one filled up with zeros."""
    return torch.nn.functional.pad(values, (0, -len(values) % size)).view(-1, size)


def nearest(values: Tensor, points: Tensor) -> Tensor:
    """uint8 index of the nearest of some rising points."""
    found = points.to(values.device)
    return torch.bucketize(values, (found[:-1] + found[1:]) / 2).to(torch.uint8)
