"""LoRA: a frozen matrix and a learned update of low rank beside it (Hu et al. 2021, section 4.1).

    LoRA    y = W x + b + s B A x                                     s = alpha / r, or alpha / sqrt(r) (rsLoRA)
    DoRA    y = m (W + s B A) x / |W + s B A| + b                     |.| of each row; constant for the gradient
                                                                      (Liu et al. 2024, eq. 5 and section 4.3)

B begins at zero, so that an adapted model begins as the model it adapts. Layers are put into a model and taken out by
walking its tree, like those of few bits (quantization.layers), over which they stand as well (QLoRA: Dettmers et al.
2023, eq. 5). One layer holds several adapters by name; those that are active add up, and none is active after
`activate(model)`. Equal to peft's in outputs, gradients and merged weights: tests/equivalence/test_lora.py.

Legend: N outputs, K inputs, R rank, V vocabulary, D width.
"""

import fnmatch
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_journey.core.errors import BadInputError
from llm_journey.core.footprint import trim_heap
from llm_journey.finetuning.config import ALL_LINEAR, LoraConfig
from llm_journey.model.transformer import Transformer
from llm_journey.quantization.layers import QuantizedEmbedding, QuantizedLinear

Base = nn.Linear | nn.Embedding | QuantizedLinear | QuantizedEmbedding


class LowRank(nn.Module):
    """The learned part of one adapter at one matrix (N, K): B (N, R), A (R, K), and DoRA's magnitudes (N,)."""

    magnitude_n: Tensor | None

    def __init__(self, shape: tuple[int, int], config: LoraConfig, *, is_table: bool, device: torch.device) -> None:
        super().__init__()
        rows, columns = shape
        self.scale, self.dropout = config.scale, config.dropout
        self.a_rk = nn.Parameter(torch.empty(config.rank, columns, device=device))
        self.b_nr = nn.Parameter(torch.empty(rows, config.rank, device=device))
        self.register_parameter("magnitude_n", nn.Parameter(torch.ones(rows, device=device)) if config.dora else None)
        # One factor is zero. Of a table's it is the rows: what the tokens of a step do not use stays as it was.
        if is_table:
            nn.init.normal_(self.a_rk)
            nn.init.zeros_(self.b_nr)
        else:
            nn.init.kaiming_uniform_(self.a_rk, a=math.sqrt(5))
            nn.init.zeros_(self.b_nr)

    def delta(self) -> Tensor:
        """s B A (N, K)."""
        return self.scale * (self.b_nr @ self.a_rk)

    def dropped(self, x: Tensor) -> Tensor:
        """The input as this adapter sees it."""
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def merged(self, weight_nk: Tensor) -> Tensor:
        """The matrix that does what `weight_nk` and this adapter do together."""
        whole = weight_nk + self.delta()
        if self.magnitude_n is None:
            return whole
        norm_n1: Tensor = whole.detach().norm(dim=1, keepdim=True)
        return self.magnitude_n[:, None] * whole / norm_n1


class _Adapted(nn.Module):
    """A layer that stays as it is, and adapters at it by name."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        # The base before its adapters were merged into it; in a tuple, since a module would become a part of this one.
        self._whole: tuple[Base, ...] = ()

    def adapter(self, name: str) -> LowRank:
        """One of its adapters. KeyError where it has none of that name."""
        found = self.adapters[name]
        assert isinstance(found, LowRank)
        return found

    @property
    def names(self) -> list[str]:
        """Of its adapters."""
        return list(self.adapters)

    def working(self) -> list[LowRank]:
        """The active adapters; none where they are merged."""
        if self.is_merged:
            return []
        return [self.adapter(name) for name in self.active]

    @property
    def is_merged(self) -> bool:
        return bool(self._whole)

    def merge(self) -> None:
        """Put the base and its active adapters into one plain matrix; what it was is kept, so that nothing is lost."""
        if not self._whole:
            self._whole, self.base = (self.base,), self.plain()

    def unmerge(self) -> None:
        """Undo `merge`, bit for bit."""
        if self._whole:
            (self.base,), self._whole = self._whole, ()

    def plain(self) -> nn.Linear | nn.Embedding:
        """A plain layer with the active adapters merged in. Raises BadInputError for several of DoRA."""
        adapters = self.working()
        if len(adapters) > 1 and any(adapter.magnitude_n is not None for adapter in adapters):
            raise BadInputError("of adapters with DoRA only one can be merged at a time; activate one")
        with torch.no_grad():
            weight = self.base.weight.detach()
            for adapter in adapters:
                weight = adapter.merged(weight)
            weight = weight.clone() if not adapters else weight
        rows, columns = weight.shape
        bias = None if isinstance(self.base, nn.Embedding | QuantizedEmbedding) else self.base.bias
        layer: nn.Linear | nn.Embedding
        with torch.device("meta"):
            if isinstance(self.base, nn.Embedding | QuantizedEmbedding):
                layer = nn.Embedding(rows, columns)
            else:
                layer = nn.Linear(columns, rows, bias=bias is not None)
        layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias.detach()}), assign=True)
        return layer.requires_grad_(requires_grad=False)


class LoraLinear(_Adapted):
    """x W^T + b and the updates of the active adapters."""

    @property
    def bias(self) -> Tensor | None:
        """(N,), which no adapter changes."""
        assert isinstance(self.base, nn.Linear | QuantizedLinear)
        found: Tensor | None = self.base.bias
        return found

    @property
    def weight(self) -> Tensor:
        """(N, K) with the active adapters in it: how the head, whose matrix is multiplied elsewhere, is read."""
        weight: Tensor = self.base.weight
        for adapter in self.working():
            weight = adapter.merged(weight)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x)
        for adapter in self.working():
            result = result + self._update(x, result, adapter)
        return result

    def _update(self, x: Tensor, base_output: Tensor, adapter: LowRank) -> Tensor:
        seen = adapter.dropped(x)
        low = F.linear(F.linear(seen, adapter.a_rk) * adapter.scale, adapter.b_nr)
        if adapter.magnitude_n is None:
            return low
        weight = self.base.weight
        norm_n: Tensor = (weight + adapter.delta().detach()).norm(dim=1)
        factor_n = adapter.magnitude_n / norm_n
        if adapter.dropout and adapter.training:
            plain = F.linear(seen, weight)
        else:
            plain = base_output if self.bias is None else base_output - self.bias
        return (factor_n - 1) * plain + factor_n * low


class LoraEmbedding(_Adapted):
    """Rows of a table (V, D), and the updates of the active adapters: row i of W + s B A, B (V, R), A (R, D).

    An adapter of the embedding is none of a head that is tied to it: `weight` is the table without it.
    """

    @property
    def weight(self) -> Tensor:
        """(V, D) as it was."""
        found: Tensor = (self._whole or (self.base,))[0].weight
        return found

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.base(ids)
        for adapter in self.working():
            result = result + F.embedding(ids, adapter.b_nr) @ adapter.a_rk * adapter.scale
        return result


def inject(model: nn.Module, config: LoraConfig, name: str = "default") -> list[str]:
    """Freeze a model and put a new adapter, active, beside the matrices that `config.targets` names.

    Returns the names of those modules. Raises BadInputError where a pattern matches none of them, where `name` is
    taken, and for DoRA at an embedding.
    """
    freeze(model)
    chosen = matching(model, config.targets)
    for path in chosen:
        layer = _adapted(model, path)
        if name in layer.adapters:
            raise BadInputError(f"the model has an adapter called {name!r} already; give the new one another name")
        is_table = isinstance(layer, LoraEmbedding)
        if is_table and config.dora:
            raise BadInputError("DoRA is for linear layers; leave embed out of targets")
        device = next(chain(layer.base.parameters(), layer.base.buffers())).device
        adapter = LowRank(base_shape(layer), config, is_table=is_table, device=device)
        if adapter.magnitude_n is not None:
            adapter.magnitude_n.data = layer.base.weight.detach().norm(dim=1)
        layer.adapters[name] = adapter.train(layer.training)
        layer.active = (*layer.active, name)
    return chosen


def matching(model: nn.Module, targets: Iterable[str]) -> list[str]:
    """The modules that patterns name, in the model's order. Raises BadInputError for a pattern that names none."""
    known = [path for path, module in model.named_modules() if _is_target(path, module)]
    chosen: set[str] = set()
    for pattern in targets:
        wanted = "blocks.*" if pattern == ALL_LINEAR else pattern
        found = {path for path in known if fnmatch.fnmatchcase(path, wanted) or fnmatch.fnmatchcase(_end(path), wanted)}
        if not found:
            ends = sorted({_end(path) for path in known})
            raise BadInputError(f"targets: {pattern!r} names no matrix of this model; there are {', '.join(ends)}")
        chosen |= found
    return [path for path in known if path in chosen]


def _end(path: str) -> str:
    return path.rpartition(".")[2]


def _is_target(path: str, module: nn.Module) -> bool:
    if path.endswith(".base"):
        return False  # of an adapted layer, which counts itself
    return isinstance(module, nn.Linear | QuantizedLinear | _Adapted) or (
        path == "embed" and isinstance(module, nn.Embedding | QuantizedEmbedding)
    )


def _adapted(model: nn.Module, path: str) -> _Adapted:
    """The layer at `path`, made an adapted one where it is not yet."""
    parent_path, _, attribute = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    layer = getattr(parent, attribute)
    if isinstance(layer, _Adapted):
        return layer
    kind = LoraEmbedding if isinstance(layer, nn.Embedding | QuantizedEmbedding) else LoraLinear
    adapted = kind(layer).train(layer.training)
    setattr(parent, attribute, adapted)
    return adapted


def base_shape(layer: nn.Module) -> tuple[int, int]:
    """(N, K) of the matrix of a target, adapted or not; nothing is unpacked for it."""
    base = layer.base if isinstance(layer, _Adapted) else layer
    if isinstance(base, QuantizedLinear | QuantizedEmbedding):
        return base.shape
    assert isinstance(base, nn.Linear | nn.Embedding)
    return base.weight.shape[0], base.weight.shape[1]


def base_weight(layer: nn.Module) -> Tensor:
    """(N, K) of a target, without its adapters."""
    base = layer.base if isinstance(layer, _Adapted) else layer
    assert isinstance(base, nn.Linear | nn.Embedding | QuantizedLinear | QuantizedEmbedding)
    return base.weight.detach()


def freeze(model: nn.Module) -> None:
    """Train nothing of a model but its adapters."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(isinstance(module, LowRank))


def activate(model: nn.Module, *names: str) -> None:
    """Let these adapters work, and no other; without a name the model is again what it was.

    Raises BadInputError for a name that the model has no adapter of.
    """
    known = adapter_names(model)
    for name in names:
        if name not in known:
            raise BadInputError(f"the model has no adapter called {name!r}; it has {', '.join(known) or 'none'}")
    for _, layer in adapted_layers(model):
        if layer.is_merged:
            raise BadInputError("the adapters are merged; unmerge the model before others are activated")
        layer.active = tuple(name for name in names if name in layer.adapters)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """The model without its adapters, meanwhile."""
    before = {path: layer.active for path, layer in adapted_layers(model)}
    activate(model)
    try:
        yield
    finally:
        for path, layer in adapted_layers(model):
            layer.active = before[path]


def merge(model: nn.Module) -> None:
    """Let each adapted layer compute with one plain matrix, its active adapters in it; `unmerge` undoes it exactly."""
    for _, layer in adapted_layers(model):
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Undo `merge`, bit for bit."""
    for _, layer in adapted_layers(model):
        layer.unmerge()


def remove(model: Transformer, *, merged: bool) -> None:
    """Take the adapted layers out of the tree: plain layers with the active adapters in them, or the bases alone.

    Where an embedding that is merged is the head's matrix too, the head becomes one of its own: it had no update.
    """
    for path in [path for path, _ in adapted_layers(model)]:  # no list of layers: each is freed when it is out
        parent_path, _, attribute = path.rpartition(".")
        layer = model.get_submodule(path)
        assert isinstance(layer, _Adapted)
        layer.unmerge()
        if merged and path == "embed" and model.head is None and layer.working():
            table_vd = base_weight(layer)
            model.head = nn.Linear(table_vd.shape[1], table_vd.shape[0], bias=False, device="meta")
            model.head.load_state_dict({"weight": table_vd}, assign=True)
            model.config = replace(model.config, tied_embeddings=False)
        setattr(model.get_submodule(parent_path), attribute, layer.plain() if merged else layer.base)
        if merged:
            trim_heap()  # each merge leaves holes of several times its matrix


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, _Adapted]]:
    """(path, layer) of every layer that has adapters."""
    for path, module in model.named_modules():
        if isinstance(module, _Adapted):
            yield path, module


def adapter_at(model: nn.Module, path: str, name: str = "default") -> LowRank:
    """One adapter's part at one matrix."""
    layer = model.get_submodule(path)
    assert isinstance(layer, _Adapted)
    return layer.adapter(name)


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters that a model has, in the order in which they came."""
    return list(dict.fromkeys(name for _, layer in adapted_layers(model) for name in layer.names))
