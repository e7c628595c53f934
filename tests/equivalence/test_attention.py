"""Written-out = fused attention; our layer and block = PyTorch's own.

Tolerances: float64 sums of a few dozen products differ by some 1e-15 between orders of addition, so 1e-12 leaves room
for nothing but rounding. In float32 one rounding is 6e-8 of values of about one; 2e-5 covers sums of up to 80 of them
and the kernel's own exponential.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from llm_journey.model.attention import Attention, attention_mask, fused_attention, written_out_attention
from llm_journey.model.blocks import Block
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5}
DTYPES = list(TOLERANCES)


def _random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def _assert_same(
    num_kv_heads: int, repeats: int, queries: int, keys: int, width: int, mask: Tensor | None, dtype: torch.dtype
) -> None:
    """Values and all three gradients of the two forms agree."""
    batch = 2
    inputs = (
        _random(batch, num_kv_heads * repeats, queries, width, dtype=dtype, seed=1),
        _random(batch, num_kv_heads, keys, width, dtype=dtype, seed=2),
        _random(batch, num_kv_heads, keys, width, dtype=dtype, seed=3),
    )
    weights = _random(batch, num_kv_heads * repeats, queries, width, dtype=dtype, seed=4).detach()
    found = []
    for attend in (written_out_attention, fused_attention):
        out = attend(*inputs, mask)
        assert out.shape == (batch, num_kv_heads * repeats, queries, width) and bool(out.isfinite().all())
        found.append((out, *torch.autograd.grad((out * weights).sum(), inputs)))
    for written_out, fused in zip(*found, strict=True):
        assert bool(fused.isfinite().all())
        torch.testing.assert_close(fused, written_out, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_kv_heads", "repeats"), [(4, 1), (2, 3), (1, 6)], ids=["multi-head", "grouped", "multi-query"]
)
def test_plain_causal(num_kv_heads: int, repeats: int, dtype: torch.dtype) -> None:
    for length, width in ((1, 8), (2, 4), (17, 6), (33, 16), (80, 8)):
        _assert_same(num_kv_heads, repeats, length, length, width, None, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_mask_the_model_makes(dtype: torch.dtype, data: st.DataObject) -> None:
    """Padding left and right, packed documents, a window, cached keys: alone and together."""
    keys = data.draw(st.integers(1, 19), "keys")
    queries = data.draw(st.integers(1, keys), "queries")
    segments = padding = None
    if data.draw(st.booleans(), "packed") and queries == keys:
        cuts = data.draw(st.lists(st.integers(0, 3), min_size=2 * keys, max_size=2 * keys))
        segments = torch.tensor(cuts).view(2, keys).sort(-1).values
    if data.draw(st.booleans(), "padded"):
        lengths = torch.tensor(data.draw(st.lists(st.integers(0, keys), min_size=2, max_size=2)))
        padding = torch.arange(keys) < lengths[:, None]
        padding = padding.flip(-1) if data.draw(st.booleans(), "left") else padding
    window = data.draw(st.none() | st.integers(1, keys + 2), "window")
    mask = attention_mask(
        queries, keys, torch.device("cpu"), sliding_window=window, segments_bt=segments, padding_mask_bs=padding
    )
    heads, repeats = data.draw(st.sampled_from([(3, 1), (2, 2), (1, 5)]))
    _assert_same(heads, repeats, queries, keys, data.draw(st.sampled_from([2, 6, 8])), mask, dtype)


def test_a_query_that_may_look_nowhere_yields_zeros_and_no_gradient() -> None:
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[..., 2, :] = True
    q, k, v = (_random(1, 2, 3, 4, dtype=torch.float64, seed=seed) for seed in range(3))
    for attend in (written_out_attention, fused_attention):
        out = attend(q, k, v, mask)
        assert not out[:, :, :2].any() and bool(out[:, :, 2].any())
        (gradient,) = torch.autograd.grad(out.square().sum(), q)
        assert not gradient[:, :, :2].any() and bool(gradient[:, :, 2].any())


def test_mask_rules_one_by_one() -> None:
    """Every rule against its sentence, position by position."""
    segments = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 2, 2, 2]])
    padding = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]).bool()
    device = torch.device("cpu")
    for window in (None, 1, 2, 3, 6, 9):
        mask = attention_mask(6, 6, device, sliding_window=window, segments_bt=segments, padding_mask_bs=padding)
        assert mask is not None and mask.shape == (2, 1, 6, 6)
        for row in range(2):
            for query in range(6):
                for key in range(6):
                    allowed = (
                        key <= query
                        and (window is None or query - key < window)
                        and segments[row, query] == segments[row, key]
                        and bool(padding[row, key])
                    )
                    assert bool(mask[row, 0, query, key]) == allowed
    assert attention_mask(6, 6, device) is None and attention_mask(6, 6, device, sliding_window=6) is None
    one_query = attention_mask(1, 6, device, sliding_window=2)
    assert one_query is not None and one_query[0, 0, 0].tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("choices", [{}, {"positions": "none", "qk_norm": True}, {"sliding_window": 3, "bias": True}])
def test_whole_decoders_agree(num_kv_heads: int, choices: dict[str, object]) -> None:
    """The same weights through both forms: logits and every gradient (norms and rotations work in float32: 2e-5)."""
    shape = {"vocab_size": 31, "width": 24, "num_layers": 2, "num_heads": 4, "context": 16}
    config = TransformerConfig(**shape, num_kv_heads=num_kv_heads, **choices)  # type: ignore[arg-type]
    torch.manual_seed(0)
    fused, written_out = Decoder(config), Decoder(config, attention="written_out")
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.normal_(0, 0.3)
    written_out.load_state_dict(fused.state_dict())
    ids = torch.randint(31, (3, 16))
    logits = [model(ids) for model in (fused, written_out)]
    torch.testing.assert_close(logits[0], logits[1], atol=2e-5, rtol=2e-5)
    for logits_btv in logits:
        logits_btv.square().mean().backward()
    for ours, theirs in zip(fused.parameters(), written_out.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-5, rtol=2e-4)


def _copy_into_multihead(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    assert theirs.in_proj_weight is not None and theirs.in_proj_bias is not None
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.weight.copy_(ours.o.weight)
        theirs.out_proj.bias.copy_(ours.o.bias)


@pytest.mark.parametrize("implementation", ["fused", "written_out"])
def test_layer_is_torch_multihead_attention(implementation: str) -> None:
    config = TransformerConfig(width=24, num_heads=4, bias=True, positions="none")
    torch.manual_seed(0)
    ours = Attention(config, 0, implementation).double()
    theirs = nn.MultiheadAttention(24, 4, bias=True, batch_first=True).double()
    nn.init.normal_(ours.q.bias)
    nn.init.normal_(ours.v.bias)
    _copy_into_multihead(ours, theirs)
    x = torch.randn(3, 11, 24, dtype=torch.float64)
    forbidden = nn.Transformer.generate_square_subsequent_mask(11, dtype=torch.float64)
    expected, _ = theirs(x, x, x, attn_mask=forbidden, is_causal=True, need_weights=False)
    torch.testing.assert_close(ours(x, None, None), expected, atol=1e-12, rtol=1e-12)

    real = torch.arange(11) < torch.tensor([11, 7, 2])[:, None]
    expected, _ = theirs(x, x, x, attn_mask=forbidden, key_padding_mask=(~real).double().masked_fill(~real, -torch.inf))
    mask = attention_mask(11, 11, x.device, padding_mask_bs=real)
    torch.testing.assert_close(ours(x, None, mask), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_block_is_torch_encoder_layer(placement: str) -> None:
    """LayerNorm, biases and GELU: the block of GPT-2 (pre) and of Vaswani et al. (post)."""
    config = TransformerConfig(
        width=24,
        num_heads=3,
        mlp_width=40,
        bias=True,
        positions="none",
        norm="layernorm",
        norm_epsilon=1e-5,
        norm_placement=placement,  # type: ignore[arg-type]
        mlp="gelu",
    )
    torch.manual_seed(0)
    ours = Block(config, 0).double().train()
    theirs = nn.TransformerEncoderLayer(
        24, 3, 40, dropout=0.0, activation="gelu", batch_first=True, norm_first=placement == "pre", layer_norm_eps=1e-5
    ).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0.0, 0.4)
    assert isinstance(ours.attention, Attention)
    _copy_into_multihead(ours.attention, theirs.self_attn)
    pairs = {theirs.norm1: ours.attention_norm, theirs.norm2: ours.mlp_norm}
    pairs |= {theirs.linear1: ours.mlp.up, theirs.linear2: ours.mlp.down}
    for target, source in pairs.items():
        target.load_state_dict(source.state_dict())
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    expected = theirs(
        x, src_mask=nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64), is_causal=True
    )
    torch.testing.assert_close(ours(x, None, None), expected, atol=1e-12, rtol=1e-12)
