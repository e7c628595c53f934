"""NF4 beside bitsandbytes', and beside the formula of its paper."""

from typing import Any

import pytest
import torch

from llm_journey.quantization import nf4
from llm_journey.quantization.dynamic import dynamic_points
from llm_journey.quantization.nf4 import Nf4Weight, quantize_nf4


@pytest.fixture(scope="module")
def theirs() -> Any:
    return pytest.importorskip("bitsandbytes.functional")


def test_code_points_are_the_quantiles_of_the_paper() -> None:
    torch.testing.assert_close(nf4.code_points().double(), nf4.quantile_points(), atol=3e-7, rtol=0)
    assert nf4.code_points().tolist() == sorted(nf4.code_points().tolist())
    assert float(nf4.code_points()[7]) == 0


def test_code_points_are_bitsandbytes(theirs: Any) -> None:
    assert torch.equal(nf4.code_points(), theirs.get_4bit_type("nf4", device="cpu"))
    for signed in (True, False):
        assert torch.equal(dynamic_points(signed=signed), theirs.create_dynamic_map(signed=signed))


@pytest.mark.parametrize("shape", [(48, 128), (7, 64), (300, 192)])
@pytest.mark.parametrize("scale", [1e-4, 0.05, 30.0])
def test_codes_and_weights_are_bitsandbytes(theirs: Any, shape: tuple[int, int], scale: float) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])) * scale
    packed, state = theirs.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    ours = quantize_nf4(weight)
    codes = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), 1).view(shape)
    assert torch.equal(ours.codes_nk, codes)
    torch.testing.assert_close(ours.largest, state.state2.absmax, atol=0, rtol=1e-6)
    torch.testing.assert_close(ours.offset[0], state.offset, atol=0, rtol=1e-6)
    # They multiply by 1 / largest where we divide: an absmax halfway between two of its codes may go either way.
    apart = (ours.absmax.int() - state.absmax.int()).abs()
    assert int(apart.max()) <= 1
    assert float((apart > 0).float().mean()) < 0.01
    # From the same codes the same weights.
    same = Nf4Weight(codes, state.absmax, state.state2.absmax, state.offset.view(1))
    torch.testing.assert_close(same.dequantize(), theirs.dequantize_4bit(packed, state), atol=0, rtol=1e-6)


@pytest.mark.parametrize("shape", [(5, 33), (1, 1), (3, 64)])
def test_a_last_block_may_be_shorter(shape: tuple[int, int]) -> None:
    """Where bitsandbytes is no judge (its CPU form misplaces blocks that cross a row's end): by hand."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    found = quantize_nf4(weight)
    numbers = nf4.code_points()[found.codes_nk.flatten().int()]
    scales = found.block_scales()
    by_hand = torch.tensor([float(number * scales[index // 64]) for index, number in enumerate(numbers)])
    torch.testing.assert_close(found.dequantize().flatten(), by_hand)
    # The widest gap between code points is 0.304 of the absmax, and the absmax itself is rounded.
    assert float((found.dequantize() - weight).abs().max()) < 0.17 * float(weight.abs().max())


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert not quantize_nf4(torch.zeros(4, 64)).dequantize().any()
