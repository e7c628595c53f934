"""Matrices of an ONNX graph in 8 or 4 bits, by onnxruntime's product of blocks (MatMulNBits).

    int8    w = scale * q              q in -127..127, a scale for each 32 inputs
    int4    w = scale * q + minimum    q in 0..15, both for each 32 inputs: quantization.formats' own

The runtime's product knows scale * (q - 8) at 4 bits; the rest is a small product of its own, exact in float32:

    x W^T = x (scale (q - 8))^T + sums(x) (minimum + 8 scale)^T,    sums: of each 32 inputs

The head and the embedding are int8 at either width: they are the same matrix, kept once, where they are tied. At 8 bits
the product rounds activations to int8 by blocks of 32 too (accuracy_level 4): in float32 it is ten times slower. At 4
bits it does not (accuracy_level 1): that costs 8% of the tokens a second and takes 25 MB less, and on SmolLM2's chats
the KL to float32 is 0.001 instead of 0.007.

Legend: M outputs, K inputs, G groups of 32, V vocabulary, D width.
"""

import torch
from onnx import TensorProto
from torch import Tensor

from llm_journey.compression.onnx_graph import Embed, Graph, Linear, float_embed, float_head, float_linear
from llm_journey.quantization.formats import quantize_int4

GROUP = 32
_MIDDLE = {8: 128, 4: 8}
_ACCURACY = {8: 4, 4: 1}
_DOMAIN = "com.microsoft"


def int8_linear(graph: Graph, x: str, name: str, weight_mk: Tensor) -> str:
    """x W^T with W in int8; a matrix whose inputs are no whole groups stays float32."""
    if weight_mk.shape[1] % GROUP:
        return float_linear(graph, x, name, weight_mk)
    codes, scale = _int8(graph, name, weight_mk)
    return _product(graph, x, weight_mk, codes, scale, bits=8)


def int4_linear(graph: Graph, x: str, name: str, weight_mk: Tensor) -> str:
    """x W^T with W in int4."""
    if weight_mk.shape[1] % GROUP:
        return float_linear(graph, x, name, weight_mk)
    weight = quantize_int4(weight_mk, GROUP)
    packed_mk = weight.codes_nk[:, ::2] | weight.codes_nk[:, 1::2] << 4
    codes = graph.tensor(f"{name}.codes", torch.unflatten(packed_mk, 1, (-1, GROUP // 2)).numpy())
    scale = graph.tensor(f"{name}.scale", weight.scale_ng)
    rest_mg = weight.minimum_ng + _MIDDLE[4] * weight.scale_ng
    grouped = graph.add("Reshape", x, graph.ints(0, 0, -1, GROUP))
    sums = graph.add("ReduceSum", grouped, graph.ints(-1), keepdims=0)
    main = _product(graph, x, weight_mk, codes, scale, bits=4)
    return graph.add("Add", main, graph.add("MatMul", sums, graph.tensor(f"{name}.rest", rest_mg.T)))


def int8_embed(graph: Graph, ids: str, name: str, weight_vd: Tensor) -> str:
    """Rows of an int8 matrix, float32 again; the codes are those that a tied head multiplies."""
    if weight_vd.shape[1] % GROUP:
        return float_embed(graph, ids, name, weight_vd)
    codes, scale = _int8(graph, name, weight_vd)
    rows = graph.add("Cast", graph.add("Gather", codes, ids), to=TensorProto.FLOAT)
    scales = graph.add("Unsqueeze", graph.add("Gather", scale, ids), graph.ints(3))
    y = graph.add("Mul", graph.add("Sub", rows, graph.number(float(_MIDDLE[8]))), scales)
    return graph.add("Reshape", y, graph.ints(0, 0, -1))


def int8_head(graph: Graph, x: str, name: str, weight_vd: Tensor) -> str:
    """The head's product in int8; float32 where the width is no whole groups, as the embedding is then."""
    whole = weight_vd.shape[1] % GROUP == 0
    return int8_linear(graph, x, name, weight_vd) if whole else float_head(graph, x, name, weight_vd)


# By type: (linear, head, embed) for onnx_graph.decoder_graph.
MATRICES: dict[str, tuple[Linear, Linear, Embed]] = {
    "float32": (float_linear, float_head, float_embed),
    "int8": (int8_linear, int8_head, int8_embed),
    "int4": (int4_linear, int8_head, int8_embed),
}


def _int8(graph: Graph, name: str, weight_mk: Tensor) -> tuple[str, str]:
    """Names of the codes (M, G, 32), with 128 for 0, and of the scales (M, G)."""
    weight_mgk = torch.unflatten(weight_mk.detach().float().cpu(), 1, (-1, GROUP))
    scale_mg = weight_mgk.abs().amax(-1) / 127
    divisor_mg1 = torch.where(scale_mg > 0, scale_mg, 1.0)[..., None]
    codes_mgk = (weight_mgk / divisor_mg1).round().to(torch.int16) + _MIDDLE[8]
    codes = graph.tensor(f"{name}.codes", codes_mgk.to(torch.uint8).numpy())
    return codes, graph.tensor(f"{name}.scale", scale_mg)


def _product(graph: Graph, x: str, weight_mk: Tensor, codes: str, scale: str, *, bits: int) -> str:
    num_outputs, num_inputs = weight_mk.shape
    sizes = {"N": num_outputs, "K": num_inputs, "bits": bits, "block_size": GROUP}
    return graph.add("MatMulNBits", x, codes, scale, domain=_DOMAIN, accuracy_level=_ACCURACY[bits], **sizes)
