"""The parts of the transformer and whole models, against torch.nn and transformers' own modeling code."""

from functools import partial
from typing import Any

import torch
from torch import nn

from llm_journey.model.attention import causal_mask, fused_attention, written_out_attention
from llm_journey.model.norms import RMSNorm
from llm_journey.model.positions import apply_rotary, rotary_tables
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import (
    GPT2,
    LLAMA,
    QWEN3,
    opened_by_transformers,
    plant,
    random_decoder,
    random_ids,
)

_SUMS = "float32 sums taken in another order"


def _rmsnorm(planted: bool) -> float:
    ours, theirs = RMSNorm(48, 1e-5), nn.RMSNorm(48, eps=1e-5)
    torch.manual_seed(0)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    if planted:
        ours.epsilon = 1e-2
    x = torch.randn(5, 7, 48)
    with torch.inference_mode():
        return float((ours(x) - theirs(x)).abs().max())


def _rotation(planted: bool) -> float:
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config: Any = LlamaConfig(hidden_size=64, num_attention_heads=4, max_position_embeddings=32)
    theta = 10_000.0 + planted
    q_bthe, k_bthe = torch.randn(2, 32, 4, 16), torch.randn(2, 32, 4, 16)
    embedding: Any = LlamaRotaryEmbedding(config)
    cos, sin = embedding(q_bthe, torch.arange(32)[None])
    expected = apply_rotary_pos_emb(q_bthe.transpose(1, 2), k_bthe.transpose(1, 2), cos, sin)
    tables = rotary_tables(32, 16, theta)
    found = (apply_rotary(x, *tables).transpose(1, 2) for x in (q_bthe, k_bthe))
    return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))


def _attention(planted: bool, *, grouped: bool) -> float:
    """The written-out formula against PyTorch's kernel, under a causal mask with one row's keys hidden."""
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(2, 4, 9, 8),
        torch.randn(2, 2 if grouped else 4, 9, 8),
        torch.randn(2, 2 if grouped else 4, 9, 8),
    )
    mask = causal_mask(9, 9, q.device).repeat(2, 1, 1, 1)
    mask[0, 0, 5, 1:3] = False
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    if planted:
        mask[0, 0, 5, 1] = True
    return float((written_out_attention(q, k, v, mask) - expected).abs().max())


def _fused(planted: bool) -> float:
    """Our fast form in bfloat16 against PyTorch's kernel in float32: no more than bfloat16's rounding apart."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 16, 8).bfloat16() for _ in range(3))
    expected = nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
    mask = causal_mask(16, 16, q.device).tril(-1 if planted else 0)
    return float((fused_attention(q, k, v, mask).float() - expected).abs().max())


def _decoder(planted: bool, *, choices: dict[str, Any]) -> float:
    """Logits of random weights in a batch of three full rows."""
    model = random_decoder(**choices)
    ids_bt = random_ids(3, model.config.context, model.config.vocab_size)
    with opened_by_transformers(model) as theirs, torch.inference_mode():
        if planted:
            plant(model.blocks[0].attention.k.weight)  # type: ignore[union-attr, arg-type]
        return float((model(ids_bt) - theirs(ids_bt).logits).abs().max())


def _padded(planted: bool) -> float:
    """Rows padded on the left, positions counted from the first real token: the real tokens' logits."""
    model = random_decoder(**LLAMA)
    ids_bt = random_ids(3, 20, model.config.vocab_size)
    mask_bs = torch.ones(3, 20, dtype=torch.bool)
    mask_bs[1, :7] = mask_bs[2, :13] = False
    positions_bt = (mask_bs.cumsum(-1) - 1).clamp(min=0)
    with opened_by_transformers(model) as theirs, torch.inference_mode():
        expected = theirs(ids_bt, attention_mask=mask_bs.long(), position_ids=positions_bt).logits
        ours_mask = mask_bs.clone()
        if planted:
            ours_mask[1, 6] = True
        found = model(ids_bt, padding_mask_bs=ours_mask, positions_bt=positions_bt)
        return float((found - expected)[mask_bs].abs().max())


EQUALITIES = (
    Equality(
        component="RMSNorm",
        reference="torch",
        compared="outputs, torch.nn.RMSNorm",
        tolerance=1e-5,
        reason=_SUMS,
        difference=_rmsnorm,
    ),
    Equality(
        component="rotary positions",
        reference="transformers",
        compared="rotated queries and keys, Llama's rotation",
        tolerance=0.0,
        reason="the same operations",
        difference=_rotation,
    ),
    *(
        Equality(
            component=f"attention written out, {'grouped queries' if grouped else 'multi-head'}",
            reference="torch",
            compared="outputs under a mask, scaled_dot_product_attention",
            tolerance=1e-6,
            reason=_SUMS,
            difference=partial(_attention, grouped=grouped),
        )
        for grouped in (False, True)
    ),
    Equality(
        component="fused attention in bfloat16",
        reference="torch",
        compared="outputs, scaled_dot_product_attention in float32",
        tolerance=1e-2,
        reason="the output is rounded to bfloat16's 8 bits",
        difference=_fused,
    ),
    *(
        Equality(
            component=f"decoder, {name}",
            reference="transformers",
            compared="logits of random weights, its own modeling code on our folder",
            tolerance=1e-4,
            reason=_SUMS,
            difference=partial(_decoder, choices=choices),
        )
        for name, choices in (("llama with grouped queries", LLAMA), ("qwen3", QWEN3), ("gpt2", GPT2))
    ),
    Equality(
        component="decoder, rows padded on the left",
        reference="transformers",
        compared="logits of the real tokens",
        tolerance=1e-4,
        reason=_SUMS,
        difference=_padded,
    ),
)
