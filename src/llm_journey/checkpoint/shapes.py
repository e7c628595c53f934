"""Which tensors a configuration asks for, by arithmetic alone: nothing is allocated, so a lying config costs nothing.

Legend: D width, H heads, K key-value heads, E head width, F feed-forward width, V vocabulary, T context.
"""

from collections.abc import Iterable, Mapping

from llm_journey.checkpoint.tensor_files import Shape
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig

# The most positions that a config from outside may claim: rotary tables are as long, and no file's size bounds them.
MAX_CONTEXT = 1 << 20


def parameter_shapes(config: TransformerConfig) -> dict[str, Shape]:
    """Name and shape of every tensor in the state of a `Decoder(config)`."""
    width, pre = config.width, config.norm_placement == "pre"
    shapes: dict[str, Shape] = {"embed.weight": (config.vocab_size, width)}
    if config.positions == "learned":
        shapes["position_embed.weight"] = (config.context, width)
    for index in range(config.num_layers):
        shapes.update({f"blocks.{index}.{name}": shape for name, shape in _block_shapes(config).items()})
    if pre:
        shapes.update(_norm_shapes("norm", config))
    if not config.tied_embeddings:
        shapes["head.weight"] = (config.vocab_size, width)
    return shapes


def _block_shapes(config: TransformerConfig) -> dict[str, Shape]:
    width, all_heads, kv_heads = config.width, config.num_heads * config.head_width, _kv_width(config)
    linears = {
        "attention.q": (all_heads, width),
        "attention.k": (kv_heads, width),
        "attention.v": (kv_heads, width),
        "attention.o": (width, all_heads),
        "mlp.up": (config.mlp_width, width),
        "mlp.down": (width, config.mlp_width),
    }
    if config.mlp == "swiglu":
        linears["mlp.gate"] = (config.mlp_width, width)
    shapes: dict[str, Shape] = {}
    for name, shape in linears.items():
        shapes[f"{name}.weight"] = shape
        if config.bias:
            shapes[f"{name}.bias"] = shape[:1]
    if config.qk_norm:
        shapes["attention.q_norm.weight"] = shapes["attention.k_norm.weight"] = (config.head_width,)
    return shapes | _norm_shapes("attention_norm", config) | _norm_shapes("mlp_norm", config)


def _kv_width(config: TransformerConfig) -> int:
    return config.num_kv_heads * config.head_width


def _norm_shapes(name: str, config: TransformerConfig) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {f"{name}.weight": (config.width,)}
    if config.norm == "layernorm" and config.bias:
        shapes[f"{name}.bias"] = (config.width,)
    return shapes


def check_depth(num_layers: int, found: Mapping[str, Shape], where: str) -> None:
    """Refuse a config that claims more layers than the file holds tensors, before the names are even listed."""
    if num_layers > len(found):
        raise BadInputError(f"{where}: its config claims {num_layers} layers, the file holds {len(found)} tensors")


def check_shapes(expected: Mapping[str, Shape], found: Mapping[str, Shape], where: str) -> None:
    """Raise BadInputError naming what is missing, left over, or of another shape than the config says."""
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise BadInputError(f"{where}: tensors are missing: {_listed(missing)}")
    leftover = sorted(found.keys() - expected.keys())
    if leftover:
        raise BadInputError(f"{where}: tensors that this model has no place for: {_listed(leftover)}")
    for name, shape in expected.items():
        if tuple(found[name]) != shape:
            raise BadInputError(
                f"{where}: tensor {name} has shape {list(found[name])}, its config asks for {list(shape)}"
            )


def _listed(names: Iterable[str], most: int = 8) -> str:
    items = list(names)
    rest = len(items) - most
    return ", ".join(items[:most]) + (f" and {rest} more" if rest > 0 else "")
