"""The parts of the transformer, against torch.nn's own and transformers' modeling code; whole models are in families.

Everything against torch.nn runs in float64, so that nothing but the rounding of a few dozen sums is left.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from llm_journey.model.attention import Attention, attention_mask, causal_mask, written_out_attention
from llm_journey.model.blocks import Block
from llm_journey.model.config import TransformerConfig
from llm_journey.model.encoder import Encoder
from llm_journey.model.encoder_decoder import EncoderDecoder
from llm_journey.model.norms import LayerNorm, RMSNorm
from llm_journey.model.positions import SINUSOIDS, apply_rotary, rotary_tables
from llm_journey.parity.differences import largest
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import plant

_Module = TypeVar("_Module", bound=nn.Module)
_SUMS = "float32 sums taken in another order"
_WIDTH, _HEADS, _FEED_FORWARD = 24, 3, 40
_SOURCE, _TARGET = 11, 9
_TORCH: dict[str, Any] = {"dropout": 0.0, "batch_first": True, "layer_norm_eps": 1e-5}
# True at real tokens: whole rows, rows padded on the right, on the left.
_SOURCE_REAL = torch.arange(_SOURCE) < torch.tensor([_SOURCE, 7, 2])[:, None]
_TARGET_REAL = (torch.arange(_TARGET) < torch.tensor([_TARGET, 4, 6])[:, None]).flip(-1)


def _norm(planted: bool, *, ours: nn.Module, theirs: nn.Module, dtype: torch.dtype) -> float:
    torch.manual_seed(0)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    _randomize(ours)
    theirs.load_state_dict(ours.state_dict())
    if planted:
        plant(next(ours.parameters()))
    x = torch.randn(5, 7, _WIDTH, dtype=dtype)
    with torch.inference_mode():
        return largest(ours(x), theirs(x))


def _rotation(planted: bool) -> float:
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config: Any = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=32)
    q_bthe, k_bthe = torch.randn(2, 32, 4, 16), torch.randn(2, 32, 4, 16)
    embedding: Any = LlamaRotaryEmbedding(config)
    expected = apply_rotary_pos_emb(
        q_bthe.transpose(1, 2), k_bthe.transpose(1, 2), *embedding(q_bthe, torch.arange(32)[None])
    )
    tables = rotary_tables(32, 16, 10_000.0 + planted)
    return largest([apply_rotary(x, *tables).transpose(1, 2) for x in (q_bthe, k_bthe)], list(expected))


def _interleaved_sinusoids(length: int, width: int) -> Tensor:
    from transformers.models.xlm.modeling_xlm import create_sinusoidal_embeddings

    create: Any = create_sinusoidal_embeddings
    table: Tensor = create(length, width, torch.empty(length, width))
    return table


def _halved_sinusoids(length: int, width: int) -> Tensor:
    from transformers.models.marian.modeling_marian import MarianSinusoidalPositionalEmbedding

    embedding: Any = MarianSinusoidalPositionalEmbedding(length, width)
    table: Tensor = embedding.create_weight()
    return table


def _sinusoids(planted: bool, *, layout: str, reference: Callable[[int, int], Tensor]) -> float:
    """A table of 70 positions; the planted error begins it at position 1."""
    found = SINUSOIDS[layout](71, _WIDTH)
    return largest(found[1:] if planted else found[:-1], reference(70, _WIDTH))


def _attention(planted: bool, *, grouped: bool) -> float:
    """The written-out formula against PyTorch's kernel, under a causal mask with one row's keys hidden."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2 if grouped and part else 4, 9, 8) for part in range(3))
    mask = causal_mask(9, 9, q.device).repeat(2, 1, 1, 1)
    mask[0, 0, 5, 1:3] = False
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    if planted:
        mask[0, 0, 5, 1] = True
    return largest(written_out_attention(q, k, v, mask), expected)


def _attention_layer(planted: bool, *, cross: bool) -> float:
    """A whole layer that looks at every real position, of its own text or of a memory of another length."""
    ours = _randomize(Attention(_config(), 0, causal=False).double())
    theirs = nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True).double()
    _copy_attention(ours, theirs)
    x, memory = _hidden_states(_TARGET if cross else _SOURCE), _hidden_states(_SOURCE, seed=1)
    keys = memory if cross else x
    expected, _ = theirs(x, keys, keys, key_padding_mask=~_SOURCE_REAL, need_weights=False)
    mask = _keys_mask(x.shape[1], planted)
    return largest(ours(x, None, mask, memory=memory if cross else None), expected)


def _encoder_block(planted: bool, *, placement: Any) -> float:
    ours = _randomize(Block(_config(norm_placement=placement), 0, causal=False).double())
    theirs = nn.TransformerEncoderLayer(
        _WIDTH, _HEADS, _FEED_FORWARD, activation="gelu", norm_first=placement == "pre", **_TORCH
    ).double()
    _copy_block(ours, theirs)
    x = _hidden_states(_SOURCE)
    found = ours(x, None, _keys_mask(_SOURCE, planted))
    return largest(found[_SOURCE_REAL], theirs(x, src_key_padding_mask=~_SOURCE_REAL)[_SOURCE_REAL])


def _decoder_block(planted: bool, *, placement: Any) -> float:
    """Values, and the gradients of what goes in: the text's states and the memory's."""
    ours = _randomize(Block(_config(norm_placement=placement, mlp="relu"), 0, cross=True).double())
    theirs = nn.TransformerDecoderLayer(
        _WIDTH, _HEADS, _FEED_FORWARD, activation="relu", norm_first=placement == "pre", **_TORCH
    ).double()
    _copy_block(ours, theirs)
    x, memory = _hidden_states(_TARGET).requires_grad_(), _hidden_states(_SOURCE, seed=1).requires_grad_()
    expected = theirs(x, memory, tgt_mask=_future(_TARGET), memory_key_padding_mask=~_SOURCE_REAL)
    found = ours(x, None, None, None, memory, _keys_mask(_TARGET, planted))
    weights = _hidden_states(_TARGET, seed=2)
    return largest(
        [found, *torch.autograd.grad((found * weights).sum(), (x, memory))],
        [expected, *torch.autograd.grad((expected * weights).sum(), (x, memory))],
    )


def _encoder_stack(planted: bool) -> float:
    """Three blocks and the norm after them, pre-norm, sinusoids added."""
    config = _config(kind="encoder", num_layers=3, positions="sinusoidal")
    ours = _randomize(Encoder(config).double())
    layer = nn.TransformerEncoderLayer(_WIDTH, _HEADS, _FEED_FORWARD, activation="gelu", norm_first=True, **_TORCH)
    theirs: Any = nn.TransformerEncoder(layer, 3, nn.LayerNorm(_WIDTH), enable_nested_tensor=False).double()
    for mine, other in zip(ours.blocks, theirs.layers, strict=True):
        _copy_block(mine, other)
    theirs.norm.load_state_dict(ours.norm.state_dict())
    ids = _ids(_SOURCE)
    expected = theirs(ours.embed(ids) + ours.sinusoids[:_SOURCE], src_key_padding_mask=~_SOURCE_REAL)
    if planted:
        plant(ours.blocks[2].mlp.up.weight)  # type: ignore[union-attr, arg-type]
    return largest(ours.hidden(ids, padding_mask_bs=_SOURCE_REAL)[_SOURCE_REAL], expected[_SOURCE_REAL])


def _encoder_decoder_stack(planted: bool) -> float:
    """Vaswani et al. 2017 whole: post-norm, scaled embeddings, sinusoids, relu; rows padded on either side."""
    config = _config(
        kind="encoder_decoder", norm_placement="post", num_layers=2, num_decoder_layers=3, mlp="relu",
        positions="sinusoidal", embedding_scale=True,
    )  # fmt: skip
    ours = _randomize(EncoderDecoder(config).double())
    layers = (_WIDTH, _HEADS, _FEED_FORWARD)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(*layers, **_TORCH), 2, enable_nested_tensor=False)
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(*layers, **_TORCH), 3)
    parts: Any = {"custom_encoder": encoder, "custom_decoder": decoder}
    theirs: Any = nn.Transformer(_WIDTH, _HEADS, batch_first=True, **parts).double()
    for mine, other in zip(ours.encoder_blocks, theirs.encoder.layers, strict=True):
        _copy_block(mine, other)
    for mine, other in zip(ours.blocks, theirs.decoder.layers, strict=True):
        _copy_block(mine, other)
    source, target = _ids(_SOURCE), _ids(_TARGET, seed=1)
    embedded = [ours.embed(ids) * _WIDTH**0.5 + ours.sinusoids[: ids.shape[1]] for ids in (source, target)]
    expected = theirs(
        *embedded,
        tgt_mask=_future(_TARGET),
        src_key_padding_mask=~_SOURCE_REAL,
        tgt_key_padding_mask=~_TARGET_REAL,
        memory_key_padding_mask=~_SOURCE_REAL,
    )
    hidden = _SOURCE_REAL.clone()
    hidden[1, 8] = planted
    found = ours.hidden(source, target, source_padding_mask_bs=hidden, padding_mask_bt=_TARGET_REAL)
    return largest(found[_TARGET_REAL], expected[_TARGET_REAL])


def _config(**choices: Any) -> TransformerConfig:
    shape: dict[str, Any] = {
        "vocab_size": 31, "width": _WIDTH, "num_heads": _HEADS, "mlp_width": _FEED_FORWARD, "context": 16,
        "bias": True, "norm": "layernorm", "norm_epsilon": 1e-5, "positions": "none", "mlp": "gelu",
    }  # fmt: skip
    return TransformerConfig(**(shape | choices))


def _randomize(module: _Module) -> _Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return module


def _hidden_states(length: int, seed: int = 0) -> Tensor:
    return torch.randn(3, length, _WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _ids(length: int, seed: int = 0) -> Tensor:
    return torch.randint(31, (3, length), generator=torch.Generator().manual_seed(seed))


def _keys_mask(num_queries: int, planted: bool) -> Tensor | None:
    """Our mask of the source's real positions; planted: one padding position is seen."""
    real = _SOURCE_REAL.clone()
    real[1, 8] = planted
    if num_queries == _SOURCE:
        return attention_mask(_SOURCE, _SOURCE, real.device, causal=False, padding_mask_bs=real)
    return real[:, None, None, :].expand(-1, 1, num_queries, -1)


def _future(length: int) -> Tensor:
    """PyTorch's contract: True where a query must not look."""
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def _copy_attention(ours: Any, theirs: Any) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]))
        theirs.out_proj.load_state_dict(ours.o.state_dict())


def _copy_block(ours: Any, theirs: Any) -> None:
    pairs = {"norm1": ours.attention_norm, "linear1": ours.mlp.up, "linear2": ours.mlp.down}
    if ours.cross_attention is None:
        pairs["norm2"] = ours.mlp_norm
    else:
        pairs |= {"norm2": ours.cross_norm, "norm3": ours.mlp_norm}
        _copy_attention(ours.cross_attention, theirs.multihead_attn)
    _copy_attention(ours.attention, theirs.self_attn)
    for name, source in pairs.items():
        getattr(theirs, name).load_state_dict(source.state_dict())


_vs_torch = partial(Equality, reference="torch", tolerance=1e-12, reason="rounding of float64")
_vs_kernel = partial(Equality, reference="torch", tolerance=1e-6, reason=_SUMS)

EQUALITIES = (
    _vs_kernel(
        component="RMSNorm",
        compared="outputs, torch.nn.RMSNorm",
        difference=partial(_norm, ours=RMSNorm(_WIDTH, 1e-5), theirs=nn.RMSNorm(_WIDTH, eps=1e-5), dtype=torch.float32),
    ),
    _vs_torch(
        component="LayerNorm",
        compared="outputs, torch.nn.LayerNorm",
        difference=partial(
            _norm, ours=LayerNorm(_WIDTH, 1e-5, True), theirs=nn.LayerNorm(_WIDTH, eps=1e-5), dtype=torch.float64
        ),
    ),
    Equality(
        component="rotary positions",
        reference="transformers",
        compared="rotated queries and keys, Llama's rotation",
        tolerance=0.0,
        reason="the same operations",
        difference=_rotation,
    ),
    Equality(
        component="sinusoids, interleaved",
        reference="transformers",
        compared="a table of 70 positions, XLM's",
        tolerance=1e-5,
        reason="angles of up to 70 radians in float32",
        difference=partial(_sinusoids, layout="sinusoidal", reference=_interleaved_sinusoids),
    ),
    Equality(
        component="sinusoids, in halves",
        reference="transformers",
        compared="a table of 70 positions, Marian's",
        tolerance=0.0,
        reason="the same operations",
        difference=partial(_sinusoids, layout="sinusoidal_halves", reference=_halved_sinusoids),
    ),
    *(
        _vs_kernel(
            component=f"attention written out, {'grouped queries' if grouped else 'multi-head'}",
            compared="outputs under a mask, scaled_dot_product_attention",
            difference=partial(_attention, grouped=grouped),
        )
        for grouped in (False, True)
    ),
    *(
        _vs_torch(
            component=f"attention layer, {what}",
            compared="outputs with keys padded, torch.nn.MultiheadAttention with the same weights",
            difference=partial(_attention_layer, cross=cross),
        )
        for what, cross in (("every position visible", False), ("over a memory", True))
    ),
    *(
        _vs_torch(
            component=f"encoder block, {placement}-norm",
            compared="outputs with keys padded, torch.nn.TransformerEncoderLayer",
            difference=partial(_encoder_block, placement=placement),
        )
        for placement in ("pre", "post")
    ),
    *(
        _vs_torch(
            component=f"decoder block with cross-attention, {placement}-norm",
            compared="outputs and gradients, memory padded, torch.nn.TransformerDecoderLayer",
            difference=partial(_decoder_block, placement=placement),
        )
        for placement in ("pre", "post")
    ),
    _vs_torch(
        component="encoder stack",
        compared="hidden states with padding, torch.nn.TransformerEncoder",
        difference=_encoder_stack,
    ),
    _vs_torch(
        component="encoder-decoder stack",
        compared="hidden states, padding on either side, torch.nn.Transformer",
        difference=_encoder_decoder_stack,
    ),
)
