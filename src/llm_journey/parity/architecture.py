"""The parts of the transformer and whole models, against torch.nn and transformers' own modeling code."""

from functools import partial
from typing import Any

import torch
from torch import nn

from llm_journey.model.attention import Attention, causal_mask, fused_attention, written_out_attention
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
    random_encoder,
    random_encoder_decoder,
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


def _real_tokens(rows: int, length: int) -> torch.Tensor:
    """(rows, length), True at real tokens: a whole row, one padded on the left, one on the right, one on both sides."""
    mask_bs = torch.ones(rows, length, dtype=torch.bool)
    mask_bs[1, :6] = mask_bs[2, -9:] = mask_bs[3, :3] = mask_bs[3, -2:] = False
    return mask_bs


def _encoder(planted: bool) -> float:
    """Masked-language-model logits of rows padded on either side, with token types."""
    model = random_encoder()
    ids_bt, mask_bs = random_ids(4, 24, model.config.vocab_size), _real_tokens(4, 24)
    types_bt = random_ids(4, 24, 2, seed=2)
    with opened_by_transformers(model, "AutoModelForMaskedLM") as theirs, torch.inference_mode():
        expected = theirs(ids_bt, attention_mask=mask_bs.long(), token_type_ids=types_bt).logits
        if planted:
            types_bt[0, 3] = 1 - types_bt[0, 3]
        found = model(ids_bt, padding_mask_bs=mask_bs, token_types_bt=types_bt)
    return float((found - expected)[mask_bs].abs().max())


def _encoder_decoder(planted: bool) -> float:
    """Logits under teacher forcing, sources and targets padded on either side."""
    model = random_encoder_decoder()
    source_bs, mask_bs = random_ids(4, 24, model.config.vocab_size), _real_tokens(4, 24)
    target_bt, target_mask_bt = random_ids(4, 19, model.config.vocab_size, seed=2), _real_tokens(4, 19)
    with opened_by_transformers(model, "AutoModelForSeq2SeqLM") as theirs, torch.inference_mode():
        expected = theirs(
            input_ids=source_bs,
            attention_mask=mask_bs.long(),
            decoder_input_ids=target_bt,
            decoder_attention_mask=target_mask_bt.long(),
        ).logits
        ours_mask = mask_bs.clone()
        if planted:
            ours_mask[1, 5] = True
        found = model(source_bs, target_bt, source_padding_mask_bs=ours_mask, padding_mask_bt=target_mask_bt)
    return float((found - expected)[target_mask_bt].abs().max())


def _attention_layer(planted: bool) -> float:
    """A whole attention layer that looks at every position, against torch.nn.MultiheadAttention with its weights."""
    model = random_encoder()
    ours = model.blocks[0].attention
    assert isinstance(ours, Attention)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True)
    inner = (ours.q, ours.k, ours.v)
    state = {
        "in_proj_weight": torch.cat([layer.weight for layer in inner]).detach(),
        "in_proj_bias": torch.cat([layer.bias for layer in inner]).detach(),
        "out_proj.weight": ours.o.weight.detach(),
        "out_proj.bias": ours.o.bias.detach(),
    }
    theirs.load_state_dict(state)
    torch.manual_seed(0)
    x_btd = torch.randn(3, 11, 32)
    with torch.inference_mode():
        if planted:
            plant(ours.o.bias)
        return float((ours(x_btd, None, None) - theirs(x_btd, x_btd, x_btd, need_weights=False)[0]).abs().max())


def _maps(planted: bool) -> float:
    """Every attention map of a text, recorded from our fused kernel's inputs, against output_attentions."""
    from llm_journey.inspection.inspection import inspect_ids

    model = random_decoder(**LLAMA)
    ids = random_ids(1, 29, model.config.vocab_size)
    with opened_by_transformers(model, attn_implementation="eager") as theirs, torch.inference_mode():
        expected = theirs(ids, output_attentions=True).attentions
        if planted:
            plant(model.blocks[0].attention.q.weight)  # type: ignore[union-attr, arg-type]
        seen = inspect_ids(model, ids[0].tolist())
    return max(
        float((torch.from_numpy(seen.maps[layer]) - weights[0]).abs().max()) for layer, weights in enumerate(expected)
    )


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
        component="attention layer, every position visible",
        reference="torch",
        compared="outputs, torch.nn.MultiheadAttention with the same weights",
        tolerance=1e-5,
        reason=_SUMS,
        difference=_attention_layer,
    ),
    Equality(
        component="encoder, bert",
        reference="transformers",
        compared="masked-language-model logits, padding on either side",
        tolerance=1e-4,
        reason=_SUMS,
        difference=_encoder,
    ),
    Equality(
        component="encoder-decoder, marian",
        reference="transformers",
        compared="logits under teacher forcing, padding on either side",
        tolerance=1e-4,
        reason=_SUMS,
        difference=_encoder_decoder,
    ),
    Equality(
        component="attention maps",
        reference="transformers",
        compared="weights of every head and layer, output_attentions",
        tolerance=1e-4,
        reason=_SUMS,
        difference=_maps,
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
