"""Marian (Junczys-Dowmunt et al. 2018) as Hugging Face stores it: the transformer of Vaswani et al. 2017, post-norm.

One vocabulary for source and target, whose embedding is also the head; sinusoids with the sines in the first half of
the channels; a bias on the logits, stored as one row. Left out: vocabularies of their own for the target, and stacks
that differ in more than their depth.
"""

import re
from typing import Any

from torch import Tensor

from llm_journey.checkpoint.families.family import ConfigReader, Derived, Family, State, copy_of
from llm_journey.checkpoint.shapes import parameter_shapes
from llm_journey.checkpoint.tensor_files import Shape
from llm_journey.model.config import MlpName, TransformerConfig
from llm_journey.model.positions import sinusoidal_halves_table

_EMBEDDING, _BIAS = "model.shared.weight", "final_logits_bias"
_INNER = {
    "attention": "self_attn",
    "attention_norm": "self_attn_layer_norm",
    "cross_attention": "encoder_attn",
    "cross_norm": "encoder_attn_layer_norm",
    "mlp.up": "fc1",
    "mlp.down": "fc2",
    "mlp_norm": "final_layer_norm",
}
_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
_BLOCK = re.compile(r"(encoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)")
_ACTIVATIONS: dict[str, MlpName] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_ACTIVATION_FUNCTION = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "silu": "swish"}
_NORM_EPSILON = 1e-5  # PyTorch's default, which the family's code leaves as it is


def _fits(config: TransformerConfig) -> bool:
    return (
        config.kind == "encoder_decoder"
        and config.norm == "layernorm"
        and config.norm_placement == "post"
        and config.norm_epsilon == _NORM_EPSILON
        and config.positions == "sinusoidal_halves"
        and config.mlp in _ACTIVATION_FUNCTION
        and config.bias
        and config.head_bias
        and config.tied_embeddings
        and not config.embedding_norm
        and not config.qk_norm
        and config.num_kv_heads == config.num_heads
        and config.num_heads * config.head_width == config.width
    )


def _write_config(config: TransformerConfig) -> dict[str, Any]:
    return {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "decoder_vocab_size": config.vocab_size,
        "d_model": config.width,
        "encoder_layers": config.num_layers,
        "decoder_layers": config.num_decoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.mlp_width,
        "decoder_ffn_dim": config.mlp_width,
        "activation_function": _ACTIVATION_FUNCTION[config.mlp],
        "max_position_embeddings": config.context,
        "scale_embedding": config.embedding_scale,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "dropout": config.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "decoder_start_token_id": 0,  # the tokenizer's padding token stands here instead, where it has one
        "forced_eos_token_id": None,
    }


def _read_config(reader: ConfigReader) -> TransformerConfig:
    reader.require("activation_function", tuple(_ACTIVATIONS), "gelu")
    for key in ("share_encoder_decoder_embeddings", "tie_word_embeddings", "static_position_embeddings"):
        reader.require(key, (True,), True)
    for key in ("normalize_before", "normalize_embedding", "add_final_layer_norm"):
        reader.require(key, (False,), False)
    width, num_heads = reader.size("d_model"), reader.size("encoder_attention_heads")
    vocab_size, mlp_width = reader.size("vocab_size"), reader.size("encoder_ffn_dim")
    for key, value in {
        "decoder_vocab_size": vocab_size,
        "decoder_attention_heads": num_heads,
        "decoder_ffn_dim": mlp_width,
    }.items():
        reader.require(key, (value,), value)
    if width % num_heads:
        raise reader.error("encoder_attention_heads", f"a divisor of d_model = {width}")
    return reader.transformer(
        kind="encoder_decoder",
        vocab_size=vocab_size,
        width=width,
        num_layers=reader.size("encoder_layers"),
        num_decoder_layers=reader.size("decoder_layers"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_width=width // num_heads,
        mlp_width=mlp_width,
        context=reader.context("max_position_embeddings"),
        norm="layernorm",
        norm_placement="post",
        norm_epsilon=_NORM_EPSILON,
        positions="sinusoidal_halves",
        mlp=_ACTIVATIONS[reader.values.get("activation_function") or "gelu"],
        bias=True,
        dropout=reader.number("dropout", 0.1, low=0.0, high=0.999),
        embedding_scale=reader.flag("scale_embedding", False),
        head_bias=True,
    )


def _target(name: str) -> str:
    """Hugging Face's name for one of our parameters."""
    if match := _BLOCK.fullmatch(name):
        encoder, index, module, kind = match.groups()
        stack = "encoder" if encoder else "decoder"
        if module in _INNER:
            return f"model.{stack}.layers.{index}.{_INNER[module]}.{kind}"
        attention, _, projection = module.rpartition(".")
        return f"model.{stack}.layers.{index}.{_INNER[attention]}.{_PROJECTIONS[projection]}.{kind}"
    return {"embed.weight": _EMBEDDING, "head_bias": _BIAS}[name]


def _shapes(config: TransformerConfig) -> dict[str, Shape]:
    shapes = {_target(name): shape for name, shape in parameter_shapes(config).items()}
    return shapes | {_BIAS: (1, config.vocab_size)}


def _write_tensors(config: TransformerConfig, state: State) -> dict[str, Tensor]:
    named = {_target(name): state[name] for name in parameter_shapes(config)}
    return named | {_BIAS: named[_BIAS][None]}


def _read_tensors(config: TransformerConfig, tensors: State) -> dict[str, Tensor]:
    state = {name: tensors[_target(name)] for name in parameter_shapes(config)}
    return state | {"head_bias": state["head_bias"][0].contiguous()}


def _derived(config: TransformerConfig) -> dict[str, Derived]:
    """Files hold the embedding up to four times, and the sinusoids of both stacks."""
    size = (config.vocab_size, config.width)
    copies = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
    tables = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
    return {name: copy_of(_EMBEDDING, name, size) for name in copies} | {
        name: Derived(
            shape=(config.context, config.width),
            value=lambda _: sinusoidal_halves_table(config.context, config.width),
            reason=f"{name} holds other numbers than the sinusoids that this family computes",
            tolerance=1e-3,  # half precision's, whose files hold them rounded
        )
        for name in tables
    }


FAMILY = Family(
    name="marian",
    fits=_fits,
    write_config=_write_config,
    read_config=_read_config,
    shapes=_shapes,
    rename=lambda name: name,
    write_tensors=_write_tensors,
    read_tensors=_read_tensors,
    derived=_derived,
)
