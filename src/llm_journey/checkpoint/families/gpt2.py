"""GPT-2 (Radford et al. 2019) as Hugging Face stores it: learned positions, layernorm, tanh gelu, biases everywhere.

Its `Conv1D` keeps weights as (in, out), so ours are transposed; query, key and value are one matrix `c_attn`, joined
along the outputs. OpenAI's own files leave out the prefix `transformer.` and hold the causal mask as a buffer.
"""

import re
from typing import Any

import torch
from torch import Tensor

from llm_journey.checkpoint.families.family import ConfigReader, Derived, Family, State, copy_of, is_plain_decoder
from llm_journey.checkpoint.shapes import parameter_shapes
from llm_journey.checkpoint.tensor_files import Shape
from llm_journey.model.config import TransformerConfig

_OUTER = {
    "embed": "transformer.wte",
    "position_embed": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
_COPIED = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}
_TRANSPOSED = {"attention.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
_JOINED = ("attention.q", "attention.k", "attention.v")
_BUFFER = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")
_NAME = re.compile(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)")


def _fits(config: TransformerConfig) -> bool:
    return (
        is_plain_decoder(config)
        and config.norm == "layernorm"
        and config.norm_placement == "pre"
        and config.positions == "learned"
        and config.mlp == "gelu_tanh"
        and config.bias
        and not config.qk_norm
        and config.sliding_window is None
        and config.num_kv_heads == config.num_heads
        and config.num_heads * config.head_width == config.width
    )


def _write_config(config: TransformerConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_epsilon,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "tie_word_embeddings": config.tied_embeddings,
    }


def _read_config(reader: ConfigReader) -> TransformerConfig:
    reader.require("activation_function", ("gelu_new", "gelu_pytorch_tanh"), "gelu_new")
    reader.require("scale_attn_weights", (True,), True)
    reader.require("scale_attn_by_inverse_layer_idx", (False,), False)
    reader.require("add_cross_attention", (False,), False)
    width, num_heads = reader.size("n_embd"), reader.size("n_head")
    if width % num_heads:
        raise reader.error("n_head", f"a divisor of n_embd = {width}")
    return reader.transformer(
        vocab_size=reader.size("vocab_size"),
        width=width,
        num_layers=reader.size("n_layer"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_width=width // num_heads,
        mlp_width=reader.size("n_inner", 4 * width),
        context=reader.context("n_positions"),
        norm="layernorm",
        norm_placement="pre",
        norm_epsilon=reader.number("layer_norm_epsilon", 1e-5, low=1e-30, high=1.0),
        positions="learned",
        mlp="gelu_tanh",
        bias=True,
        tied_embeddings=reader.flag("tie_word_embeddings", True),
        dropout=reader.number("resid_pdrop", 0.1, low=0.0, high=0.999),
    )


def _rename(name: str) -> str:
    full = name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"
    return "" if _BUFFER.fullmatch(full) else full


def _parts(name: str) -> tuple[str, str, str]:
    """Block prefix in Hugging Face's spelling ("" outside blocks), module and kind of one of our names."""
    match = _NAME.fullmatch(name)
    assert match is not None
    index, module, kind = match.groups()
    return ("" if index is None else f"transformer.h.{index}.", module, kind)


def _target(name: str) -> tuple[str, bool]:
    """Hugging Face's name for one of our parameters, and whether its matrix lies transposed there."""
    block, module, kind = _parts(name)
    if not block:
        return f"{_OUTER[module]}.{kind}", False
    if module in _COPIED:
        return f"{block}{_COPIED[module]}.{kind}", False
    target = "attn.c_attn" if module in _JOINED else _TRANSPOSED[module]
    return f"{block}{target}.{kind}", kind == "weight"


def _shapes(config: TransformerConfig) -> dict[str, Shape]:
    found: dict[str, Shape] = {}
    for name, shape in parameter_shapes(config).items():
        target, transposed = _target(name)
        shape = shape[::-1] if transposed else shape
        found[target] = shape if target not in found else (*shape[:-1], found[target][-1] + shape[-1])
    return found


def _write_tensors(config: TransformerConfig, state: State) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}
    for name in parameter_shapes(config):  # lists q, k, v in the order in which c_attn joins them
        target, transposed = _target(name)
        parts.setdefault(target, []).append(state[name].T if transposed else state[name])
    return {name: torch.cat(items, dim=-1) if len(items) > 1 else items[0] for name, items in parts.items()}


def _read_tensors(config: TransformerConfig, tensors: State) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name in parameter_shapes(config):
        target, transposed = _target(name)
        value, module = tensors[target], _parts(name)[1]
        if module in _JOINED:
            value = value.chunk(3, dim=-1)[_JOINED.index(module)]
        state[name] = (value.T if transposed else value).contiguous()
    return state


def _derived(config: TransformerConfig) -> dict[str, Derived]:
    head = copy_of("transformer.wte.weight", "lm_head.weight", (config.vocab_size, config.width))
    return {"lm_head.weight": head} if config.tied_embeddings else {}


FAMILY = Family(
    name="gpt2",
    fits=_fits,
    write_config=_write_config,
    read_config=_read_config,
    shapes=_shapes,
    rename=_rename,
    write_tensors=_write_tensors,
    read_tensors=_read_tensors,
    derived=_derived,
)
