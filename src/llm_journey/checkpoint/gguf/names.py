"""Our Decoder as llama.cpp knows it and back: names and layout of the tensors, and the keys that give the shape.

Three of llama.cpp's architectures are our families of the same name: llama, qwen3 and gpt2. They differ in two places
from Hugging Face's layout, which is ours: llama's queries and keys lie with the two halves of each head interleaved
(its rotation turns neighbouring channels, Su et al. 2021, eq. 34; ours turns halves), and gpt2's query, key and value
are one matrix. Choices that llama.cpp does not compute (a sliding window, scaled rotations) are refused both ways.

Legend: D width, H heads, K key-value heads, E head width.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm_journey.checkpoint.families import family_of
from llm_journey.checkpoint.families.family import ConfigReader
from llm_journey.checkpoint.gguf.quants import Floats
from llm_journey.checkpoint.shapes import check_depth, check_shapes, check_tables, parameter_shapes
from llm_journey.checkpoint.tensor_files import Shape
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig

_OUTER = {"embed": "token_embd", "position_embed": "position_embd", "norm": "output_norm", "head": "output"}
_INNER = {
    "attention_norm": "attn_norm",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
_JOINED = ("attention.q", "attention.k", "attention.v")
_NAME = re.compile(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)")
_ROTARY_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One of llama.cpp's. interleaved: whether llama's order of queries and keys is used; joined: whether q, k and v
    are one matrix; write, read: the keys after "<name>." both ways."""

    name: str
    interleaved: bool
    joined: bool
    write: Callable[[TransformerConfig], dict[str, Any]]
    read: Callable[[ConfigReader, bool], dict[str, Any]]


def architecture_of(config: TransformerConfig) -> Architecture:
    """The architecture that computes exactly what `config` says. Raises BadInputError where none does."""
    name = family_of(config)
    if name not in ARCHITECTURES:
        raise BadInputError(f"this model's choices fit none of llama.cpp's {', '.join(ARCHITECTURES)}")
    if config.sliding_window is not None and config.sliding_window < config.context:
        raise BadInputError(f"llama.cpp's {name} knows no sliding window; this model has one")
    return ARCHITECTURES[name]


def write_metadata(config: TransformerConfig) -> dict[str, Any]:
    """The keys that say what the model computes, general.architecture first."""
    kind = architecture_of(config)
    values = {
        "vocab_size": config.vocab_size,
        "context_length": config.context,
        "embedding_length": config.width,
        "block_count": config.num_layers,
        "feed_forward_length": config.mlp_width,
        "attention.head_count": config.num_heads,
        **kind.write(config),
    }
    return {"general.architecture": kind.name, **{f"{kind.name}.{key}": value for key, value in values.items()}}


def read_config(
    metadata: Mapping[str, Any], found: Mapping[str, Shape], where: str
) -> tuple[Architecture, TransformerConfig]:
    """Architecture and configuration, once every name and shape in `found` is as the keys say.

    Raises BadInputError naming `where`, the key or the tensor, and what is allowed.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise BadInputError(
            f"{where}: key 'general.architecture' = {str(name)[:80]!r}: must be one of {', '.join(ARCHITECTURES)}"
        )
    kind, prefix = ARCHITECTURES[name], f"{name}."
    values = {
        key.removeprefix(prefix): value if isinstance(value, int | float | str) else "a list"
        for key, value in metadata.items()
        if key.startswith(prefix)
    }
    reader = ConfigReader(values, f"{where} ({name})")
    if "token_embd.weight" not in found:
        raise BadInputError(f"{where}: tensor token_embd.weight is missing")
    fields = {
        "vocab_size": found["token_embd.weight"][0],
        "width": reader.size("embedding_length"),
        "num_layers": reader.size("block_count"),
        "num_heads": reader.size("attention.head_count"),
        "mlp_width": reader.size("feed_forward_length"),
        "context": reader.context("context_length"),
        "tied_embeddings": "output.weight" not in found,
    }
    biased = any(name.endswith("_q.bias") for name in found)
    config = reader.transformer(**fields | kind.read(reader, biased))
    if _ROTARY_FACTORS in found:
        raise BadInputError(f"{where}: tensor {_ROTARY_FACTORS} scales the rotation, which is not supported")
    check_depth(config.num_layers, found, where)
    check_shapes(stored_shapes(kind, config), found, where)
    check_tables(config, where)
    return kind, config


def stored_shapes(kind: Architecture, config: TransformerConfig) -> dict[str, Shape]:
    """Name and shape of each tensor in the file."""
    found: dict[str, Shape] = {}
    for name, shape in parameter_shapes(config).items():
        target = stored_name(kind, name)
        found[target] = shape if target not in found else (found[target][0] + shape[0], *shape[1:])
    return found


def stored_name(kind: Architecture, name: str) -> str:
    """llama.cpp's name for one of our parameters: blocks.3.mlp.up.weight -> blk.3.ffn_up.weight."""
    match = _NAME.fullmatch(name)
    assert match is not None
    index, module, suffix = match.groups()
    if index is None:
        return f"{_OUTER[module]}.{suffix}"
    inner = "attn_qkv" if kind.joined and module in _JOINED else _INNER[module]
    return f"blk.{index}.{inner}.{suffix}"


def write_tensors(
    kind: Architecture, config: TransformerConfig, numbers: Callable[[str], Floats]
) -> dict[str, Callable[[], Floats]]:
    """The file's tensors, each made when it is called for; `numbers` gives one of our parameters by name."""
    parts: dict[str, list[str]] = {}
    for name in parameter_shapes(config):  # lists q, k, v in the order in which attn_qkv joins them
        parts.setdefault(stored_name(kind, name), []).append(name)

    def made(names: list[str]) -> Floats:
        found = [_interleave(numbers(name), _heads(kind, config, name)) for name in names]
        return found[0] if len(found) == 1 else np.concatenate(found)

    return {target: lambda names=names: made(names) for target, names in parts.items()}  # type: ignore[misc]


def read_tensors(
    kind: Architecture, config: TransformerConfig, numbers: Callable[[str], Floats]
) -> Iterator[tuple[str, Floats]]:
    """Our parameters by name, one after the other; `numbers` gives one of the file's tensors by name."""
    joined: tuple[str, Floats] = ("", np.empty(0, dtype=np.float32))
    for name, shape in parameter_shapes(config).items():
        target = stored_name(kind, name)
        if not (kind.joined and any(f".{module}." in name for module in _JOINED)):
            yield name, _deinterleave(numbers(target), _heads(kind, config, name))
            continue
        if joined[0] != target:
            joined = (target, numbers(target))
        place = next(index for index, module in enumerate(_JOINED) if f".{module}." in name)
        yield name, joined[1][place * shape[0] : (place + 1) * shape[0]].copy()


def _heads(kind: Architecture, config: TransformerConfig, name: str) -> int:
    """The heads of a parameter whose rows the architecture interleaves; 0 for one that stays as it is."""
    if not kind.interleaved:
        return 0
    if ".attention.q." in name:
        return config.num_heads
    return config.num_kv_heads if ".attention.k." in name else 0


def _interleave(rows: Floats, heads: int) -> Floats:
    """Row i of a head's first half, then row i of its second half, for each i."""
    if not heads:
        return rows
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _deinterleave(rows: Floats, heads: int) -> Floats:
    """What `_interleave` did, undone."""
    if not heads:
        return rows
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _write_rotary(config: TransformerConfig) -> dict[str, Any]:
    return {
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_width,
        "attention.value_length": config.head_width,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "rope.dimension_count": config.head_width,
        "rope.freq_base": config.rope_theta,
    }


def _read_rotary(reader: ConfigReader, biased: bool) -> dict[str, Any]:
    num_heads = reader.size("attention.head_count")
    head_width = reader.size("attention.key_length", max(1, reader.size("embedding_length") // num_heads))
    reader.require("attention.value_length", (head_width,), head_width)
    reader.require("rope.dimension_count", (head_width,), head_width)
    reader.require("rope.scaling.type", ("none",), "none")
    reader.require("rope.scaling.factor", (0.0, 1.0), 1.0)
    reader.require("rope.scale_linear", (1.0,), 1.0)
    reader.require("expert_count", (0,), 0)
    return {
        "num_kv_heads": reader.size("attention.head_count_kv", num_heads),
        "head_width": head_width,
        "norm": "rmsnorm",
        "norm_placement": "pre",
        "norm_epsilon": shortest(reader.number("attention.layer_norm_rms_epsilon", 1e-6, low=1e-30, high=1.0)),
        "positions": "rope",
        "rope_theta": shortest(reader.number("rope.freq_base", 10_000.0, low=1e-3, high=1e15)),
        "mlp": "swiglu",
        "bias": biased,
    }


def _read_qwen3(reader: ConfigReader, biased: bool) -> dict[str, Any]:
    window = reader.values.get("attention.sliding_window")
    if window not in (None, 0):
        raise reader.error("attention.sliding_window", "absent: a window in some layers only is not supported")
    return _read_rotary(reader, biased) | {"qk_norm": True}


def _write_gpt2(config: TransformerConfig) -> dict[str, Any]:
    return {"attention.head_count_kv": config.num_kv_heads, "attention.layer_norm_epsilon": config.norm_epsilon}


def _read_gpt2(reader: ConfigReader, biased: bool) -> dict[str, Any]:  # noqa: ARG001 - gpt2 always has biases
    num_heads = reader.size("attention.head_count")
    reader.require("attention.head_count_kv", (num_heads,), num_heads)
    return {
        "num_kv_heads": num_heads,
        "norm": "layernorm",
        "norm_placement": "pre",
        "norm_epsilon": shortest(reader.number("attention.layer_norm_epsilon", 1e-5, low=1e-30, high=1.0)),
        "positions": "learned",
        "mlp": "gelu_tanh",
        "bias": True,
    }


def shortest(value: float) -> float:
    """A float32 of the file as the decimal number that it was written from: 1e-05 for 9.99999974e-06."""
    return float(str(np.float32(value)))


ARCHITECTURES: dict[str, Architecture] = {
    kind.name: kind
    for kind in (
        Architecture(name="llama", interleaved=True, joined=False, write=_write_rotary, read=_read_rotary),
        Architecture(name="qwen3", interleaved=False, joined=False, write=_write_rotary, read=_read_qwen3),
        Architecture(name="gpt2", interleaved=False, joined=True, write=_write_gpt2, read=_read_gpt2),
    )
}
