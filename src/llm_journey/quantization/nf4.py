"""NF4, the 4-bit NormalFloat, with double quantization (Dettmers et al. 2023, "QLoRA", section 3 and appendix E).

    w = absmax * NF4[q]                      one absmax for each 64 weights, row after row
    absmax = offset + largest * DYNAMIC[a]   the absmaxes less their mean, 8 bits each, one `largest` for each 256

NF4's sixteen numbers are quantiles of a normal distribution, scaled to [-1, 1], with an exact zero: a network's weights
are about normal, so each code is used about as often. DYNAMIC is the 8-bit dynamic tree of Dettmers et al. 2022
(section 1.3): a sign, a power of ten by the number of leading zeros, the rest a linear fraction.
tests/quantization/test_nf4.py: code points, codes and weights are bitsandbytes'. PyTorch ships no kernel for it.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_journey.quantization.dynamic import dynamic_points, in_blocks, nearest
from llm_journey.quantization.formats import checked

BLOCK, ABSMAX_BLOCK = 64, 256
# Appendix E's end of the quantiles: halfway between those that 15 and 16 even steps would begin with.
_OUTERMOST = (1 - 1 / 32 + 1 - 1 / 30) / 2
_CODE_POINTS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclass(frozen=True)
class Nf4Weight:
    """codes_nk: uint8 (N, K), each 0 to 15. absmax: uint8, one a block. largest: float32, one for each 256 of these.
    offset: float32 (1,)."""

    codes_nk: Tensor
    absmax: Tensor
    largest: Tensor
    offset: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes_nk.shape[0], self.codes_nk.shape[1]

    def dequantize(self) -> Tensor:
        """(N, K) float32."""
        return scaled(code_points().to(self.codes_nk.device)[self.codes_nk.int()], self.block_scales())

    def block_scales(self) -> Tensor:
        """The absmax of each block, float32."""
        largest = self.largest.repeat_interleave(ABSMAX_BLOCK)[: len(self.absmax)]
        return self.offset + largest * dynamic_points().to(self.absmax.device)[self.absmax.int()]


def scaled(numbers_nk: Tensor, absmax: Tensor) -> Tensor:
    """(N, K): the numbers that codes stand for, times the absmax of the block that each lies in."""
    if numbers_nk.numel() % BLOCK == 0:
        return (numbers_nk.reshape(-1, BLOCK) * absmax[:, None]).view(numbers_nk.shape)
    return numbers_nk * absmax.repeat_interleave(BLOCK)[: numbers_nk.numel()].view(numbers_nk.shape)


def quantize_nf4(weight_nk: Tensor) -> Nf4Weight:
    """To the nearest code point, by blocks of 64 in the matrix read row after row; the last block may be shorter."""
    weight_nk = checked(weight_nk)
    blocks = in_blocks(weight_nk.flatten(), BLOCK)
    absmax = blocks.abs().amax(1)
    codes = nearest(blocks / torch.where(absmax > 0, absmax, 1.0)[:, None], code_points())
    offset = absmax.mean()[None]
    rest = in_blocks(absmax - offset, ABSMAX_BLOCK)
    largest = rest.abs().amax(1)
    absmax_codes = nearest(rest / torch.where(largest > 0, largest, 1.0)[:, None], dynamic_points())
    codes_nk = codes.flatten()[: weight_nk.numel()].view(weight_nk.shape)
    return Nf4Weight(codes_nk, absmax_codes.flatten()[: len(absmax)], largest, offset)


@functools.cache
def code_points() -> Tensor:
    """NF4's 16 numbers, rising, as appendix E prints them; `quantile_points` is the formula behind them."""
    return torch.tensor(_CODE_POINTS)


def quantile_points() -> Tensor:
    """8 quantiles of a normal distribution below zero, zero, 7 above, scaled to [-1, 1] (appendix E's equation 4).

    In float64; the printed numbers came out of float32 arithmetic, and differ by 2e-7.
    """
    above = torch.special.ndtri(torch.linspace(_OUTERMOST, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(_OUTERMOST, 0.5, 8, dtype=torch.float64)[:-1])
    points = torch.cat((below, torch.zeros(1, dtype=torch.float64), above.flip(0)))
    return points / points.abs().max()
