"""Integers in two parts hold 16 bits of the inputs: every way to multiply is the readable form, tall or not."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.quantization import products
from llm_journey.quantization.formats import quantize_int8
from llm_journey.quantization.products import Int8Product, two_codes


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.floats(1e-6, 1e6), st.integers(0, 2**31))
def test_two_codes_hold_sixteen_bits(rows: int, width: int, size: float, seed: int) -> None:
    x_nk = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * size
    codes, scale_n1 = two_codes(x_nk)
    assert codes.abs().max() <= 127 and torch.equal(codes, codes.round())
    first_nk, second_nk = codes.chunk(2)
    back_nk = scale_n1 * (first_nk + second_nk / 254)
    step_n1 = x_nk.abs().amax(1, keepdim=True) / 127 / 254
    assert bool(((back_nk - x_nk).abs() <= 0.51 * step_n1 + 1e-6 * x_nk.abs()).all())


def test_a_row_of_zeros_stays_zero() -> None:
    product = Int8Product(quantize_int8(torch.randn(64, 32)))
    assert torch.equal(product(torch.zeros(8, 32)), torch.zeros(8, 64))


@pytest.mark.parametrize("rows", [1, 3, 4, 16, 96, 97])
@pytest.mark.parametrize("outputs", [96, 1024])
def test_every_way_is_the_readable_form(rows: int, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "TALL", 1000)  # so that a small matrix takes the tall one's way
    torch.manual_seed(rows)
    weight, bias_m = quantize_int8(torch.randn(outputs, 64)), torch.randn(outputs)
    product = Int8Product(weight, bias_m)
    x_nk = torch.randn(rows, 64) * torch.logspace(-2, 2, rows)[:, None]
    wanted_nm = (x_nk.double() @ weight.dequantize().double().T).float()
    error = (product(x_nk) - bias_m - wanted_nm).norm(dim=1) / wanted_nm.norm(dim=1)
    in_integers = products._has_vnni() and (outputs >= 1000 or rows > products.FEW_ROWS_INT8) and rows <= 96
    assert float(error.max()) < (2e-4 if in_integers else 1e-2)
