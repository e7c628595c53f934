"""Which tensors a configuration asks for, by arithmetic alone: nothing is allocated, so a lying config costs nothing.

Legend: D width, H heads, K key-value heads, E head width, F feed-forward width, V vocabulary, T context.
"""

from collections.abc import Iterable, Mapping

from llm_journey.checkpoint.tensor_files import Shape
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig
from llm_journey.model.cost import count_parameters

# The most positions that a config from outside may claim: rotary tables are as long, and no file's size bounds them.
MAX_CONTEXT = 1 << 20
# Making a table takes at its peak so many bytes for each position and channel: angles, sines, cosines, float64 or not.
_PEAK_BYTES = {"rope": 6, "sinusoidal": 10, "sinusoidal_halves": 24}
# Up to this peak (a context of 131,072 with heads of 64) tables are made for a model of any size.
_TABLE_BYTES = 48 << 20
# The least that a block of any kind has: two norms, a joined q, k and v, o, up and down.
_TENSORS_PER_LAYER = 6


def parameter_shapes(config: TransformerConfig) -> dict[str, Shape]:
    """Name and shape of every tensor in the state of a model of `config`, whichever kind it is of."""
    width, both = config.width, config.kind == "encoder_decoder"
    shapes: dict[str, Shape] = {"embed.weight": (config.vocab_size, width)}
    if config.positions == "learned":
        shapes["position_embed.weight"] = (config.context, width)
    if config.token_types:
        shapes["token_type_embed.weight"] = (config.token_types, width)
    if config.embedding_norm:
        shapes |= _norm_shapes("embed_norm", config)
    if both:
        shapes |= _stack_shapes("encoder_", config.num_layers, config, cross=False)
    shapes |= _stack_shapes("", config.num_decoder_layers if both else config.num_layers, config, cross=both)
    if config.prefix_tokens:
        heads = 2 * config.num_kv_heads
        shapes["prefix.keys_values_lpje"] = (config.num_layers, config.prefix_tokens, heads, config.head_width)
    if config.pooler:
        shapes |= _linear_shapes("pooler", (width, width), config)
    if config.next_sentence:
        shapes |= _linear_shapes("next_sentence", (2, width), config)
    if config.head_transform:
        shapes |= _linear_shapes("head_dense", (width, width), config) | _norm_shapes("head_norm", config)
    if not config.tied_embeddings:
        shapes["head.weight"] = (config.vocab_size, width)
    if config.head_bias:
        shapes["head_bias"] = (config.vocab_size,)
    return shapes


def _stack_shapes(prefix: str, num_layers: int, config: TransformerConfig, *, cross: bool) -> dict[str, Shape]:
    """A stack's blocks and the norm behind them."""
    block = _block_shapes(config, cross)
    shapes = {f"{prefix}blocks.{index}.{name}": shape for index in range(num_layers) for name, shape in block.items()}
    return shapes | (_norm_shapes(f"{prefix}norm", config) if config.norm_placement == "pre" else {})


def _block_shapes(config: TransformerConfig, cross: bool) -> dict[str, Shape]:
    shapes = _norm_shapes("attention_norm", config) | _attention_shapes("attention", config)
    if cross:
        shapes |= _norm_shapes("cross_norm", config) | _attention_shapes("cross_attention", config)
    shapes |= _norm_shapes("mlp_norm", config)
    for name in ("mlp.gate", "mlp.up") if config.mlp == "swiglu" else ("mlp.up",):
        shapes |= _linear_shapes(name, (config.mlp_width, config.width), config)
    return shapes | _linear_shapes("mlp.down", (config.width, config.mlp_width), config)


def _attention_shapes(name: str, config: TransformerConfig) -> dict[str, Shape]:
    width, all_heads, kv_heads = config.width, config.num_heads * config.head_width, _kv_width(config)
    shapes: dict[str, Shape] = {}
    for part, shape in {"q": (all_heads, width), "k": (kv_heads, width), "v": (kv_heads, width)}.items():
        shapes |= _linear_shapes(f"{name}.{part}", shape, config)
    shapes |= _linear_shapes(f"{name}.o", (width, all_heads), config)
    if config.qk_norm:
        shapes[f"{name}.q_norm.weight"] = shapes[f"{name}.k_norm.weight"] = (config.head_width,)
    return shapes


def _linear_shapes(name: str, shape: Shape, config: TransformerConfig) -> dict[str, Shape]:
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if config.bias else {})


def _kv_width(config: TransformerConfig) -> int:
    return config.num_kv_heads * config.head_width


def _norm_shapes(name: str, config: TransformerConfig) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {f"{name}.weight": (config.width,)}
    if config.norm == "layernorm" and config.bias:
        shapes[f"{name}.bias"] = (config.width,)
    return shapes


def check_tables(config: TransformerConfig, where: str) -> None:
    """Refuse a context whose position tables, which are computed and in no file, are out of proportion to the model."""
    widths = {"rope": config.head_width, "sinusoidal": config.width, "sinusoidal_halves": config.width}
    table_bytes = _PEAK_BYTES.get(config.positions, 0) * config.context * widths.get(config.positions, 0)
    model_bytes = 4 * count_parameters(config).total
    if table_bytes > max(_TABLE_BYTES, model_bytes):
        raise BadInputError(
            f"{where}: its config claims a context of {config.context} positions, whose tables take "
            f"{table_bytes >> 20} MiB, more than the model itself ({model_bytes >> 20} MiB); correct the context"
        )


def check_depth(num_layers: int, found: Mapping[str, Shape], where: str) -> None:
    """Refuse a config that claims more layers than the file's tensors can make, before the names are even listed."""
    if num_layers * _TENSORS_PER_LAYER > len(found):
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
