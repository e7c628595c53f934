"""Layers whose matrix is held in few bits, and the walk that puts them into a model or takes them out again.

The tree is changed, not the classes: model.Decoder and all that reads it (perplexity, inspection, export) go on as they
are. A layer computes its readable form, the product with the weight that its codes say; the fast products of
quantization.products are made from the same codes by whoever answers (generation.runner). Codes and scales are buffers,
so nothing of them is trained; a gradient passes through to the inputs, as adapters on top need it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_journey.core.errors import BadInputError
from llm_journey.quantization.formats import DynamicInt8Weight, QuantizedWeight, quantize_int8
from llm_journey.quantization.products import dynamic_product
from llm_journey.quantization.scheme import Scheme, quantize, restored, scheme_for, scheme_of, stored

Quantize = Callable[[str, Tensor], QuantizedWeight]


class _Quantized(nn.Module):
    """A matrix (N, K) as buffers; `quantized` is the matrix again, `weight` what its codes say in float32."""

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.shape, self.scheme = weight.shape, scheme_of(weight)
        self.tensor_names = tuple(tensors := stored(weight))
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach())

    @property
    def quantized(self) -> QuantizedWeight:
        return restored(self.scheme, {name: getattr(self, name) for name in self.tensor_names}, self.shape)

    @property
    def weight(self) -> Tensor:
        return self.quantized.dequantize()

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(getattr(self, name).nbytes for name in self.tensor_names)

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, {self.scheme.describe()}"


class QuantizedLinear(_Quantized):
    """x W^T + b."""

    bias: Tensor | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        super().__init__(weight)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.out_features, self.in_features = self.shape

    def forward(self, x: Tensor) -> Tensor:
        weight = self.quantized
        if isinstance(weight, DynamicInt8Weight):
            result = dynamic_product(x.reshape(-1, self.in_features), weight).view(*x.shape[:-1], -1)
            return result if self.bias is None else result + self.bias
        if not (torch.is_grad_enabled() and x.requires_grad):
            return F.linear(x, weight.dequantize().to(x.dtype), self.bias)
        product: Tensor = _ProductOfCodes.apply(x, self)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class _ProductOfCodes(torch.autograd.Function):
    """x W^T, W out of its codes forward and again backward: in between nothing of its size is kept (Dettmers et al.
    2023, section 3: QLoRA's memory)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.layer.weight.to(gradients[0].dtype), None


class QuantizedEmbedding(_Quantized):
    """Rows of int8 by their number: of each id's row alone the codes are read."""

    codes: Tensor
    scale: Tensor

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__(weight)
        if self.scheme.format != "int8":
            raise ValueError("an embedding's rows are held in int8")

    def forward(self, ids: Tensor) -> Tensor:
        return self.codes[ids] * self.scale[ids][..., None]


def quantize_model(model: nn.Module, scheme: Scheme, quantizer: Quantize | None = None) -> None:
    """Swap every linear layer and the embedding of tokens. Embedding and head become int8 whatever the scheme.

    Norms, biases, learned positions and token types stay as they are: small, or read by the row.
    quantizer: what makes a matrix's codes, by its name (default: to the nearest code). Raises BadInputError that names
    the matrix which does not fit.
    """
    for name, parent, attribute, child in list(_places(model)):
        if isinstance(child, _Quantized):
            continue
        weight = child.weight.detach()
        try:
            if scheme_for(name, scheme).format == "int8":
                quantized: QuantizedWeight = quantize_int8(weight)
            else:
                quantized = quantize(weight, scheme) if quantizer is None else quantizer(name, weight)
        except BadInputError as error:
            raise BadInputError(f"{name}: {error}; choose another group, or int8, which fits every matrix") from None
        put(parent, attribute, child, quantized)


def put(parent: nn.Module, attribute: str, child: nn.Linear | nn.Embedding, weight: QuantizedWeight) -> None:
    """A quantized layer in the place of a plain one, whose bias it keeps."""
    if isinstance(child, nn.Embedding):
        setattr(parent, attribute, QuantizedEmbedding(weight))
    else:
        setattr(parent, attribute, QuantizedLinear(weight, child.bias))


def dequantize_model(model: nn.Module) -> int:
    """Undo `quantize_model`, save for what rounding lost: plain layers with the weights that the codes say.

    Returns how many layers were put back.
    """
    count = 0
    for _, parent, attribute, child in list(_places(model)):
        if isinstance(child, _Quantized):
            setattr(parent, attribute, _plain(child))
            count += 1
    return count


def _plain(layer: _Quantized) -> nn.Linear | nn.Embedding:
    rows, columns = layer.shape
    bias = layer.bias if isinstance(layer, QuantizedLinear) else None
    plain: nn.Linear | nn.Embedding
    with torch.device("meta"):  # no numbers are drawn that would be thrown away
        if isinstance(layer, QuantizedEmbedding):
            plain = nn.Embedding(rows, columns)
        else:
            plain = nn.Linear(columns, rows, bias=bias is not None)
    plain.load_state_dict({"weight": layer.weight} | ({} if bias is None else {"bias": bias}), assign=True)
    return plain


def put_weights(model: nn.Module, weights: Mapping[str, QuantizedWeight]) -> None:
    """Put weights that exist already in the places of plain layers, by their names."""
    for name, parent, attribute, child in list(_places(model)):
        if isinstance(child, nn.Linear | nn.Embedding):
            put(parent, attribute, child, weights[name])


def schemes_of(model: nn.Module) -> dict[str, Scheme]:
    """The scheme of each quantized layer, by its name. Raises BadInputError where a matrix is still whole."""
    found = {}
    for name, _, _, child in _places(model):
        if not isinstance(child, _Quantized):
            raise BadInputError(f"{name} is not quantized, other layers are; quantize the whole model")
        found[name] = child.scheme
    return found


def is_quantized(model: nn.Module) -> bool:
    """Whether any matrix of a model is held in few bits."""
    return any(isinstance(module, _Quantized) for module in model.modules())


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Linear | nn.Embedding | _Quantized]]:
    """(name, parent, attribute, child) of each linear layer, and of the embedding of tokens."""
    for path, parent in model.named_modules():
        for attribute, child in parent.named_children():
            name = f"{path}.{attribute}" if path else attribute
            if isinstance(child, nn.Linear | _Quantized) or (name == "embed" and isinstance(child, nn.Embedding)):
                yield name, parent, attribute, child
