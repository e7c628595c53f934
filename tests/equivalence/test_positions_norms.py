"""Our norms = PyTorch's, our rotation = transformers', our sinusoids = the paper's formula.

Statistics of rmsnorm are taken in float32 by design, so 1e-6 (about ten roundings of values near one) is the tolerance
there; LayerNorm is exact to float64's 1e-13. The rotation is transformers' bit for bit.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llm_journey.core.errors import BadInputError
from llm_journey.model.norms import LayerNorm, RMSNorm, make_norm
from llm_journey.model.positions import apply_rotary, rotary_tables, sinusoidal_table


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 40),
    epsilon=st.sampled_from([1e-8, 1e-6, 1e-5, 1e-2]),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
    seed=st.integers(0, 999),
)
def test_rmsnorm(width: int, epsilon: float, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    ours, theirs = RMSNorm(width, epsilon), nn.RMSNorm(width, eps=epsilon)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = (scale * torch.randn(3, 5, width)).requires_grad_()
    upstream = torch.randn(3, 5, width)
    for mine, other in zip(_with_gradients(ours, x, upstream), _with_gradients(theirs, x, upstream), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6 * max(1.0, float(other.detach().abs().max())))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rmsnorm_keeps_its_statistics_in_float32(dtype: torch.dtype) -> None:
    """Squares of 300 overflow float16 and lose most digits in bfloat16; the result must be that of float32, rounded."""
    x = torch.full((1, 64), 300.0, dtype=dtype)
    assert RMSNorm(64, 1e-6)(x).tolist() == [[1.0] * 64]


@pytest.mark.parametrize("bias", [True, False])
def test_layernorm(bias: bool) -> None:
    torch.manual_seed(1)
    for width in (1, 7, 32):
        ours, theirs = LayerNorm(width, 1e-5, bias).double(), nn.LayerNorm(width, eps=1e-5, bias=bias).double()
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.normal_()
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(4, 6, width, dtype=torch.float64, requires_grad=True)
        upstream = torch.randn_like(x)
        for mine, other in zip(_with_gradients(ours, x, upstream), _with_gradients(theirs, x, upstream), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-13)


def _with_gradients(norm: nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> list[torch.Tensor]:
    y = norm(x)
    return [y, *torch.autograd.grad((y * upstream).sum(), [x, *norm.parameters()])]


def test_unknown_norm_lists_the_known_ones() -> None:
    with pytest.raises(BadInputError, match="unknown norm 'batchnorm'; known: layernorm, rmsnorm"):
        make_norm("batchnorm", 8, 1e-6, False)


@pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0])
@pytest.mark.parametrize("head_width", [2, 8, 64])
def test_rotation_is_that_of_transformers(head_width: int, theta: float) -> None:
    """Tables and rotated heads, bit for bit, up to position 4,095: an angle there is off by 2e-4 if one bit is."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    torch.manual_seed(2)
    config = LlamaConfig(head_dim=head_width, rope_parameters={"rope_type": "default", "rope_theta": theta})
    positions = torch.cat((torch.arange(40), torch.arange(4080, 4096)))
    q, k = torch.randn(2, len(positions), 4, head_width), torch.randn(2, len(positions), 2, head_width)
    cos, sin = LlamaRotaryEmbedding(config)(q, positions[None])
    expected = apply_rotary_pos_emb(q.transpose(1, 2), k.transpose(1, 2), cos, sin, unsqueeze_dim=1)
    tables = [table[positions] for table in rotary_tables(4096, head_width, theta)]
    assert torch.equal(torch.cat((tables[0], tables[0]), dim=-1), cos[0])
    for ours, theirs in zip((apply_rotary(q, *tables), apply_rotary(k, *tables)), expected, strict=True):
        assert torch.equal(ours.transpose(1, 2), theirs)


def test_rotation_at_positions_of_each_row_s_own() -> None:
    torch.manual_seed(3)
    x = torch.randn(2, 5, 3, 8)
    cos, sin = rotary_tables(40, 8, 10_000.0)
    positions = torch.tensor([[0, 1, 2, 0, 1], [7, 8, 30, 31, 39]])
    together = apply_rotary(x, cos[positions], sin[positions])
    for row in range(2):
        alone = apply_rotary(x[row : row + 1], cos[positions[row]], sin[positions[row]])
        assert torch.equal(together[row], alone[0])


@settings(max_examples=25, deadline=None)
@given(first=st.integers(0, 60), second=st.integers(0, 60), shift=st.integers(0, 60))
def test_rotated_products_depend_on_distance_alone(first: int, second: int, shift: int) -> None:
    """Su et al. 2021, section 3.2; and a rotation changes no length. Angles up to 120 radians in float32: 2e-5."""
    torch.manual_seed(4)
    cos, sin = rotary_tables(121, 16, 10_000.0)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def at(x: torch.Tensor, position: int) -> torch.Tensor:
        return apply_rotary(x, cos[position : position + 1], sin[position : position + 1])

    near, far = ((at(q, first + by) * at(k, second + by)).sum() for by in (0, shift))
    torch.testing.assert_close(near, far, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(at(q, first).norm(), q.norm(), atol=1e-6, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(half=st.integers(1, 20), length=st.integers(1, 70))
def test_sinusoids_are_the_formula(half: int, length: int) -> None:
    """Vaswani et al. 2017, section 3.5, one number at a time in float64; angles up to 70 radians in float32: 1e-5."""
    width = 2 * half
    table = sinusoidal_table(length, width)
    assert table.shape == (length, width)
    for position in range(0, length, 7):
        for i in range(half):
            angle = position / 10_000 ** (2 * i / width)
            assert abs(float(table[position, 2 * i]) - math.sin(angle)) < 1e-5
            assert abs(float(table[position, 2 * i + 1]) - math.cos(angle)) < 1e-5
