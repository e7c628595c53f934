"""Llama (Touvron et al. 2023) as Hugging Face stores it: rope, rmsnorm, swiglu. Also what qwen3 shares with it.

Both rotate the two halves of a head (not neighbouring channels), as our Decoder does, so weights move unpermuted.
`resid_pdrop`, our dropout on the residual branches, is an extra key: transformers keeps and ignores it.
"""

import re
from typing import Any

from torch import Tensor

from llm_journey.checkpoint.families.family import ConfigReader, Derived, Family, State, copy_of, is_plain_decoder
from llm_journey.checkpoint.shapes import parameter_shapes
from llm_journey.checkpoint.tensor_files import Shape
from llm_journey.model.config import TransformerConfig

_OUTER = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_INNER = {
    "attention_norm": "input_layernorm",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


def huggingface_name(name: str) -> str:
    """Hugging Face's name for one of our parameters: blocks.3.mlp.up.weight -> model.layers.3.mlp.up_proj.weight."""
    if match := _BLOCK.fullmatch(name):
        index, module, kind = match.groups()
        return f"model.layers.{index}.{_INNER[module]}.{kind}"
    module, _, kind = name.rpartition(".")
    return f"{_OUTER[module]}.{kind}"


def shapes(config: TransformerConfig) -> dict[str, Shape]:
    """Names and shapes of the tensors in the family's file."""
    return {huggingface_name(name): shape for name, shape in parameter_shapes(config).items()}


def rename(name: str) -> str:
    """Stored names are the family's; old files also hold the rotary frequencies, which are computed."""
    return "" if name.endswith("rotary_emb.inv_freq") else name


def write_tensors(config: TransformerConfig, state: State) -> dict[str, Tensor]:
    """Our state under Hugging Face's names."""
    return {huggingface_name(name): state[name] for name in parameter_shapes(config)}


def read_tensors(config: TransformerConfig, tensors: State) -> dict[str, Tensor]:
    """Hugging Face's tensors under our names."""
    return {name: tensors[huggingface_name(name)] for name in parameter_shapes(config)}


def derived(config: TransformerConfig) -> dict[str, Derived]:
    """A tied head may be stored once more."""
    head = copy_of("model.embed_tokens.weight", "lm_head.weight", (config.vocab_size, config.width))
    return {"lm_head.weight": head} if config.tied_embeddings else {}


def fits_shared(config: TransformerConfig) -> bool:
    """The choices that llama and qwen3 have in common."""
    return (
        is_plain_decoder(config)
        and config.norm == "rmsnorm"
        and config.norm_placement == "pre"
        and config.positions == "rope"
        and config.mlp == "swiglu"
    )


def write_shared(config: TransformerConfig) -> dict[str, Any]:
    """The keys of config.json that llama and qwen3 have in common; rope_theta stands where old and new readers look."""
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu",
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_epsilon,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.bias,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tied_embeddings,
    }
    return values | ({"resid_pdrop": config.dropout} if config.dropout else {})


def read_shared(reader: ConfigReader, *, default_head_width: int | None) -> dict[str, Any]:
    """TransformerConfig fields from the keys that llama and qwen3 have in common."""
    reader.require("hidden_act", ("silu", "swish"), "silu")
    num_heads, width = reader.size("num_attention_heads"), reader.size("hidden_size")
    return {
        "vocab_size": reader.size("vocab_size"),
        "width": width,
        "num_layers": reader.size("num_hidden_layers"),
        "num_heads": num_heads,
        "num_kv_heads": reader.size("num_key_value_heads", num_heads),
        "head_width": reader.size("head_dim", default_head_width or max(1, width // num_heads)),
        "mlp_width": reader.size("intermediate_size"),
        "context": reader.context("max_position_embeddings"),
        "norm_epsilon": reader.number("rms_norm_eps", 1e-6, low=1e-30, high=1.0),
        "rope_theta": _read_theta(reader),
        "tied_embeddings": reader.flag("tie_word_embeddings", False),
        "dropout": reader.number("resid_pdrop", 0.0, low=0.0, high=0.999),
        "norm": "rmsnorm",
        "norm_placement": "pre",
        "positions": "rope",
        "mlp": "swiglu",
    }


def _read_theta(reader: ConfigReader) -> float:
    """The base of the rotation; scaled variants (linear, yarn, llama3) compute other angles and are refused."""
    found = []
    for key in ("rope_parameters", "rope_scaling"):
        value = reader.values.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise reader.error(key, "an object or null")
        if value.get("rope_type", value.get("type", "default")) != "default":
            raise reader.error(key, "of rope_type 'default'; scaled rotations are not supported")
        inner = ConfigReader(value, f"{reader.where}: {key}")
        inner.require("partial_rotary_factor", (1, 1.0), 1.0)
        if "rope_theta" in value:
            found.append(inner.number("rope_theta", 10_000.0, low=1e-3, high=1e15))
    reader.require("partial_rotary_factor", (1, 1.0), 1.0)
    outer = reader.number("rope_theta", found[0] if found else 10_000.0, low=1e-3, high=1e15)
    if any(theta != outer for theta in found):
        raise reader.error("rope_theta", f"the {found[0]} that rope_parameters says")
    return outer


def _fits(config: TransformerConfig) -> bool:
    whole = config.width % config.num_heads == 0  # transformers refuses other widths for llama, whatever head_dim says
    return fits_shared(config) and not config.qk_norm and config.sliding_window is None and whole


def _write_config(config: TransformerConfig) -> dict[str, Any]:
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    return kind | write_shared(config) | {"mlp_bias": config.bias}


def _read_config(reader: ConfigReader) -> TransformerConfig:
    bias = reader.flag("attention_bias", False)
    reader.require("mlp_bias", (bias,), False)
    return reader.transformer(**read_shared(reader, default_head_width=None), bias=bias)


FAMILY = Family(
    name="llama",
    fits=_fits,
    write_config=_write_config,
    read_config=_read_config,
    shapes=shapes,
    rename=rename,
    write_tensors=write_tensors,
    read_tensors=read_tensors,
    derived=derived,
)
