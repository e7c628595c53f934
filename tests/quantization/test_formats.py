"""Each format: what its codes say lies within half a step of the weight, and storing it loses nothing more."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.quantization.formats import DynamicInt8Weight, Int4Weight, Int8Weight, quantize_int4, quantize_int8
from llm_journey.quantization.scheme import Scheme, joined, layout, num_bytes, quantize, restored, scheme_of, stored

SCHEMES = [
    Scheme(format="int8"),
    Scheme(format="dynamic-int8"),
    *(Scheme(bits=bits, group_size=group, symmetric=same) for bits in (3, 4) for group in (32, 128) for same in (0, 1)),
    Scheme(format="nf4"),
]


def name_of(value: Any) -> str:
    return value.describe() if isinstance(value, Scheme) else str(value)


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    """(N, K): rows of unlike sizes and centres, some of them constant or zero."""
    rows, groups = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))
    size = 10.0 ** torch.randint(-3, 3, (rows, 1), generator=generator)
    centre = torch.randn(rows, 1, generator=generator) * draw(st.sampled_from([0.0, 1.0, 5.0]))
    weight = size * (torch.randn(rows, 128 * groups, generator=generator) + centre)
    if draw(st.booleans()):
        weight[0] = draw(st.sampled_from([0.0, 0.5, -3.25]))
    return weight


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_int8_is_within_half_a_step(weight: torch.Tensor) -> None:
    found = quantize_int8(weight)
    assert found.codes_nk.abs().max() <= 127
    error = (found.dequantize() - weight).abs()
    assert bool((error <= found.scale_n[:, None] / 2 * (1 + 1e-3)).all())
    # 127 is reached in every row that is not zero: no code is wasted.
    assert bool(((found.codes_nk.abs().amax(1) == 127) | (found.scale_n == 0)).all())


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from([3, 4]), st.sampled_from([32, 64, 128]), st.booleans())
def test_groups_are_within_half_a_step_of_their_grid(
    weight: torch.Tensor, bits: int, group: int, symmetric: bool
) -> None:
    found = quantize_int4(weight, group, bits=bits, symmetric=symmetric)
    assert int(found.codes_nk.max()) < 2**bits
    scale = found.scale_ng.abs().repeat_interleave(group, 1)
    # float16 keeps 11 bits of a grid's ends; below 6e-5 its steps are 6e-8.
    rounding = weight.abs().unflatten(1, (-1, group)).amax(-1).repeat_interleave(group, 1) * 2**-10 + 2**bits * 6e-8
    step = scale * (1.0 if symmetric else 0.5)  # the symmetric grid ends one step short on its other side
    assert bool(((found.dequantize() - weight).abs() <= step + rounding).all())
    inner = found.codes_nk < 2**bits - 1
    assert bool(((found.dequantize() - weight).abs() <= scale / 2 + rounding)[inner].all())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_a_matrix_on_the_grid_comes_back_as_it_was(bits: int, symmetric: bool) -> None:
    """As a pulled GGUF file's does: both ends used, float16 scales."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, (8, 96), generator=generator).to(torch.uint8)
    codes[:, ::32], codes[:, 1::32] = 0, 2**bits - 1
    scale = (torch.rand(8, 3, generator=generator) + 0.1).half().float() * 0.02
    scale = scale.half().float()
    minimum = -(2 ** (bits - 1)) * scale if symmetric else (torch.randn(8, 3, generator=generator) * 0.1).half().float()
    weight = Int4Weight(codes, scale, minimum, 32, bits, symmetric)
    found = quantize_int4(weight.dequantize(), 32, bits=bits, symmetric=symmetric)
    torch.testing.assert_close(found.dequantize(), weight.dequantize(), atol=0, rtol=0)
    assert torch.equal(found.codes_nk, codes)


@pytest.mark.parametrize("scheme", SCHEMES, ids=name_of)
@pytest.mark.parametrize("shape", [(6, 128), (1, 256), (3, 192)])
def test_stored_and_read_back_is_the_same_weight(scheme: Scheme, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.05
    made = quantize(weight, scheme)
    tensors = stored(made)
    expected = layout(scheme, shape)
    assert {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()} == dict(expected)
    again = restored(scheme, tensors, shape)
    assert type(again) is type(made)
    assert scheme_of(again) == scheme
    assert torch.equal(again.dequantize(), made.dequantize())


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        (Scheme(format="int8"), 8 + 32 / 512),
        (Scheme(), 5.0),
        (Scheme(symmetric=True, group_size=128), 4.125),
        (Scheme(bits=3, group_size=64), 3.5),
        (Scheme(format="nf4"), 4 + 8 / 64 + 32 / (64 * 256) + 32 / (512 * 512)),
    ],
    ids=name_of,
)
def test_bits_a_weight(scheme: Scheme, bits: float) -> None:
    made = quantize(torch.randn(512, 512), scheme)
    assert 8 * num_bytes(made) / 512**2 == pytest.approx(bits, rel=1e-9)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("columns", "group"), [(576, 128), (96, 64), (32, 128)])
def test_a_last_group_may_be_shorter(columns: int, group: int, symmetric: bool) -> None:
    """Each group alone, and all together, are the same codes and weights."""
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(2))
    found = quantize_int4(weight, group, symmetric=symmetric)
    assert found.scale_ng.shape == (5, math.ceil(columns / group))
    parts = weight.split(group, 1)
    assert parts[-1].shape[1] in (columns % group, group)
    alone = [quantize_int4(part, part.shape[1], symmetric=symmetric) for part in parts]
    assert torch.equal(found.codes_nk, torch.cat([part.codes_nk for part in alone], 1))
    assert torch.equal(found.scale_ng, torch.cat([part.scale_ng for part in alone], 1))
    assert torch.equal(found.dequantize(), torch.cat([part.dequantize() for part in alone], 1))


def test_three_bit_codes_lie_in_three_bytes() -> None:
    """Eight codes written out by hand: the first in the lowest bits."""
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0] * 4], dtype=torch.uint8)
    packed = stored(Int4Weight(codes, torch.ones(1, 1), torch.zeros(1, 1), 32, 3))["codes"]
    number = sum(code << 3 * place for place, code in enumerate([1, 2, 3, 4, 5, 6, 7, 0]))
    assert packed[0, :3].tolist() == list(number.to_bytes(3, "little"))


@pytest.mark.parametrize("scheme", SCHEMES, ids=name_of)
def test_joined_is_each_under_the_other(scheme: Scheme) -> None:
    parts = [quantize(torch.randn(rows, 128), scheme) for rows in (4, 2)]
    both = joined(parts)
    if scheme.format == "nf4":
        assert both is None
    else:
        assert both is not None
        assert torch.equal(both.dequantize(), torch.cat([part.dequantize() for part in parts]))


def test_unlike_schemes_are_not_joined() -> None:
    weight = torch.randn(4, 128)
    assert joined([quantize(weight, Scheme()), quantize(weight, Scheme(group_size=64))]) is None
    assert joined([quantize(weight, Scheme(format="int8")), quantize(weight, Scheme(format="dynamic-int8"))]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_damaged_matrix_is_refused(bad: float) -> None:
    weight = torch.ones(2, 64)
    weight[1, 3] = bad
    for scheme in SCHEMES:
        if scheme.group_size <= 64:
            with pytest.raises(BadInputError, match="NaN or infinity"):
                quantize(weight, scheme)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BadInputError, match="48 inputs are no multiple of 32"):
        quantize_int4(torch.ones(2, 48))
    with pytest.raises(BadInputError, match="float16"):
        quantize_int4(torch.full((2, 32), 1e6))
    with pytest.raises(ValueError, match="bits must be one of 3, 4"):
        Scheme(bits=5)
    with pytest.raises(ValueError, match="group_size must be one of 32, 64, 128"):
        Scheme(group_size=48)


def test_dynamic_weights_are_int8s() -> None:
    weight = torch.randn(4, 64)
    plain, dynamic = quantize(weight, Scheme(format="int8")), quantize(weight, Scheme(format="dynamic-int8"))
    assert isinstance(dynamic, DynamicInt8Weight)
    assert isinstance(plain, Int8Weight)
    assert not isinstance(plain, DynamicInt8Weight)
    assert torch.equal(plain.dequantize(), dynamic.dequantize())
