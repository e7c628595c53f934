"""Our transformers as ONNX graphs, node by node: a decoder with past keys and values, and an encoder.

Written out rather than traced, so that each node can be pointed at and each matrix kept as one likes. SmolLM2's graph
has 1,172 nodes and took 2 to 3 seconds to make, where torch.onnx took 92 to 121 on the same busy machine, for 1,254
nodes (opset 23) or 2,401 (opset 18). Inputs and outputs bear the names that Hugging Face's own exports give them:

    input_ids, attention_mask, position_ids, past_key_values.N.key|value  ->  logits, present.N.key|value
    input_ids, attention_mask, token_type_ids                  ->  last_hidden_state, logits, sentence_embedding

`answering` writes a decoder for a program that answers in little memory: logits of the last position alone, and
new.N.key|value, the keys and values of the new positions alone, in the order in which a buffer can grow (B, T, K, E).

How a matrix is kept is the caller's choice (`Linear`); everything else is float32 and ONNX's own operators. Encoder-
decoders are left out.

Legend: B batch, T new positions, P past ones, S = P + T, D width, H heads, K key-value heads, G = H / K, E head width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from llm_journey.core.errors import BadInputError, unknown_name
from llm_journey.model.attention import Attention
from llm_journey.model.blocks import Block
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder import Encoder
from llm_journey.model.mlp import GatedMlp, Mlp
from llm_journey.model.norms import LayerNorm, RMSNorm
from llm_journey.model.positions import SINUSOIDS
from llm_journey.model.transformer import Transformer

OPSET, IR_VERSION = 23, 11  # 23 is the first with RMSNormalization
_HIDDEN = -1e30  # added to a score that must not count: its exponential is 0, and no row becomes NaN

Shape = Sequence[str | int]


class Graph:
    """Nodes and tensors of a graph on its way. Values go by their names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def add(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """A node; returns the name of its output."""
        return self.add_several(1, kind, *inputs, domain=domain, **attributes)[0]

    def add_several(self, count: int, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        """A node of `count` outputs; returns their names."""
        names = [f"{kind.lower()}_{len(self.nodes)}_{index}" for index in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def tensor(self, name: str, value: Tensor | npt.NDArray[Any]) -> str:
        """A tensor under a name; one that is there already stays."""
        if name not in self.tensors:
            array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
            self.tensors[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def ints(self, *values: int) -> str:
        """A row of whole numbers."""
        return self.tensor(f"ints_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.tensor(f"number_{value!r}", np.array(value, np.float32))

    def whole(self, value: int) -> str:
        return self.tensor(f"whole_{value}", np.array(value, np.int64))

    def input(self, name: str, kind: int, shape: Shape) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return name

    def output(self, value: str, name: str, shape: Shape) -> None:
        """Give a value out under a name."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def length(self, value: str, axis: int) -> str:
        """One dimension of a value, as a row of one number."""
        return self.add("Shape", value, start=axis, end=axis + 1)

    def model(self, name: str) -> onnx.ModelProto:
        """The whole, checked neither for types nor for shapes: onnxruntime does both when it opens it."""
        domains = sorted({node.domain for node in self.nodes})
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.tensors.values()))
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, 1 if domain else OPSET) for domain in domains],
            ir_version=IR_VERSION,
            producer_name="llm-journey",
        )


# (graph, input, name, weight (M, K)) -> the product's output; a bias is added by the caller.
Linear = Callable[[Graph, str, str, Tensor], str]
# (graph, ids, name, weight (V, D)) -> rows of the embedding
Embed = Callable[[Graph, str, str, Tensor], str]


def float_linear(graph: Graph, x: str, name: str, weight_mk: Tensor) -> str:
    """x W^T, the matrix kept as ONNX multiplies it, transposed."""
    return graph.add("MatMul", x, graph.tensor(f"{name}.transposed", weight_mk.T))


def float_embed(graph: Graph, ids: str, name: str, weight_vd: Tensor) -> str:
    """Rows of the matrix as it is."""
    return graph.add("Gather", graph.tensor(name, weight_vd), ids)


def float_head(graph: Graph, x: str, name: str, weight_vd: Tensor) -> str:
    """The head's product; the matrix is turned within the graph, so that a tied one lies in the file once."""
    return graph.add("MatMul", x, graph.add("Transpose", graph.tensor(name, weight_vd), perm=[1, 0]))


def decoder_graph(
    decoder: Decoder,
    *,
    linear: Linear = float_linear,
    head: Linear = float_head,
    embed: Embed = float_embed,
    answering: bool = False,
) -> onnx.ModelProto:
    """The graph of a decoder: logits (B, T, V), keys and values of all positions (B, K, S, E). answering: (B, 1, V)
    and those of the new positions (B, T, K, E). Batches of unequal texts stand with their padding on the left."""
    config, graph = decoder.config, Graph()
    writer = _Writer(graph, decoder, linear, embed)
    ids = graph.input("input_ids", TensorProto.INT64, ("batch", "length"))
    seen = graph.input("attention_mask", TensorProto.INT64, ("batch", "total_length"))
    positions = graph.input("position_ids", TensorProto.INT64, ("batch", "length"))
    shape: Shape = ("batch", config.num_kv_heads, "past_length", config.head_width)
    if answering:
        shape = ("batch", "past_length", config.num_kv_heads, config.head_width)
    past = [
        tuple(graph.input(f"past_key_values.{layer}.{side}", TensorProto.FLOAT, shape) for side in ("key", "value"))
        for layer in range(config.num_layers)
    ]
    x = writer.embedded(ids, positions)
    start = graph.length(past[0][0], shape.index("past_length"))
    mask, rotary = _causal_mask(graph, config, ids, seen, start), writer.rotary(positions)
    present = []
    for index, block in enumerate(decoder.blocks):
        assert isinstance(block, Block)
        x, keys_values = writer.block(x, f"blocks.{index}", block, rotary, mask, past[index], answering)
        present.append(keys_values)
    if answering:
        x = graph.add("Slice", x, graph.ints(-1), graph.ints(2**31 - 1), graph.ints(1))
    x = writer.norm(x, "norm", decoder.norm)
    graph.output(
        head(graph, x, writer.head_name, decoder.head_weight), "logits", ("batch", "positions", config.vocab_size)
    )
    given, length = ("new", "length") if answering else ("present", "total_length")
    total = [length if size == "past_length" else size for size in shape]
    for layer, values in enumerate(present):
        for side, value in zip(("key", "value"), values, strict=True):
            graph.output(value, f"{given}.{layer}.{side}", total)
    return graph.model("decoder")


def encoder_graph(
    encoder: Encoder, *, linear: Linear = float_linear, pooling: str | None = None, normalize: bool = False
) -> onnx.ModelProto:
    """The graph of an encoder: last_hidden_state, logits where it has a head, sentence_embedding where `pooling`
    ("mean" or "cls") says how hidden states become one vector (of length 1 with `normalize`)."""
    config, graph = encoder.config, Graph()
    writer = _Writer(graph, encoder, linear, float_embed)
    ids = graph.input("input_ids", TensorProto.INT64, ("batch", "length"))
    seen = graph.input("attention_mask", TensorProto.INT64, ("batch", "length"))
    types = graph.input("token_type_ids", TensorProto.INT64, ("batch", "length")) if config.token_types else None
    end = graph.add("Squeeze", graph.length(ids, 1))
    positions = graph.add("Unsqueeze", graph.add("Range", graph.whole(0), end, graph.whole(1)), graph.ints(0))
    x = writer.embedded(ids, positions, types)
    mask = _added(graph, graph.add("Unsqueeze", graph.add("Cast", seen, to=TensorProto.BOOL), graph.ints(1, 2)))
    rotary = writer.rotary(positions)
    for index, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        x, _ = writer.block(x, f"blocks.{index}", block, rotary, mask, None)
    x = writer.norm(x, "norm", encoder.norm)
    graph.output(x, "last_hidden_state", ("batch", "length", config.width))
    if encoder.head_dense is not None and encoder.head_norm is not None:
        y = writer.activation(writer.linear(x, "head_dense", encoder.head_dense))
        y = float_head(graph, writer.norm(y, "head_norm", encoder.head_norm), writer.head_name, encoder.head_weight)
        if encoder.head_bias is not None:
            y = graph.add("Add", y, graph.tensor("head_bias", encoder.head_bias))
        graph.output(y, "logits", ("batch", "length", config.vocab_size))
    if pooling is not None:
        graph.output(_pooled(graph, x, seen, pooling, normalize), "sentence_embedding", ("batch", config.width))
    return graph.model("encoder")


class _Writer:
    """The parts that both kinds share, each written where it is called."""

    def __init__(self, graph: Graph, model: Transformer, linear: Linear, embed: Embed) -> None:
        self.graph, self.model, self.config = graph, model, model.config
        self._linear, self._embed = linear, embed
        self.head_name = "embed.weight" if model.head is None else "head.weight"

    def embedded(self, ids: str, positions: str, types: str | None = None) -> str:
        """What the first block reads: see model.transformer."""
        graph, model = self.graph, self.model
        x = self._embed(graph, ids, "embed.weight", model.embed.weight)
        if self.config.embedding_scale:
            x = graph.add("Mul", x, graph.number(model.scale))
        if model.token_type_embed is not None and types is not None:
            x = graph.add("Add", x, float_embed(graph, types, "token_type_embed.weight", model.token_type_embed.weight))
        if model.position_embed is not None:
            x = graph.add("Add", x, float_embed(graph, positions, "position_embed.weight", model.position_embed.weight))
        if self.config.positions in SINUSOIDS:
            x = graph.add("Add", x, float_embed(graph, positions, "sinusoids", model.sinusoids))
        return x if model.embed_norm is None else self.norm(x, "embed_norm", model.embed_norm)

    def rotary(self, positions: str) -> tuple[str, str] | None:
        """cos and sin of each position, (B, T, 1, E): both halves of a head turn by the same angles."""
        if self.config.positions != "rope":
            return None
        graph, model = self.graph, self.model
        tables = {"cos": model.cos, "sin": model.sin}
        whole = [graph.tensor(name, table.repeat(1, 2)) for name, table in tables.items()]
        cos, sin = (graph.add("Unsqueeze", graph.add("Gather", each, positions), graph.ints(2)) for each in whole)
        return cos, sin

    def block(
        self,
        x: str,
        name: str,
        block: Block,
        rotary: tuple[str, str] | None,
        mask: str,
        past: Sequence[str] | None,
        answering: bool = False,
    ) -> tuple[str, tuple[str, str]]:
        """A block's output, and its keys and values of all positions, or of the new ones: see `decoder_graph`."""
        graph = self.graph
        if block.pre:
            y = self.norm(x, f"{name}.attention_norm", block.attention_norm)
            y, present = self.attention(y, name, block.attention, rotary, mask, past, answering)
            x = graph.add("Add", x, y)
            return graph.add("Add", x, self.mlp(self.norm(x, f"{name}.mlp_norm", block.mlp_norm), name, block)), present
        y, present = self.attention(x, name, block.attention, rotary, mask, past, answering)
        x = self.norm(graph.add("Add", x, y), f"{name}.attention_norm", block.attention_norm)
        return self.norm(graph.add("Add", x, self.mlp(x, name, block)), f"{name}.mlp_norm", block.mlp_norm), present

    def attention(
        self,
        x: str,
        name: str,
        layer: Attention,
        rotary: tuple[str, str] | None,
        mask: str,
        past: Sequence[str] | None,
        answering: bool,
    ) -> tuple[str, tuple[str, str]]:
        """softmax(Q K^T / sqrt(E) + mask) V; the heads of a group stand as queries of their key-value head."""
        graph, config = self.graph, self.config
        heads, kv_heads, width = config.num_heads, config.num_kv_heads, config.head_width
        joined = self.linear(x, f"{name}.attention.qkv", layer.q, layer.k, layer.v)
        all_heads = graph.add("Reshape", joined, graph.ints(0, 0, heads + 2 * kv_heads, width))
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k, v = graph.add_several(3, "Split", all_heads, graph.ints(heads, kv_heads, kv_heads), axis=2)
            q, k = self.norm(q, f"{name}.q_norm", layer.q_norm), self.norm(k, f"{name}.k_norm", layer.k_norm)
            q, k = (each if rotary is None else self._turned(each, rotary) for each in (q, k))
        else:
            qk, v = graph.add_several(2, "Split", all_heads, graph.ints(heads + kv_heads, kv_heads), axis=2)
            qk = qk if rotary is None else self._turned(qk, rotary)
            q, k = graph.add_several(2, "Split", qk, graph.ints(heads, kv_heads), axis=2)
        given = k, v
        if past is not None and answering:
            k, v = (graph.add("Concat", old, new, axis=1) for old, new in zip(past, given, strict=True))
        q, k, v = (graph.add("Transpose", each, perm=[0, 2, 1, 3]) for each in (q, k, v))
        if past is not None and not answering:
            k, v = (graph.add("Concat", old, new, axis=2) for old, new in zip(past, (k, v), strict=True))
            given = k, v
        q = graph.add("Reshape", q, graph.ints(0, kv_heads, -1, width))
        scores = graph.add("MatMul", q, graph.add("Transpose", k, perm=[0, 1, 3, 2]))
        scores = graph.add("Add", graph.add("Mul", scores, graph.number(width**-0.5)), mask)
        out = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
        out = graph.add("Transpose", graph.add("Reshape", out, graph.ints(0, heads, -1, width)), perm=[0, 2, 1, 3])
        out = graph.add("Reshape", out, graph.ints(0, 0, heads * width))
        return self.linear(out, f"{name}.attention.o", layer.o), given

    def _turned(self, x: str, rotary: tuple[str, str]) -> str:
        """Each pair (channel i, channel i + E/2) turned by its position's angle: see model.positions."""
        graph, half = self.graph, self.config.head_width // 2
        first, second = graph.add_several(2, "Split", x, graph.ints(half, half), axis=-1)
        crossed = graph.add("Concat", graph.add("Neg", second), first, axis=-1)
        return graph.add("Add", graph.add("Mul", x, rotary[0]), graph.add("Mul", crossed, rotary[1]))

    def mlp(self, x: str, name: str, block: Block) -> str:
        graph, mlp = self.graph, block.mlp
        if isinstance(mlp, GatedMlp):
            joined = self.linear(x, f"{name}.mlp.gate_up", mlp.gate, mlp.up)
            gate, up = graph.add_several(2, "Split", joined, num_outputs=2, axis=-1)
            return self.linear(graph.add("Mul", self.activation(gate), up), f"{name}.mlp.down", mlp.down)
        assert isinstance(mlp, Mlp)
        return self.linear(self.activation(self.linear(x, f"{name}.mlp.up", mlp.up)), f"{name}.mlp.down", mlp.down)

    def activation(self, x: str) -> str:
        graph, result = self.graph, ""
        match self.config.mlp:
            case "gelu" | "gelu_tanh":
                kind = "tanh" if self.config.mlp == "gelu_tanh" else "none"
                result = graph.add("Gelu", x, approximate=kind)
            case "relu":
                result = graph.add("Relu", x)
            case "relu2":
                positive = graph.add("Relu", x)
                result = graph.add("Mul", positive, positive)
            case "silu" | "swiglu":
                result = graph.add("Mul", x, graph.add("Sigmoid", x))
        return result

    def linear(self, x: str, name: str, *layers: nn.Module) -> str:
        """Linear layers of one input as one product; the output is theirs joined."""
        linears = [layer for layer in layers if type(layer) is nn.Linear]
        if len(linears) != len(layers):
            raise BadInputError(f"{name}: no plain linear layer: take adapters and quantized layers off first")
        y = self._linear(self.graph, x, name, torch.cat([layer.weight.detach() for layer in linears]))
        biases = [layer.bias.detach() for layer in linears if layer.bias is not None]
        return self.graph.add("Add", y, self.graph.tensor(f"{name}.bias", torch.cat(biases))) if biases else y

    def norm(self, x: str, name: str, module: nn.Module) -> str:
        graph = self.graph
        match module:
            case RMSNorm():
                weight = graph.tensor(f"{name}.weight", module.weight)
                x = graph.add("RMSNormalization", x, weight, axis=-1, epsilon=module.epsilon)
            case LayerNorm():
                given = [graph.tensor(f"{name}.weight", module.weight)]
                given += [] if module.bias is None else [graph.tensor(f"{name}.bias", module.bias)]
                x = graph.add("LayerNormalization", x, *given, axis=-1, epsilon=module.epsilon)
        return x


def _added(graph: Graph, visible: str) -> str:
    """A mask that is added to scores, of one that says what may be seen."""
    return graph.add("Where", visible, graph.number(0.0), graph.number(_HIDDEN))


def _causal_mask(graph: Graph, config: TransformerConfig, ids: str, seen: str, start: str) -> str:
    """(B, 1, G T, S), to be added: a query sees no later key, none beyond its window, and no padding. start: P."""
    length, total = graph.length(ids, 1), graph.length(seen, 1)
    first, stop, last = (graph.add("Squeeze", each) for each in (start, graph.add("Add", start, length), total))
    queries = graph.add("Unsqueeze", graph.add("Range", first, stop, graph.whole(1)), graph.ints(1))
    keys = graph.add("Unsqueeze", graph.add("Range", graph.whole(0), last, graph.whole(1)), graph.ints(0))
    visible = graph.add("LessOrEqual", keys, queries)
    if config.sliding_window is not None:
        oldest = graph.add("Sub", queries, graph.whole(config.sliding_window))
        visible = graph.add("And", visible, graph.add("Greater", keys, oldest))
    real = graph.add("Unsqueeze", graph.add("Cast", seen, to=TensorProto.BOOL), graph.ints(1, 2))
    mask = _added(graph, graph.add("And", visible, real))
    groups = config.num_heads // config.num_kv_heads
    if groups == 1:
        return mask
    shape = graph.add("Concat", graph.length(ids, 0), graph.ints(1), graph.ints(groups), length, total, axis=0)
    repeated = graph.add("Expand", graph.add("Unsqueeze", mask, graph.ints(2)), shape)
    flat = graph.add("Concat", graph.length(ids, 0), graph.ints(1), graph.ints(-1), total, axis=0)
    return graph.add("Reshape", repeated, flat)


def _pooled(graph: Graph, x: str, seen: str, pooling: str, normalize: bool) -> str:
    """One vector of each text: see generation.embed."""
    real = graph.add("Unsqueeze", graph.add("Cast", seen, to=TensorProto.FLOAT), graph.ints(2))
    match pooling:
        case "cls":
            y = graph.add("Gather", x, graph.whole(0), axis=1)
        case "mean":
            total = graph.add("ReduceSum", graph.add("Mul", x, real), graph.ints(1), keepdims=0)
            y = graph.add("Div", total, graph.add("ReduceSum", real, graph.ints(1), keepdims=0))
        case "max":
            hidden = _added(graph, graph.add("Cast", real, to=TensorProto.BOOL))
            y = graph.add("ReduceMax", graph.add("Add", x, hidden), graph.ints(1), keepdims=0)
        case _:
            raise unknown_name("pooling", pooling, ("mean", "max", "cls"))
    return graph.add("LpNormalization", y, axis=-1, p=2) if normalize else y
