"""One decoding step of a layer, compiled: one new token of each of N sequences, all of a layer in a few fused loops.

Answering one token at a time, eager PyTorch spends two thirds of its time on some 40 small operations a layer. Here a
layer is written as one pure function of its inputs and weights, exported, and compiled to machine code by AOTInductor
(needs a C++ compiler). All layers of a model share the one function, so that it takes some 15 s to compile, once: what
was compiled is kept in the cache folder, under a key of everything that it depends on.

Attention reads the paged cache through a table of slots (Kwon et al. 2023, "PagedAttention", section 4.3); compiled,
keys and values are read where they lie, with nothing gathered beforehand.

Legend: N sequences, D width, H heads, K key-value heads, J = 2 K, G = H / K, E head width, S longest sequence so far,
P positions of the pool, C = 2 E.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_journey.core.errors import BadInputError
from llm_journey.core.paths import cache_dir
from llm_journey.generation.machine_code import Function, InTurn, compile_to
from llm_journey.generation.paged_cache import PagedCache
from llm_journey.model.config import TransformerConfig
from llm_journey.model.mlp import ACTIVATIONS

MAX_ROWS, _EXAMPLE_POSITIONS = 64, 100
Pure = Callable[..., Tensor]


@dataclass(frozen=True)
class Part:
    """A norm or a product: a pure function (x, *tensors), what it is called, and one layer's tensors for it."""

    kind: str
    function: Pure
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class LayerParts:
    """A layer in the order in which it is computed. `up` holds the gate too, where there is one."""

    attention_norm: Part
    qkv: Part
    q_norm: Part | None
    k_norm: Part | None
    o: Part
    mlp_norm: Part
    up: Part
    down: Part

    def each(self) -> list[Part]:
        parts = (getattr(self, name) for name in _NAMES)
        return [part for part in parts if part is not None]


_NAMES = ("attention_norm", "qkv", "q_norm", "k_norm", "o", "mlp_norm", "up", "down")


class Slots:
    """Where the new tokens are written, what each sequence reads, and what of that it may not see.

    write_n: slots of the pool. read_ns: a slot for every position; behind a sequence's end, and before its window, the
    slot that it has just written, so that no unset memory is read. hidden_ns: 0 where it may be seen, else -inf.
    """

    def __init__(self, tables: Sequence[Sequence[int]], stops: Sequence[int], block_size: int, window: int | None):
        longest = max(stops)
        num_blocks = -(-longest // block_size)
        rows = [[*table[:num_blocks], *[0] * (num_blocks - len(table))] for table in tables]
        blocks_nb = torch.tensor(rows)
        slots_nbs = blocks_nb[:, :, None] * block_size + torch.arange(block_size)
        read_ns = slots_nbs.flatten(1)[:, :longest]
        positions_s, stops_n1 = torch.arange(longest), torch.tensor(stops)[:, None]
        seen_ns = positions_s < stops_n1
        if window is not None:
            seen_ns &= positions_s >= stops_n1 - window
        self.write_n = read_ns.gather(1, stops_n1 - 1)[:, 0]
        self.read_ns = torch.where(seen_ns, read_ns, self.write_n[:, None])
        self.hidden_ns = torch.zeros(seen_ns.shape).masked_fill_(~seen_ns, -torch.inf)


class DecodeLayer(nn.Module):
    """The step of one layer. A module only because torch.export takes nothing else: it holds no weights."""

    def __init__(self, config: TransformerConfig, parts: LayerParts) -> None:
        super().__init__()
        self.config = config
        self.functions = {name: part.function for name in _NAMES if (part := getattr(parts, name)) is not None}
        self.counts = {name: len(getattr(parts, name).tensors) for name in self.functions}
        self.activation = ACTIVATIONS[config.mlp]

    def forward(
        self,
        x_nd: Tensor,
        rotary_n1c: Tensor,
        write_n: Tensor,
        read_ns: Tensor,
        hidden_ns: Tensor,
        table_pje: Tensor,
        tensors: tuple[Tensor, ...],
    ) -> Tensor:
        """(N, D) out of a layer for (N, D) into it; keys and values are written into `table_pje`.

        rotary_n1c: cos twice, then sin with its sign, of each sequence's position (anything, where nothing is rotated).
        tensors: those of the layer's parts, one after another.
        """
        given = iter(tensors)
        taken = {name: tuple(next(given) for _ in range(count)) for name, count in self.counts.items()}

        def part(name: str, x: Tensor) -> Tensor:
            result: Tensor = self.functions[name](x, *taken[name])
            return result

        def attention(x_nd: Tensor) -> Tensor:
            return self._attention(x_nd, part, rotary_n1c, write_n, read_ns, hidden_ns, table_pje)

        def mlp(x_nd: Tensor) -> Tensor:
            up_nf = part("up", x_nd)
            if self.config.mlp != "swiglu":
                return part("down", self.activation(up_nf))
            gate_nf, up_nf = up_nf.chunk(2, -1)
            return part("down", nn.functional.silu(gate_nf) * up_nf)

        if self.config.norm_placement == "pre":
            x_nd = x_nd + attention(part("attention_norm", x_nd))
            return x_nd + mlp(part("mlp_norm", x_nd))
        x_nd = part("attention_norm", x_nd + attention(x_nd))
        return part("mlp_norm", x_nd + mlp(x_nd))

    def _attention(
        self,
        x_nd: Tensor,
        part: Callable[[str, Tensor], Tensor],
        rotary_n1c: Tensor,
        write_n: Tensor,
        read_ns: Tensor,
        hidden_ns: Tensor,
        table_pje: Tensor,
    ) -> Tensor:
        num_heads, num_kv_heads, width = self.config.num_heads, self.config.num_kv_heads, self.config.head_width
        all_nhe = part("qkv", x_nd).view(-1, num_heads + 2 * num_kv_heads, width)
        q_nhe, k_nke, v_nke = torch.split(all_nhe, [num_heads, num_kv_heads, num_kv_heads], 1)
        if "q_norm" in self.functions:
            q_nhe, k_nke = part("q_norm", q_nhe), part("k_norm", k_nke)
        if self.config.positions == "rope":
            q_nhe, k_nke = _rotated(q_nhe, rotary_n1c), _rotated(k_nke, rotary_n1c)
        table_pje[write_n] = torch.cat((k_nke, v_nke), 1)
        kv_nsje = torch.ops.aten._unsafe_index(table_pje, [read_ns])  # the slots are ours: no check of their bounds
        if x_nd.shape[0] > 1:  # copied in one sweep: read where they lie, twice as slow from memory as from a cache
            kv_nsje = _in_memory(kv_nsje)
        # _in_memory: else the compiler would rotate a query again for each key.
        q_nkge = _in_memory(q_nhe.reshape(-1, num_kv_heads, num_heads // num_kv_heads, width))
        keys_nske, values_nske = kv_nsje.split(num_kv_heads, 2)
        # Each head of a group apart, in loops that the compiler fuses: a key is read once for all of them.
        scores_nskg = torch.stack([(q_nke[:, None] * keys_nske).sum(-1) for q_nke in q_nkge.unbind(2)], -1)
        scores_nskg = scores_nskg * width**-0.5 + hidden_ns[:, :, None, None]
        # softmax written out: dividing the sums, not each share, halves the time for long sequences.
        shares_nskg = (scores_nskg - scores_nskg.amax(1, keepdim=True)).exp()
        sums_nkge = torch.stack([(share[..., None] * values_nske).sum(1) for share in shares_nskg.unbind(-1)], 2)
        return part("o", (sums_nkge / shares_nskg.sum(1)[..., None]).flatten(1))


def _in_memory(x: Tensor) -> Tensor:
    """x itself; the compiler has to compute it once and to keep it, where it would compute it again at each use."""
    strides = [math.prod(x.shape[axis + 1 :]) for axis in range(x.dim())]
    return x.contiguous().as_strided(x.shape, strides)


def _rotated(x_nhe: Tensor, rotary_n1c: Tensor) -> Tensor:
    """model.positions.apply_rotary: x cos + (x with its halves exchanged) sin."""
    cos_n1e, sin_n1e = rotary_n1c.chunk(2, -1)
    first, second = x_nhe.chunk(2, -1)
    return x_nhe * cos_n1e + torch.cat((second, first), -1) * sin_n1e


class Tail(nn.Module):
    """The last norm and the head, behind the layers."""

    def __init__(self, norm: Part, head: Part) -> None:
        super().__init__()
        self.norm, self.head, self.count = norm.function, head.function, len(norm.tensors)

    def forward(self, x_nd: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
        logits_nv: Tensor = self.head(self.norm(x_nd, *tensors[: self.count]), *tensors[self.count :])
        return logits_nv


class CompiledLayers:
    """The steps of all layers of a model by one compiled function, for one sequence or for several."""

    def __init__(self, config: TransformerConfig, layers: Sequence[LayerParts], num_rows: int) -> None:
        """num_rows: 1, or more, which then stands for any number from 2 to 64.

        Raises BadInputError where the layers are not alike, JourneyError where the compiler fails or is missing.
        """
        if len({_form(layer.each()) for layer in layers}) != 1:
            raise BadInputError("the layers differ in shape or in form, and cannot share one compiled step")
        self._tensors = [[tensor for part in layer.each() for tensor in part.tensors] for layer in layers]
        self._no_rotation = torch.zeros(1, 1, 2 * config.head_width)
        path = kept_layers(config, layers[0], num_rows)
        if not path.exists():
            example, shapes = _layer_example(config, self._tensors[0], num_rows)
            compile_to(path, DecodeLayer(config, layers[0]), example, shapes)
        self._step = Function(path)
        self._bound: tuple[PagedCache, InTurn] | None = None

    def __call__(self, x_nd: Tensor, rotary_n1c: Tensor | None, slots: Slots, cache: PagedCache) -> Tensor:
        if rotary_n1c is None:
            rotary_n1c = self._no_rotation.expand(len(x_nd), -1, -1)
        if self._bound is None or self._bound[0] is not cache:
            own = [[cache.layer(index), *tensors] for index, tensors in enumerate(self._tensors)]
            self._bound = cache, self._step.in_turn(own)
        return self._bound[1](x_nd, rotary_n1c, slots.write_n, slots.read_ns, slots.hidden_ns)


class CompiledTail:
    """The last norm and the head of one row, compiled."""

    def __init__(self, norm: Part, head: Part) -> None:
        tensors, path = (*norm.tensors, *head.tensors), kept_tail(norm, head)
        if not path.exists():
            example = (torch.zeros(1, norm.tensors[0].shape[0]), tensors)
            compile_to(path, Tail(norm, head), example, None)
        self._step = Function(path).in_turn([tensors])

    def __call__(self, x_1d: Tensor) -> Tensor:
        return self._step(x_1d)


def kept_layers(config: TransformerConfig, layer: LayerParts, num_rows: int) -> Path:
    """Where the compiled step of such layers lies, once it was compiled on this machine."""
    shape = {name: value for name, value in vars(config).items() if name not in ("vocab_size", "context", "num_layers")}
    return _kept_file("layer", min(num_rows, 2), shape, _form(layer.each()))


def kept_tail(norm: Part, head: Part) -> Path:
    """The same for the last norm and the head."""
    return _kept_file("tail", _form((norm, head)))


def kept_folder() -> Path:
    """Where compiled steps lie."""
    return cache_dir() / "compiled"


def _form(parts: Sequence[Part]) -> Any:
    return tuple(
        (part.kind, tuple((str(tensor.dtype), tuple(tensor.shape), tensor.stride()) for tensor in part.tensors))
        for part in parts
    )


def _kept_file(*facts: Any) -> Path:
    """Named by everything that machine code depends on: those facts, this code, PyTorch, the processor."""
    here = Path(__file__).parent
    files = [Path(__file__), here / "machine_code.py", here / "in_turn.cpp", here.parent / "quantization/products.py"]
    code = [file.read_text("utf-8") for file in files]
    everything = [facts, code, torch.__version__, torch.cpu.get_capabilities()]
    key = hashlib.sha256(json.dumps(everything, default=str, sort_keys=True).encode()).hexdigest()[:32]
    return kept_folder() / f"{facts[0]}-{key}.pt2"


def _layer_example(config: TransformerConfig, tensors: Sequence[Tensor], num_rows: int) -> tuple[Any, Any]:
    """Inputs to trace a layer with, and which of their lengths may change."""
    rows = MAX_ROWS // 4 if num_rows > 1 else 1
    slots = Slots([[row] for row in range(rows)], [_EXAMPLE_POSITIONS] * rows, _EXAMPLE_POSITIONS, None)
    table_pje = torch.zeros(rows * _EXAMPLE_POSITIONS, 2 * config.num_kv_heads, config.head_width)
    rotary_n1c, x_nd = torch.zeros(rows, 1, 2 * config.head_width), torch.zeros(rows, config.width)
    dim: Any = torch.export.Dim
    n = {0: dim("rows", min=2, max=MAX_ROWS)} if num_rows > 1 else {}
    ns = n | {1: dim("positions", min=1, max=2**31 - 1)}
    p = {0: dim("pool", min=2, max=2**31 - 1)}
    example = (x_nd, rotary_n1c, slots.write_n, slots.read_ns, slots.hidden_ns, table_pje, tuple(tensors))
    return example, (n, n, n, ns, ns, p, tuple({} for _ in tensors))
