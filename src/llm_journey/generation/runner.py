"""A decoder laid out for answering: tokens of many sequences in one pass, joined products, weights in a fast form.

It computes what model.Decoder computes (tests/generation/test_runner.py: equal in float32 for every family), with the
rows of all sequences one under another, so that a pass may read a piece of one prompt and one new token of each of
twenty answers. Products go through quantization.products; norms, rotation and attention stay in float32 on a CPU.

Legend: N rows of a pass, D width, H heads, K key-value heads, G = H / K, E head width, S positions so far, F MLP width,
V vocabulary.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.generation.adapters import Adapter, Place
from llm_journey.generation.compiled import (
    MAX_ROWS,
    CompiledLayers,
    CompiledTail,
    LayerParts,
    Part,
    Slots,
    kept_layers,
    kept_tail,
)
from llm_journey.generation.norms import EngineNorm, head_norm
from llm_journey.generation.paged_cache import PagedCache
from llm_journey.generation.paged_cache import Slots as CacheSlots
from llm_journey.model.attention import causal_mask
from llm_journey.model.blocks import Block
from llm_journey.model.decoder import Decoder
from llm_journey.model.mlp import ACTIVATIONS
from llm_journey.model.transformer import with_prefix_logits
from llm_journey.quantization.formats import quantize_int4, quantize_int8
from llm_journey.quantization.layers import QuantizedEmbedding, QuantizedLinear
from llm_journey.quantization.products import (
    DenseProduct,
    Int4Product,
    Int8Product,
    JoinedProduct,
    Product,
    make_product,
)
from llm_journey.quantization.scheme import joined

# PyTorch's kernel on a CPU computes what a causal mask hides too, up to 512 keys of it: queries are given in pieces.
_QUERIES = 64
_SPARED = 2000  # SmolLM2: a pass of few rows takes 3 ms or more, a position of one sequence 2.3 us
WeightFormat = Literal["float32", "bfloat16", "int8", "int4"]


@dataclass(frozen=True, kw_only=True)
class Share:
    """One sequence's rows in a pass: `ids`, which stand at positions `start` and after it; `table`: its blocks.

    all_logits: logits of every row are wanted, not of the last alone. adapter: the name of the one it is computed with.
    """

    ids: Sequence[int]
    start: int
    table: Sequence[int]
    all_logits: bool = False
    adapter: str | None = None

    @property
    def stop(self) -> int:
        return self.start + len(self.ids)


@dataclass(frozen=True)
class _Layer:
    attention_norm: "EngineNorm"
    qkv: Product
    q_norm: "EngineNorm | None"
    k_norm: "EngineNorm | None"
    o: Product
    mlp_norm: "EngineNorm"
    up: Product  # gate and up together where there is a gate
    down: Product


@dataclass(frozen=True)
class _Rows:
    """What a layer needs to know of one share: its rows, where they are written, what they read, what they may see."""

    rows: slice
    write: CacheSlots
    read: CacheSlots
    mask: Tensor | None


# An adapter and the rows that it is for.
_Adapted = tuple[Adapter, Tensor]


@dataclass(frozen=True)
class _Pass:
    """What all layers of a pass are told of its rows. prefix_rows_i: those whose keys and values a prefix gives, which
    are its tokens prefix_i."""

    rotary_n1c: Tensor | None
    rows: Sequence[_Rows]
    adapted: Sequence[_Adapted]
    prefix_rows_i: Tensor | None
    prefix_i: Tensor | None
    cache: PagedCache


class Runner:
    """A decoder's weights in the form `weights`. The decoder itself is not changed, and may be let go of.

    A quantized decoder's matrices keep their own codes, whatever `weights` says.
    """

    def __init__(self, decoder: Decoder, weights: WeightFormat = "float32") -> None:
        self.config, self.weights = decoder.config, weights
        self.device = decoder.device
        stem = _stem(decoder)
        self._decoder_embedded, self._rotary = stem._embedded, stem._rotary
        self._layers = [self._layer(block) for block in decoder.blocks if isinstance(block, Block)]
        self._rotary_pc = torch.empty(0, 0)
        self._compiled: dict[int, CompiledLayers] = {}  # by the number of sequences: 1, or 2 for several
        self._compiled_tail: CompiledTail | None = None
        self._adapters: dict[str, Adapter] = {}
        self._prefix_lpje = None if decoder.prefix is None else decoder.prefix.keys_values_lpje.detach()
        self._first_prefix = self.config.vocab_size - self.config.prefix_tokens
        self._norm = decoder.norm if isinstance(decoder.norm, nn.Identity) else EngineNorm(decoder.norm)
        self._head = self._head_product(decoder)
        self._gated = self.config.mlp == "swiglu"
        self._activation = ACTIVATIONS[self.config.mlp]

    @property
    def num_bytes(self) -> int:
        """Bytes of weights that one pass reads."""
        products = [p for layer in self._layers for p in (layer.qkv, layer.o, layer.up, layer.down)]
        return sum(product.num_bytes for product in (*products, self._head))

    @property
    def adapters(self) -> list[str]:
        """The names that `Share.adapter` may have."""
        return list(self._adapters)

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Compute shares that name it with its updates. Raises BadInputError for a name that is taken."""
        if name in self._adapters:
            raise BadInputError(f"there is an adapter called {name!r} already; give the new one another name")
        assert len(adapter) == len(self._layers)
        self._adapters[name] = adapter

    @torch.inference_mode()
    def __call__(self, shares: Sequence[Share], cache: PagedCache) -> Tensor:
        """Logits (R, V) float32: of each share its last row, or all of its rows where `all_logits`, in order.

        Keys and values of every row are put into the cache. Raises JourneyError where logits are not finite.
        """
        groups = self._groups(shares, cache)
        if len(groups) == 1:
            return self._logits(shares, cache)
        # Nobody reads what another writes here, so that they may be computed one after another.
        found: dict[int, Tensor] = {}
        for group in groups:
            counts = [len(shares[index].ids) if shares[index].all_logits else 1 for index in group]
            logits_rv = self._logits([shares[index] for index in group], cache)
            found.update(zip(group, torch.split(logits_rv, counts), strict=True))
        return torch.cat([found[index] for index in range(len(shares))])

    def _groups(self, shares: Sequence[Share], cache: PagedCache) -> list[list[int]]:
        """Which shares are computed together: answers take the compiled step also while others' prompts are read, and
        long texts do not make short ones as long."""
        if not self._compiled or not cache.plain:
            return [list(range(len(shares)))]
        groups: list[list[int]] = [[], []]
        for index, share in enumerate(shares):
            groups[self._can_be_compiled(share)].append(index)
        prompts, answers = groups
        answers.sort(key=lambda index: shares[index].stop)
        return [group for group in (prompts, *_by_length(answers, [shares[index].stop for index in answers])) if group]

    def _logits(self, shares: Sequence[Share], cache: PagedCache) -> Tensor:
        ids_n = torch.tensor([item for share in shares for item in share.ids], device=self.device)
        positions_n = torch.cat([torch.arange(share.start, share.stop, device=self.device) for share in shares])
        x_nd = self._decoder_embedded(ids_n[None], 0, positions_n[None])[0].float()
        rotary_n1c = self._rotations(positions_n, max(share.stop for share in shares))
        compiled = self._compiled_for(shares, cache)
        if compiled is None:
            x_nd = self._eager(x_nd, ids_n, rotary_n1c, shares, cache)
        else:
            tables, stops = [share.table for share in shares], [share.stop for share in shares]
            x_nd = compiled(x_nd, rotary_n1c, Slots(tables, stops, cache.block_size, self.config.sliding_window), cache)
        tail = self._compiled_tail if len(x_nd) == 1 else None
        logits_rv = self._head(self._norm(x_nd)) if tail is None else tail(x_nd)
        logits_rv = with_prefix_logits(logits_rv, self.config)
        if not bool(
            torch.isfinite(logits_rv.sum())
        ):  # one operation; asking each costs a tenth of a small model's pass
            raise JourneyError("the model's logits are not finite: its weights are damaged or its training diverged")
        return logits_rv

    def compile(self, *, several: bool = False, on_work: Callable[[str], object] = str) -> None:
        """Answer one token at a time by compiled steps from now on: of one sequence, and of `several` too.

        Compiled now (some 15 s each) where this machine has not done so before, of which `on_work` is told. Raises
        JourneyError where a compiler is missing or fails, BadInputError where the model has no such form (another
        device, weights in NF4).
        """
        layers = self._layer_parts()
        for num_rows in (1, 2) if several else (1,):
            if not kept_layers(self.config, layers[0], num_rows).exists():
                on_work("the step of one answer" if num_rows == 1 else "the step of several answers")
            self._compiled[num_rows] = CompiledLayers(self.config, layers, num_rows)
        tail = self._tail_parts()
        if tail is not None:
            if not kept_tail(*tail).exists():
                on_work("the head")
            self._compiled_tail = CompiledTail(*tail)

    def use_kept(self, *, on_trouble: Callable[[str], object] = str) -> bool:
        """Take the compiled steps that this machine has already; whether there are any. One that cannot be loaded is
        left out, of which `on_trouble` is told."""
        try:
            layers, tail = self._layer_parts(), self._tail_parts()
        except BadInputError:
            return False
        try:
            for num_rows in (1, 2):
                if kept_layers(self.config, layers[0], num_rows).exists():
                    self._compiled[num_rows] = CompiledLayers(self.config, layers, num_rows)
            if tail is not None and kept_tail(*tail).exists():
                self._compiled_tail = CompiledTail(*tail)
        except JourneyError as error:
            on_trouble(str(error))
        return bool(self._compiled)

    def _tail_parts(self) -> tuple[Part, Part] | None:
        head = self._head.for_compiler()
        if head is None or not isinstance(self._norm, EngineNorm):
            return None
        return Part(self._norm.kind, self._norm.function, self._norm.tensors), Part(*vars(head).values())

    def _layer_parts(self) -> list[LayerParts]:
        if self.device.type != "cpu":
            raise BadInputError("steps are compiled for processors alone; this model lies on another device")
        return [_parts(layer) for layer in self._layers]

    def _compiled_for(self, shares: Sequence[Share], cache: PagedCache) -> CompiledLayers | None:
        if not self._compiled or not cache.plain or not all(map(self._can_be_compiled, shares)):
            return None
        return self._compiled.get(min(len(shares), 2)) if len(shares) <= MAX_ROWS else None

    def _can_be_compiled(self, share: Share) -> bool:
        """Whether its step is the model's own, of one token."""
        is_own = self._prefix_lpje is None or share.ids[0] < self._first_prefix
        return len(share.ids) == 1 and share.adapter is None and is_own

    def _eager(
        self, x_nd: Tensor, ids_n: Tensor, rotary_n1c: Tensor | None, shares: Sequence[Share], cache: PagedCache
    ) -> Tensor:
        """(R, D): all layers, and then the rows whose logits are wanted."""
        rows = self._rows(shares, cache)
        prefix_rows_i = None if self._prefix_lpje is None else (ids_n >= self._first_prefix).nonzero()[:, 0]
        prefix_i = None if prefix_rows_i is None else ids_n[prefix_rows_i] - self._first_prefix
        a_pass = _Pass(rotary_n1c, rows, self._adapted(shares), prefix_rows_i, prefix_i, cache)
        for index, layer in enumerate(self._layers):
            x_nd = self._block(x_nd, layer, index, a_pass)
        wanted = [
            row
            for share, part in zip(shares, rows, strict=True)
            for row in range(part.rows.start if share.all_logits else part.rows.stop - 1, part.rows.stop)
        ]
        return x_nd if len(wanted) == len(x_nd) else x_nd[torch.tensor(wanted, device=self.device)]

    def _rotations(self, positions_n: Tensor, stop: int) -> Tensor | None:
        """(N, 1, 2 E): cos twice, and sin with its sign, of each position; from a table that grows with the texts."""
        if self.config.positions != "rope":
            return None
        if len(self._rotary_pc) < stop:
            size = min(max(2 * stop, 1024), self.config.context)
            tables = self._rotary(0, 0, torch.arange(size, device=self.device))
            assert tables is not None
            cos, sin = tables
            self._rotary_pc = torch.cat((cos, cos, -sin, sin), -1)
        return self._rotary_pc[positions_n][:, None]

    def _rows(self, shares: Sequence[Share], cache: PagedCache) -> list[_Rows]:
        found, begin, window = [], 0, self.config.sliding_window
        for share in shares:
            first_seen = 0 if window is None else max(0, share.start + 1 - window)
            count, seen = len(share.ids), share.stop - first_seen
            mask = None
            in_pieces = self.device.type == "cpu" and count > _QUERIES
            if count > 1 and (seen > count or (window is not None and window < seen) or in_pieces):
                mask = causal_mask(count, seen, self.device)
                if window is not None:
                    mask = mask & ~causal_mask(count, seen, self.device).tril(seen - count - window)
                # Added to scores; from booleans each attention would make this anew.
                mask = torch.zeros(mask.shape, device=self.device).masked_fill_(~mask, -torch.inf)
            write = cache.slots(share.table, share.start, share.stop)
            found.append(
                _Rows(slice(begin, begin + count), write, cache.slots(share.table, first_seen, share.stop), mask)
            )
            begin += count
        return found

    def _adapted(self, shares: Sequence[Share]) -> list[_Adapted]:
        begin, rows_of = 0, dict[str, list[int]]()
        for share in shares:
            if share.adapter is not None:
                rows_of.setdefault(share.adapter, []).extend(range(begin, begin + len(share.ids)))
            begin += len(share.ids)
        return [(self._adapters[name], torch.tensor(rows, device=self.device)) for name, rows in rows_of.items()]

    def _times(self, layer: _Layer, place: Place, x_nk: Tensor, index: int, a_pass: _Pass) -> Tensor:
        """(N, M): the product at a place of a layer, with the updates of each row's adapter."""
        product: Product = getattr(layer, place)
        out_nm = product(x_nk)
        for adapter, rows_i in a_pass.adapted:
            update = adapter[index].get(place)
            if update is not None:
                out_nm[rows_i] = update.of(x_nk[rows_i], out_nm[rows_i])
        return out_nm

    def _block(self, x_nd: Tensor, layer: _Layer, index: int, a_pass: _Pass) -> Tensor:
        if self.config.norm_placement == "pre":
            x_nd = self._attention(layer.attention_norm(x_nd), layer, index, a_pass).add_(x_nd)
            return self._mlp(layer.mlp_norm(x_nd), layer, index, a_pass).add_(x_nd)
        x_nd = layer.attention_norm(x_nd + self._attention(x_nd, layer, index, a_pass))
        return layer.mlp_norm(x_nd + self._mlp(x_nd, layer, index, a_pass))

    def _attention(self, x_nd: Tensor, layer: _Layer, index: int, a_pass: _Pass) -> Tensor:
        num_heads, num_kv_heads, cache = self.config.num_heads, self.config.num_kv_heads, a_pass.cache
        all_nhe = self._times(layer, "qkv", x_nd, index, a_pass)
        all_nhe = all_nhe.view(len(x_nd), num_heads + 2 * num_kv_heads, self.config.head_width)
        q_nhe, kv_nje = all_nhe[:, :num_heads], all_nhe[:, num_heads:]
        qk_nhe = all_nhe[:, : num_heads + num_kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            q_nhe.copy_(layer.q_norm(q_nhe))
            kv_nje[:, :num_kv_heads] = layer.k_norm(kv_nje[:, :num_kv_heads])
        if a_pass.rotary_n1c is not None:
            _rotate(qk_nhe, *a_pass.rotary_n1c.chunk(2, -1))
        if self._prefix_lpje is not None:
            kv_nje[a_pass.prefix_rows_i] = self._prefix_lpje[index, a_pass.prefix_i]
        outs = []
        for part in a_pass.rows:
            cache.write(index, part.write, kv_nje[part.rows])
            outs.append(_attend(q_nhe[part.rows], *cache.read(index, part.read), part.mask))
        out_nd = outs[0] if len(outs) == 1 else torch.cat(outs)
        return self._times(layer, "o", out_nd, index, a_pass)

    def _mlp(self, x_nd: Tensor, layer: _Layer, index: int, a_pass: _Pass) -> Tensor:
        up_nf = self._times(layer, "up", x_nd, index, a_pass)
        if self._gated:
            gate_nf, up_nf = up_nf.chunk(2, dim=-1)
            up_nf = F.silu(gate_nf).mul_(up_nf)  # in place: large new arrays cost page faults
        else:
            up_nf = self._activation(up_nf)
        return self._times(layer, "down", up_nf, index, a_pass)

    def _layer(self, block: Block) -> _Layer:
        attention, mlp = block.attention, block.mlp
        ups = (mlp.gate, mlp.up) if self.config.mlp == "swiglu" else (mlp.up,)
        return _Layer(
            attention_norm=EngineNorm(block.attention_norm),
            qkv=self._joined(attention.q, attention.k, attention.v),
            q_norm=head_norm(attention, "q_norm"),
            k_norm=head_norm(attention, "k_norm"),
            o=self._joined(attention.o),
            mlp_norm=EngineNorm(block.mlp_norm),
            up=self._joined(*ups),
            down=self._joined(mlp.down),
        )

    def _joined(self, *layers: object) -> Product:
        """Several linear layers of one input as one product."""
        quantized = [layer for layer in layers if isinstance(layer, QuantizedLinear)]
        if len(quantized) == len(layers):
            return _joined_codes(quantized)
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        if len(linears) != len(layers):
            raise BadInputError("the model's linear layers are not plain ones: take its adapters off, or merge them")
        biases: list[Tensor] = [layer.bias for layer in linears if layer.bias is not None]
        bias = torch.cat(biases) if biases else None
        return self._product(torch.cat([layer.weight for layer in linears]), bias)

    def _head_product(self, decoder: Decoder) -> Product:
        layer: nn.Module = decoder.embed if decoder.head is None else decoder.head
        if isinstance(layer, QuantizedEmbedding | QuantizedLinear):
            return make_product(layer.quantized)
        if self.weights == "int4":
            return Int8Product(quantize_int8(decoder.head_weight))
        return self._product(decoder.head_weight, None)

    def _product(self, weight_mk: Tensor, bias_m: Tensor | None) -> Product:
        match self.weights:
            case "int8":
                return Int8Product(quantize_int8(weight_mk), bias_m)
            case "int4":
                return Int4Product(quantize_int4(weight_mk), bias_m)
            case "bfloat16":
                return DenseProduct(weight_mk, bias_m, torch.bfloat16)
            case _:
                return DenseProduct(weight_mk, bias_m)


def _joined_codes(layers: Sequence[QuantizedLinear]) -> Product:
    """The layers' own codes, as one product where their format can be joined."""
    weights, biases = [layer.quantized for layer in layers], [layer.bias for layer in layers if layer.bias is not None]
    weight = joined(weights)
    if weight is None:
        return JoinedProduct([make_product(layer.quantized, layer.bias) for layer in layers])
    return make_product(weight, torch.cat(biases) if biases else None)


def _by_length(items: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """Items of ascending lengths in groups, each of which is computed as if all were as long as its longest. A group
    of its own costs one more reading of the weights, about as much as `_SPARED` positions."""
    if len(items) > MAX_ROWS:
        return [*_by_length(items[:MAX_ROWS], lengths[:MAX_ROWS]), *_by_length(items[MAX_ROWS:], lengths[MAX_ROWS:])]
    if len(items) < 2:
        return [items]
    spared, cut = max((cut * (lengths[-1] - lengths[cut - 1]), cut) for cut in range(1, len(items)))
    if spared < _SPARED:
        return [items]
    return [*_by_length(items[:cut], lengths[:cut]), *_by_length(items[cut:], lengths[cut:])]


def _rotate(x_nhe: Tensor, cos_n1e: Tensor, sin_n1e: Tensor) -> None:
    """model.positions.apply_rotary in place and in three operations: x cos + (x with its halves exchanged) sin."""
    exchanged_nhe = x_nhe.roll(x_nhe.shape[-1] // 2, -1)
    x_nhe.mul_(cos_n1e).addcmul_(exchanged_nhe, sin_n1e)


def _attend(q_nhe: Tensor, k_1kse: Tensor, v_1kse: Tensor, mask: Tensor | None) -> Tensor:
    """(N, H E). One query: the heads of a group stand as queries of their key-value head, which spares repeating it."""
    num_rows, num_heads, head_width = q_nhe.shape
    if num_rows == 1:
        q_1kge = q_nhe.view(1, k_1kse.shape[1], -1, head_width)
        return F.scaled_dot_product_attention(q_1kge, k_1kse, v_1kse).reshape(1, -1)
    q_1hne = q_nhe.transpose(0, 1)[None].to(k_1kse.dtype)
    unseen, pieces = k_1kse.shape[2] - num_rows, []
    size = _QUERIES if q_nhe.device.type == "cpu" else num_rows
    for begin in range(0, num_rows, size):
        end = min(begin + size, num_rows)
        keys = slice(unseen + end)  # what comes after the last query of a piece need not be read
        piece = None if mask is None else mask[..., begin:end, keys]
        pieces.append(
            F.scaled_dot_product_attention(
                q_1hne[:, :, begin:end],
                k_1kse[:, :, keys],
                v_1kse[:, :, keys],
                attn_mask=piece,
                is_causal=piece is None,
                enable_gqa=num_heads != k_1kse.shape[1],
            )
        )
    out_1hne = pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)
    return out_1hne[0].transpose(0, 1).reshape(num_rows, -1)


def _stem(decoder: Decoder) -> Decoder:
    """A decoder's embeddings and tables without the rest of it, which can then be let go of."""
    stem = copy.copy(decoder)
    stem._modules = {
        name: module for name, module in decoder._modules.items() if name not in ("blocks", "norm", "head")
    }
    return stem


def _parts(layer: _Layer) -> LayerParts:
    """A layer's parts as pure functions. Raises BadInputError where one has no such form."""
    found: dict[str, Part | None] = {}
    for name, part in vars(layer).items():
        pure = part if part is None or isinstance(part, EngineNorm) else part.for_compiler()
        if pure is None and part is not None:
            raise BadInputError(f"weights of this form are not compiled ({type(part).__name__}, {name})")
        found[name] = None if pure is None else Part(pure.kind, pure.function, pure.tensors)
    return LayerParts(**found)  # type: ignore[arg-type]
