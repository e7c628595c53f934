"""Bidirectional and cross-attention = torch.nn.MultiheadAttention; blocks and stacks = torch.nn's own.

All in float64, where sums of a few dozen products differ by some 1e-15 between orders of addition: 1e-12 leaves room
for nothing but rounding.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm_journey.model.attention import Attention, attention_mask
from llm_journey.model.blocks import Block
from llm_journey.model.config import TransformerConfig
from llm_journey.model.encoder import Encoder
from llm_journey.model.encoder_decoder import EncoderDecoder

WIDTH, HEADS, FEED_FORWARD = 24, 3, 40
SHAPE: dict[str, Any] = {
    "vocab_size": 31,
    "width": WIDTH,
    "num_heads": HEADS,
    "mlp_width": FEED_FORWARD,
    "context": 16,
    "bias": True,
    "norm": "layernorm",
    "norm_epsilon": 1e-5,
}
TORCH: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "layer_norm_eps": 1e-5}
SOURCE_REAL = torch.arange(11) < torch.tensor([11, 7, 2])[:, None]
TARGET_REAL = (torch.arange(9) < torch.tensor([9, 4, 6])[:, None]).flip(-1)  # padded on the left
TARGET_REAL[0] = True


def _config(**choices: Any) -> TransformerConfig:
    return TransformerConfig(**(SHAPE | {"positions": "none", "mlp": "gelu"} | choices))


def _random(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return module


def _copy_attention(ours: Attention, theirs: nn.MultiheadAttention) -> None:
    assert theirs.in_proj_weight is not None and theirs.in_proj_bias is not None
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.load_state_dict(ours.o.state_dict())


def _copy_block(ours: Block, theirs: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> None:
    pairs = {"norm1": ours.attention_norm, "linear1": ours.mlp.up, "linear2": ours.mlp.down}
    if ours.cross_attention is None or ours.cross_norm is None:
        pairs["norm2"] = ours.mlp_norm
    else:
        pairs |= {"norm2": ours.cross_norm, "norm3": ours.mlp_norm}
        _copy_attention(ours.cross_attention, theirs.multihead_attn)
    _copy_attention(ours.attention, theirs.self_attn)
    for name, source in pairs.items():
        getattr(theirs, name).load_state_dict(source.state_dict())


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def _causal(length: int) -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)


def _hidden_keys(real: Tensor) -> Tensor:
    return torch.zeros(real.shape, dtype=torch.float64).masked_fill(~real, -torch.inf)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("implementation", ["fused", "written_out"])
def test_bidirectional_layer_is_torch_multihead_attention(implementation: str, padded: bool) -> None:
    ours = _random(Attention(_config(), 0, implementation, causal=False).double())
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    _copy_attention(ours, theirs)
    x = torch.randn(3, 11, WIDTH, dtype=torch.float64)
    real = SOURCE_REAL if padded else None
    mask = attention_mask(11, 11, x.device, causal=False, padding_mask_bs=real)
    assert (mask is None) == (not padded)
    expected, _ = theirs(x, x, x, key_padding_mask=_hidden_keys(SOURCE_REAL) if padded else None)
    _close(ours(x, None, mask), expected)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("implementation", ["fused", "written_out"])
def test_cross_attention_is_torch_multihead_attention(implementation: str, queries: int, padded: bool) -> None:
    """Keys and values from a memory of another length, as hidden states and as made beforehand."""
    ours = _random(Attention(_config(), 0, implementation, causal=False).double())
    theirs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
    _copy_attention(ours, theirs)
    x = torch.randn(3, queries, WIDTH, dtype=torch.float64)
    memory = torch.randn(3, 11, WIDTH, dtype=torch.float64)
    mask = SOURCE_REAL[:, None, None, :].expand(-1, 1, queries, -1) if padded else None
    expected, _ = theirs(x, memory, memory, key_padding_mask=_hidden_keys(SOURCE_REAL) if padded else None)
    _close(ours(x, None, mask, memory=memory), expected)
    _close(ours(x, None, mask, memory=ours.keys_values(memory)), expected)


def test_cross_attention_with_normed_and_grouped_heads_is_its_formula() -> None:
    """What torch.nn's layer does not have, written out head by head: Henry et al. 2020, Ainslie et al. 2023."""
    config = _config(num_heads=4, num_kv_heads=2, qk_norm=True)
    ours = _random(Attention(config, 0, causal=False).double())
    x, memory = torch.randn(3, 9, WIDTH, dtype=torch.float64), torch.randn(3, 11, WIDTH, dtype=torch.float64)
    heads = []
    for head in range(4):
        mine, shared = slice(6 * head, 6 * head + 6), slice(6 * (head // 2), 6 * (head // 2) + 6)
        q = nn.functional.rms_norm(ours.q(x)[..., mine], (6,), ours.q_norm.weight, 1e-5)
        k = nn.functional.rms_norm(ours.k(memory)[..., shared], (6,), ours.k_norm.weight, 1e-5)
        scores = (q @ k.mT / 6**0.5).masked_fill(~SOURCE_REAL[:, None, :], -torch.inf)
        heads.append(scores.softmax(-1) @ ours.v(memory)[..., shared])
    mask = SOURCE_REAL[:, None, None, :].expand(-1, 1, 9, -1)
    found = ours(x, None, mask, memory=memory)
    # Our rmsnorm takes its statistics in float32, by design.
    torch.testing.assert_close(found, ours.o(torch.cat(heads, -1)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_block_is_torch_encoder_layer(placement: str, activation: str) -> None:
    ours = _random(Block(_config(norm_placement=placement, mlp=activation), 0, causal=False).double())
    theirs = nn.TransformerEncoderLayer(
        WIDTH, HEADS, FEED_FORWARD, activation=activation, norm_first=placement == "pre", **TORCH
    ).double()
    _copy_block(ours, theirs)
    x = torch.randn(3, 11, WIDTH, dtype=torch.float64)
    mask = attention_mask(11, 11, x.device, causal=False, padding_mask_bs=SOURCE_REAL)
    _close(ours(x, None, None), theirs(x))
    _close(ours(x, None, mask), theirs(x, src_key_padding_mask=_hidden_keys(SOURCE_REAL)))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_block_with_cross_attention_is_torch_decoder_layer(placement: str, activation: str) -> None:
    """Values, and the gradients of everything that goes in."""
    ours = _random(Block(_config(norm_placement=placement, mlp=activation), 0, cross=True).double())
    theirs = nn.TransformerDecoderLayer(
        WIDTH, HEADS, FEED_FORWARD, activation=activation, norm_first=placement == "pre", **TORCH
    ).double()
    _copy_block(ours, theirs)
    x = torch.randn(3, 9, WIDTH, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(3, 11, WIDTH, dtype=torch.float64, requires_grad=True)
    memory_mask = SOURCE_REAL[:, None, None, :].expand(-1, 1, 9, -1)
    found = ours(x, None, None, None, memory, memory_mask)
    expected = theirs(
        x, memory, tgt_mask=_causal(9), tgt_is_causal=True, memory_key_padding_mask=_hidden_keys(SOURCE_REAL)
    )
    _close(found, expected)
    weights = torch.randn(found.shape, dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad((found * weights).sum(), (x, memory)),
        torch.autograd.grad((expected * weights).sum(), (x, memory)),
        strict=True,
    ):
        _close(mine, other)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_encoder_is_torch_transformer_encoder(placement: str) -> None:
    config = _config(kind="encoder", norm_placement=placement, num_layers=3, positions="sinusoidal")
    ours = _random(Encoder(config).double())
    layer = nn.TransformerEncoderLayer(
        WIDTH, HEADS, FEED_FORWARD, activation="gelu", norm_first=placement == "pre", **TORCH
    )
    norm = nn.LayerNorm(WIDTH) if placement == "pre" else None
    theirs = nn.TransformerEncoder(layer, 3, norm, enable_nested_tensor=False).double()
    for mine, other in zip(ours.blocks, theirs.layers, strict=True):
        _copy_block(mine, other)
    if norm is not None:
        theirs.norm.load_state_dict(ours.norm.state_dict())
    ids = torch.randint(31, (3, 11))
    embedded = ours.embed(ids) + ours.sinusoids[:11]
    found = ours.hidden(ids, padding_mask_bs=SOURCE_REAL)
    _close(found, theirs(embedded, src_key_padding_mask=_hidden_keys(SOURCE_REAL)))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")  # torch.nn.Transformer asks for it by itself
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_encoder_decoder_is_torch_transformer(placement: str) -> None:
    """Vaswani et al. 2017 whole: scaled embeddings, sinusoids, relu; the target padded on the left."""
    config = _config(
        kind="encoder_decoder",
        norm_placement=placement,
        num_layers=2,
        num_decoder_layers=3,
        mlp="relu",
        positions="sinusoidal",
        embedding_scale=True,
    )
    ours = _random(EncoderDecoder(config).double())
    theirs = nn.Transformer(
        WIDTH, HEADS, 2, 3, FEED_FORWARD, activation="relu", norm_first=placement == "pre", **TORCH
    ).double()
    for mine, other in zip(ours.encoder_blocks, theirs.encoder.layers, strict=True):
        _copy_block(mine, other)
    for mine, other in zip(ours.blocks, theirs.decoder.layers, strict=True):
        _copy_block(mine, other)
    if placement == "pre":
        theirs.encoder.norm.load_state_dict(ours.encoder_norm.state_dict())
        theirs.decoder.norm.load_state_dict(ours.norm.state_dict())
    else:  # torch.nn ends both stacks with one more norm, which Vaswani et al. do not have
        theirs.encoder.norm = theirs.decoder.norm = None
    source, target = torch.randint(31, (3, 11)), torch.randint(31, (3, 9))
    embedded = [ours.embed(ids) * WIDTH**0.5 + ours.sinusoids[: ids.shape[1]] for ids in (source, target)]
    expected = theirs(
        *embedded,
        tgt_mask=_causal(9),
        src_key_padding_mask=_hidden_keys(SOURCE_REAL),
        tgt_key_padding_mask=_hidden_keys(TARGET_REAL),
        memory_key_padding_mask=_hidden_keys(SOURCE_REAL),
    )
    found = ours.hidden(source, target, source_padding_mask_bs=SOURCE_REAL, padding_mask_bt=TARGET_REAL)
    _close(found[TARGET_REAL], expected[TARGET_REAL])


def test_a_causal_mask_in_the_encoder_would_show() -> None:
    """The comparisons can fail: the same weights with causal attention give something else."""
    bidirectional = _random(Block(_config(), 0, causal=False).double())
    causal = _random(Block(_config(), 0).double())
    x = torch.randn(3, 11, WIDTH, dtype=torch.float64)
    assert float((bidirectional(x, None, None) - causal(x, None, None)).detach().abs().max()) > 1e-3
