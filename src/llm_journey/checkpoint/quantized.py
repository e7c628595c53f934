"""A model folder whose matrices are held in few bits: what its config.json says of them, and which tensors it holds.

config.json is ours ("model_type": "llm_journey"), with one key more:

    "quantization_config": {"quant_method": "llm_journey", "format": "int4", "bits": 4, "group_size": 32, ...}

In model.safetensors a matrix `NAME.weight` is replaced by NAME.codes, NAME.scale ... (quantization.scheme.layout);
norms, biases and position tables stay as they are. Every name, shape and type follows from the config by arithmetic,
and is compared with the file before it is used. Other libraries' quantized folders (GPTQ's, bitsandbytes') are not
read.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llm_journey.checkpoint.shapes import check_shapes, parameter_shapes
from llm_journey.checkpoint.tensor_files import Shape
from llm_journey.core.config import dump, validate
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig
from llm_journey.quantization.formats import QuantizedWeight
from llm_journey.quantization.layers import is_quantized, put_weights, schemes_of
from llm_journey.quantization.scheme import Layout, Scheme, layout, restored, scheme_for

KEY, METHOD = "quantization_config", "llm_journey"
# Matrices by shape that are tables: their rows are added up, never multiplied.
_TABLES = ("position_embed.weight", "token_type_embed.weight")


def config_values(model: nn.Module) -> dict[str, Any]:
    """What config.json says of a quantized model's matrices; nothing of a plain one's."""
    if not is_quantized(model):
        return {}
    found = schemes_of(model)
    for name, scheme in found.items():
        if scheme != scheme_for(name, _body(found)):
            raise BadInputError(f"{name} is in {scheme.describe()}, other layers are not; a folder holds one scheme")
    return {KEY: {"quant_method": METHOD, **dump(_body(found))}}


def read_scheme(values: Mapping[str, Any], where: str) -> Scheme | None:
    """The scheme that a config.json names, None where it names none. Raises BadInputError for another library's."""
    found = values.get(KEY)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method != METHOD:
        raise BadInputError(
            f"{where}: key '{KEY}' names the method {str(method)[:40]!r}; read here are {METHOD!r} (journey quantize), "
            "GGUF files, and folders that are not quantized"
        )
    return validate(Scheme, {key: value for key, value in found.items() if key != "quant_method"}, f"{where}, {KEY}")


def stored_layout(config: TransformerConfig, scheme: Scheme, where: str) -> Layout:
    """Name, shape and type of each quantized tensor of a model."""
    expected: dict[str, tuple[Shape, torch.dtype]] = {}
    for name, shape in _matrices(config).items():
        layer = name.removesuffix(".weight")
        try:
            parts = layout(scheme_for(layer, scheme), shape)
        except BadInputError as error:
            raise BadInputError(f"{where}: {layer}: {error}") from None
        expected |= {f"{layer}.{part}": described for part, described in parts.items()}
    return expected


def stored_shapes(config: TransformerConfig, scheme: Scheme, where: str) -> dict[str, Shape]:
    """Name and shape of every tensor in a quantized folder's file."""
    plain = {name: shape for name, shape in parameter_shapes(config).items() if name not in _matrices(config)}
    return plain | {name: shape for name, (shape, _) in stored_layout(config, scheme, where).items()}


def read_weights(
    config: TransformerConfig, scheme: Scheme, tensors: Mapping[str, Tensor], where: str
) -> dict[str, QuantizedWeight]:
    """The quantized matrices by the names of their layers. Raises BadInputError naming a tensor of another type or
    scales that are not finite."""
    check_shapes(
        stored_shapes(config, scheme, where), {name: tuple(value.shape) for name, value in tensors.items()}, where
    )
    for name, (_, dtype) in stored_layout(config, scheme, where).items():
        value = tensors[name]
        if value.dtype != dtype:
            raise BadInputError(f"{where}: tensor {name} is stored as {_named(value.dtype)}, not as {_named(dtype)}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise BadInputError(f"{where}: tensor {name} holds NaN or infinity; the file is damaged")
    weights = {}
    for name, shape in _matrices(config).items():
        layer = name.removesuffix(".weight")
        own = scheme_for(layer, scheme)
        parts = {part: tensors[f"{layer}.{part}"] for part in layout(own, shape)}
        weights[layer] = restored(own, parts, shape)
    return weights


def fill(
    model: nn.Module, config: TransformerConfig, scheme: Scheme, tensors: Mapping[str, Tensor], where: str
) -> None:
    """Put a folder's codes into a freshly built model in place of its matrices, and the other tensors beside them."""
    put_weights(model, read_weights(config, scheme, tensors, where))
    model.load_state_dict(tensors)


def dequantized(
    config: TransformerConfig, scheme: Scheme, tensors: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """The folder's tensors as a plain model has them: each matrix in float32, as its codes say."""
    weights = read_weights(config, scheme, tensors, where)
    plain = {name: tensors[name] for name in parameter_shapes(config) if name in tensors}
    return plain | {f"{layer}.weight": weight.dequantize() for layer, weight in weights.items()}


def _body(found: Mapping[str, Scheme]) -> Scheme:
    return next((scheme for name, scheme in found.items() if name not in ("embed", "head")), Scheme(format="int8"))


def _matrices(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    shapes = parameter_shapes(config)
    return {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2 and name not in _TABLES}


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
