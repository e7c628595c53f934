"""Adapters in an engine: updates that some rows of a pass get and others do not, over one copy of the weights.

    LoRA   y = W x + b + B A x           the scale is in B            (Hu et al. 2021, section 4.1)
    DoRA   y = f (W x + B A x) + b       f = m / |W + B A|, by row    (Liu et al. 2024, eq. 5)

Legend: N rows, K inputs, M outputs of matrices that are joined to one product, R their ranks together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Place = Literal["qkv", "o", "up", "down"]


@dataclass(frozen=True)
class LowRankUpdate:
    """a_rk (R, K), b_mr (M, R). Of DoRA also factor_m, and the bias_m that the product adds (None: none)."""

    a_rk: Tensor
    b_mr: Tensor
    factor_m: Tensor | None = None
    bias_m: Tensor | None = None

    def of(self, x_nk: Tensor, out_nm: Tensor) -> Tensor:
        """What the product `out_nm` of `x_nk` becomes."""
        out_nm = out_nm + F.linear(F.linear(x_nk.float(), self.a_rk), self.b_mr)
        if self.factor_m is None:
            return out_nm
        return self.factor_m * out_nm + (1 - self.factor_m) * (0.0 if self.bias_m is None else self.bias_m)


Adapter = Sequence[Mapping[Place, LowRankUpdate]]  # by layer


def joined_update(parts: Sequence[LowRankUpdate | int]) -> LowRankUpdate:
    """The updates of matrices that one product joins, one under another; a number stands for so many outputs of a
    matrix that has none."""
    updates = [part for part in parts if isinstance(part, LowRankUpdate)]
    like = updates[0].b_mr
    blocks = [part.b_mr if isinstance(part, LowRankUpdate) else like.new_zeros(part, 0) for part in parts]
    ones = [like.new_ones(len(block)) for block in blocks]
    zeros = [like.new_zeros(len(block)) for block in blocks]
    factors, biases = list(ones), list(zeros)
    for index, part in enumerate(parts):
        if isinstance(part, LowRankUpdate):
            factors[index] = ones[index] if part.factor_m is None else part.factor_m
            biases[index] = zeros[index] if part.bias_m is None else part.bias_m
    has_factor = any(update.factor_m is not None for update in updates)
    return LowRankUpdate(
        torch.cat([update.a_rk for update in updates]),
        torch.block_diag(*blocks),  # type: ignore[no-untyped-call]
        torch.cat(factors) if has_factor else None,
        torch.cat(biases) if has_factor else None,
    )
