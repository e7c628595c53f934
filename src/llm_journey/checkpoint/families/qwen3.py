"""Qwen3 (Yang et al. 2025) as Hugging Face stores it: llama's block, and a norm on each head's query and key.

A sliding window fits when every layer has it (transformers: `layer_types`); a mixture of kinds does not.
"""

from typing import Any

from llm_journey.checkpoint.families import llama
from llm_journey.checkpoint.families.family import ConfigReader, Family
from llm_journey.model.config import TransformerConfig

_DEFAULT_HEAD_WIDTH = 128  # transformers' own, where config.json is silent


def _fits(config: TransformerConfig) -> bool:
    return llama.fits_shared(config) and config.qk_norm and not config.bias


def _write_config(config: TransformerConfig) -> dict[str, Any]:
    window = config.sliding_window
    kind = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    layer_type = "full_attention" if window is None else "sliding_attention"
    windows = {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": config.num_layers if window is None else 0,
        "layer_types": [layer_type] * config.num_layers,
    }
    return kind | llama.write_shared(config) | windows


def _read_config(reader: ConfigReader) -> TransformerConfig:
    reader.require("attention_bias", (False,), False)
    fields = llama.read_shared(reader, default_head_width=_DEFAULT_HEAD_WIDTH)
    return reader.transformer(
        **fields, bias=False, qk_norm=True, sliding_window=_read_window(reader, fields["num_layers"])
    )


def _read_window(reader: ConfigReader, num_layers: int) -> int | None:
    """The window that all layers share, or None for full attention; transformers' rule for which layers have one."""
    window = reader.size("sliding_window", 4096) if reader.flag("use_sliding_window", False) else None
    types = reader.values.get("layer_types")
    if types is None:
        first = reader.number("max_window_layers", 28, low=0, high=float(1 << 31))
        if window is None or first >= num_layers:
            return None
        if first > 0:
            raise reader.error("max_window_layers", "0 or at least the number of layers; mixed layers do not fit")
        return window
    if not isinstance(types, list) or len(types) != num_layers:
        raise reader.error("layer_types", f"a list of {num_layers} names, one a layer")
    if all(item == "full_attention" for item in types):
        return None
    if window is None or any(item != "sliding_attention" for item in types):
        raise reader.error("layer_types", "all 'full_attention', or all 'sliding_attention' with a window")
    return window


FAMILY = Family(
    name="qwen3",
    fits=_fits,
    write_config=_write_config,
    read_config=_read_config,
    shapes=llama.shapes,
    rename=llama.rename,
    write_tensors=llama.write_tensors,
    read_tensors=llama.read_tensors,
    derived=llama.derived,
)
