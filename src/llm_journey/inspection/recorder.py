"""What a model does while it reads: every head's attention weights and every layer's residual, handed out as they come.

The model's code is not changed. For one forward pass each Attention's `attend` is a recorder around the real one, and
hooks look at what goes into the first block and comes out of each; all of it is put back, whatever happens. One
head's map exists at a time, so that the memory needed does not grow with the number of layers or heads; what is kept
is the watcher's business (maps, lens).

In an encoder-decoder the attentions count on: those of the blocks that read, of the blocks that write, and last what
the latter look up in the source (cross-attention). The residual stream told of is that of the blocks that write.

A map is computed from the queries, keys and mask that the model itself hands to its kernel, and is then checked: the
map times the values must be what the kernel gave. A map that is not the model's own is never shown. Left out: more
than one text at a time.

Legend: B batch (one text), T query positions, S key positions, H heads, K key-value heads, E head width, D width.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.model.attention import Attention
from llm_journey.model.blocks import Block

# Rows of a map are made in slices of about this many scores, so that no second matrix of its size is needed.
_SLICE_SCORES = 1 << 22
# Relative to the largest value: float32 sums in another order; narrower types round each weight first.
_TOLERANCE, _NARROW_TOLERANCE = 1e-4, 3e-2


class Watcher(Protocol):
    """What is told of a forward pass, in the order of computation."""

    def on_residual(self, layer: int, residual_td: Tensor) -> None:
        """The residual stream after `layer` blocks; 0 is what goes into the first."""

    def on_attention(self, layer: int, head: int, weights_ts: Tensor) -> None:
        """One head's weights (float32, rows sum to 1, a row that may look nowhere is 0). `layer`: its number among the
        model's attentions, from 0."""


@dataclass(frozen=True)
class Checked:
    """How far the maps were from what the kernels gave: largest |map @ V - kernel's output| over all heads."""

    num_maps: int
    largest_difference: float


def watch(
    model: nn.Module, watcher: Watcher, forward: Callable[[], Any], *, layers: frozenset[int] | None = None
) -> Checked:
    """Run `forward` (one text through the blocks of `model`) and tell `watcher` of it. Gradients and dropout are off.

    layers: of which to make maps (None: all); residuals come from all. Raises JourneyError where a map is not what the
    model computed.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _recorders(model, watcher, layers) as recorders:
            forward()
    finally:
        model.train(training)
    return Checked(
        sum(recorder.num_maps for recorder in recorders),
        max((recorder.largest_difference for recorder in recorders), default=0.0),
    )


def attention_weights(q_te: Tensor, k_se: Tensor, allowed_ts: Tensor | None, *, causal: bool) -> Tensor:
    """softmax(Q K^T / sqrt(E)) over the keys that a query may see, (T, S) float32 (Vaswani et al. 2017, eq. 1).

    allowed_ts: True where a query may look. None: everywhere, or where `causal` the query t of T, standing at position
    S - T + t, at the keys up to its own. A row that may look nowhere is 0.
    """
    num_queries, num_keys = q_te.shape[0], k_se.shape[0]
    weights_ts = torch.empty(num_queries, num_keys, device=q_te.device)
    keys_es = k_se.float().T / math.sqrt(q_te.shape[1])
    positions_s = torch.arange(num_keys, device=q_te.device)
    rows = max(1, _SLICE_SCORES // num_keys)
    for start in range(0, num_queries, rows):
        stop = min(start + rows, num_queries)
        scores_ns = q_te[start:stop].float() @ keys_es
        if allowed_ts is not None:
            allowed_ns = allowed_ts[start:stop]
            scores_ns.masked_fill_(~allowed_ns, float("-inf"))
            scores_ns = torch.softmax(scores_ns, dim=-1).masked_fill_(~allowed_ns.any(-1, keepdim=True), 0.0)
        else:
            if causal:
                last_n1 = positions_s[start + num_keys - num_queries : stop + num_keys - num_queries, None]
                scores_ns.masked_fill_(positions_s > last_n1, float("-inf"))
            scores_ns = torch.softmax(scores_ns, dim=-1)
        weights_ts[start:stop] = scores_ns
    return weights_ts


class _Recorder:
    """Stands in an Attention's place of `attend`: calls the real one, and tells the watcher of each head."""

    def __init__(self, attention: Attention, layer: int, watcher: Watcher) -> None:
        self.attend, self.causal, self.layer, self.watcher = attention.attend, attention.causal, layer, watcher
        self.num_maps, self.largest_difference = 0, 0.0

    def __call__(self, q_bhte: Tensor, k_bkse: Tensor, v_bkse: Tensor, mask: Tensor | None) -> Tensor:
        if q_bhte.shape[0] != 1:
            raise BadInputError(f"one text can be looked into at a time, not {q_bhte.shape[0]}")
        out_bhte = self.attend(q_bhte, k_bkse, v_bkse, mask)
        num_heads, repeats = q_bhte.shape[1], q_bhte.shape[1] // k_bkse.shape[1]
        for head in range(num_heads):
            allowed_ts = None if mask is None else mask[0, head if mask.shape[1] == num_heads else 0]
            group = head // repeats
            weights_ts = attention_weights(q_bhte[0, head], k_bkse[0, group], allowed_ts, causal=self.causal)
            self._check(weights_ts, v_bkse[0, group], out_bhte[0, head], head)
            self.watcher.on_attention(self.layer, head, weights_ts)
        return out_bhte

    def _check(self, weights_ts: Tensor, v_se: Tensor, out_te: Tensor, head: int) -> None:
        difference = float((weights_ts @ v_se.float() - out_te.float()).abs().max())
        tolerance = _TOLERANCE if v_se.dtype.itemsize >= 4 else _NARROW_TOLERANCE
        if not difference <= tolerance * max(1.0, float(v_se.abs().max())):
            raise JourneyError(
                f"layer {self.layer}, head {head}: the map differs by {difference:.1e} from what the model computed, "
                "so it is not shown; this is a bug: please report it with the model's name"
            )
        self.num_maps += 1
        self.largest_difference = max(self.largest_difference, difference)


@contextmanager
def _recorders(model: nn.Module, watcher: Watcher, layers: frozenset[int] | None) -> Iterator[list[_Recorder]]:
    """Recorders and hooks in place; afterwards the model is as it was."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    if not blocks:
        raise BadInputError("this model has no transformer blocks to look into")
    crossing = [block.cross_attention for block in blocks if block.cross_attention is not None]
    numbered = dict(enumerate([*(block.attention for block in blocks), *crossing]))
    wanted = {layer: numbered[layer] for layer in numbered if layers is None or layer in layers}
    attentions = list(wanted.values())
    originals = [attention.attend for attention in attentions]
    recorders = [_Recorder(attention, layer, watcher) for layer, attention in wanted.items()]
    writing = [block for block in blocks if block.cross_attention is not None] or blocks
    hooks = [writing[0].register_forward_pre_hook(lambda _, inputs: watcher.on_residual(0, inputs[0][0]))]
    hooks += [block.register_forward_hook(_telling(watcher, index + 1)) for index, block in enumerate(writing)]
    try:
        for attention, recorder in zip(attentions, recorders, strict=True):
            attention.attend = recorder
        yield recorders
    finally:
        for attention, attend in zip(attentions, originals, strict=True):
            attention.attend = attend
        for hook in hooks:
            hook.remove()


def _telling(watcher: Watcher, layer: int) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda _module, _inputs, output_btd: watcher.on_residual(layer, output_btd[0])
