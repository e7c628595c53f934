"""GPTQ: codes chosen column by column, each column's error made good by those still to come (Frantar et al. 2023).

What a linear layer should keep is not its weights but its outputs on real inputs: minimise |X W^T - X Q^T|^2 over Q on
the grid. With H = 2 X^T X, the columns not yet rounded answer an error in column j by (equations 2 and 3)

    e = (w_j - q_j) / [H^-1]_jj        W[:, j:] -= e H^-1[j, j:]

where H is that of the columns still to come. `gptq_by_equations` is that, written out; `gptq` takes all the rows of
H^-1 that will be needed from one Cholesky factor (section 3.3, step 3) and applies updates to far columns a block at a
time (step 2). tests/compression/test_gptq.py: both give the same codes.

A group's scale is fixed when its first column is reached, from the columns as corrected by then. With `act_order` the
columns with the largest inputs go first; groups then keep the scale of the original weights, so that each stays
together in the file. Legend: N outputs, K inputs, G groups.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_journey.core.errors import JourneyError
from llm_journey.quantization.formats import Int4Weight, check_groups, checked, group_grid, in_groups, nearest_code
from llm_journey.quantization.scheme import Scheme

# Added to H's diagonal, as a share of its mean (section 3.3, step 3): H from few inputs has directions without any.
DAMPING = 0.01
_BLOCK = 128  # a multiple of every group size
_TRIES = 4


def gptq(weight_nk: Tensor, hessian_kk: Tensor, scheme: Scheme, *, act_order: bool = False) -> Int4Weight:
    """The matrix in the scheme's groups. hessian_kk: X^T X of the layer's inputs, any factor before it.

    Raises BadInputError where K is no multiple of 32, JourneyError where the inputs are not finite.
    """
    columns = _Columns.of(weight_nk, hessian_kk, scheme, act_order)
    upper_kk = _factor(columns.hessian_kk)
    weight, num_columns = columns.weight_nk, columns.weight_nk.shape[1]
    for begin in range(0, num_columns, _BLOCK):
        end = min(begin + _BLOCK, num_columns)
        errors_nb = torch.empty_like(weight[:, begin:end])
        for j in range(begin, end):
            error_n = (weight[:, j] - columns.round(j)) / upper_kk[j, j]
            weight[:, j:end] -= torch.outer(error_n, upper_kk[j, j:end])
            errors_nb[:, j - begin] = error_n
        weight[:, end:] -= errors_nb @ upper_kk[begin:end, end:]
    return columns.result()


def gptq_by_equations(weight_nk: Tensor, hessian_kk: Tensor, scheme: Scheme, *, act_order: bool = False) -> Int4Weight:
    """The readable form of `gptq`: the inverse over the columns still to come is kept up to date, K^3 for each."""
    columns = _Columns.of(weight_nk, hessian_kk, scheme, act_order)
    inverse_kk = torch.linalg.inv(columns.hessian_kk)
    weight = columns.weight_nk
    for j in range(weight.shape[1]):
        error_n = (weight[:, j] - columns.round(j)) / inverse_kk[j, j]
        weight[:, j:] -= torch.outer(error_n, inverse_kk[j, j:])
        # Equation 3: the inverse of H without row and column j.
        inverse_kk = inverse_kk - torch.outer(inverse_kk[:, j], inverse_kk[j]) / inverse_kk[j, j]
    return columns.result()


@dataclass
class _Columns:
    """The columns in the order in which they are rounded, in float64 as H is, and what has been chosen so far."""

    weight_nk: Tensor
    hessian_kk: Tensor
    scheme: Scheme
    order: Tensor
    scale_ng: Tensor
    minimum_ng: Tensor
    codes_nk: Tensor
    static: bool

    @classmethod
    def of(cls, weight_nk: Tensor, hessian_kk: Tensor, scheme: Scheme, act_order: bool) -> "_Columns":
        weight_nk = checked(weight_nk).double()
        num_columns = weight_nk.shape[1]
        check_groups(num_columns, scheme.group_size)
        hessian_kk = _damped(hessian_kk)
        grids = [
            group_grid(part_ngk, scheme.bits, scheme.symmetric) for part_ngk in in_groups(weight_nk, scheme.group_size)
        ]
        scale_ng, minimum_ng = (torch.cat(part, 1) for part in zip(*grids, strict=True))
        order = torch.arange(num_columns, device=weight_nk.device)
        if act_order:
            order = hessian_kk.diagonal().argsort(descending=True, stable=True)
        codes_nk = torch.zeros_like(weight_nk, dtype=torch.uint8)
        ordered = weight_nk[:, order].clone(), hessian_kk[order][:, order].clone()
        return cls(*ordered, scheme, order, scale_ng, minimum_ng, codes_nk, act_order)

    def round(self, j: int) -> Tensor:
        """Choose the codes of the j-th column in order; returns the weights (N,) that they stand for."""
        size, bits = self.scheme.group_size, self.scheme.bits
        place = int(self.order[j])
        group = place // size
        if not self.static and j % size == 0:
            current_n1k = self.weight_nk[:, None, j : j + size]
            scale_n1, minimum_n1 = group_grid(current_n1k, bits, self.scheme.symmetric)
            self.scale_ng[:, group], self.minimum_ng[:, group] = scale_n1[:, 0], minimum_n1[:, 0]
        scale_n, minimum_n = self.scale_ng[:, group], self.minimum_ng[:, group]
        codes_n = nearest_code(self.weight_nk[:, j], scale_n, minimum_n, bits)
        self.codes_nk[:, place] = codes_n.to(torch.uint8)
        return codes_n * scale_n + minimum_n

    def result(self) -> Int4Weight:
        scheme = self.scheme
        scale_ng, minimum_ng = self.scale_ng.float(), self.minimum_ng.float()
        return Int4Weight(self.codes_nk, scale_ng, minimum_ng, scheme.group_size, scheme.bits, scheme.symmetric)


def _damped(hessian_kk: Tensor) -> Tensor:
    """H in float64 with its diagonal raised; an input that never came counts as an average one, on its own."""
    hessian_kk = hessian_kk.detach().double().clone()
    diagonal_k = hessian_kk.diagonal()
    if not bool(torch.isfinite(hessian_kk).all()):
        raise JourneyError("a layer's inputs on the calibration text are not finite: the model's weights are damaged")
    mean = float(diagonal_k.mean()) or 1.0
    diagonal_k[diagonal_k == 0] = mean
    diagonal_k += DAMPING * mean
    return hessian_kk


def _factor(hessian_kk: Tensor) -> Tensor:
    """The upper Cholesky factor of H^-1: its row j is that of the columns from j on, over the diagonal's root."""
    mean = hessian_kk.diagonal().mean()
    for attempt in range(_TRIES):
        raised_kk = hessian_kk.clone()
        raised_kk.diagonal().add_(mean * DAMPING * (10**attempt - 1))
        lower_kk, failed = torch.linalg.cholesky_ex(raised_kk)
        if not int(failed):
            upper_kk: Tensor
            upper_kk, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_kk), upper=True)
            if not int(failed):
                return upper_kk
    raise JourneyError("the calibration inputs of a layer are too much alike to invert; give more text")
