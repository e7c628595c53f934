"""One text through one model, with everything of interest kept: maps, head figures, lens. Arrays in a frozen record.

Legend: T positions, L layers, H heads, G cells along one side of a map, C predictions kept.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_journey.checkpoint.families import family_of
from llm_journey.core.errors import BadInputError
from llm_journey.inspection.lens import Predictions, predictions
from llm_journey.inspection.maps import FloatArray, HeadFigures, cell_size, head_figures, pooled
from llm_journey.inspection.recorder import watch
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder import Encoder

# 512 positions of a model with 30 layers of 9 heads need 283 MB; what needs more is pooled.
MAX_MAP_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a model did while it read `ids`.

    maps: layer -> (H, G, G) weights, query cells by key cells; `cell` positions a cell (1: the weights themselves).
    Layers that were not asked for are absent. heads: figures of all heads, (L, H), NaN where a layer was not asked for.
    lens: predictions after 0, 1 .. L layers (the last: the model's own); empty where the model has no head over
    tokens. causal: each position predicts the next token (a decoder), else its own (an encoder). map_error: the largest
    difference between a map times its values and what the model's own kernel gave.
    """

    ids: NDArray[np.int64]
    causal: bool
    num_layers: int
    num_heads: int
    cell: int
    maps: dict[int, FloatArray]
    heads: HeadFigures
    lens: Sequence[Predictions]
    map_error: float

    @property
    def length(self) -> int:
        """Positions of the text."""
        return len(self.ids)

    @property
    def predicted(self) -> Predictions | None:
        """What the model itself predicts at each position."""
        return self.lens[-1] if self.lens else None

    def attention(self, layer: int, head: int) -> FloatArray:
        """One head's map, (G, G); rows look at columns. Raises BadInputError for one that was not kept."""
        if layer not in self.maps:
            kept = ", ".join(map(str, self.maps))
            raise BadInputError(f"layer {layer} has no map here; there are maps of layers {kept}")
        if not 0 <= head < self.num_heads:
            raise BadInputError(f"head {head} is not one of this model's: 0 to {self.num_heads - 1}")
        weights: FloatArray = self.maps[layer][head]
        return weights

    def sharpest_head(self) -> tuple[int, int]:
        """(layer, head) of the lowest entropy among the heads that say something.

        Most heads rest on the first position when they have nothing to do (Xiao et al. 2024, attention sinks) or look
        at the token itself: those that put half of their weight there are passed over while there are others.
        """
        entropy, idle = self.heads.entropy.copy(), np.fmax(self.heads.first, self.heads.itself)
        for unwanted in (np.isnan(entropy), idle >= 0.5):
            if not unwanted.all():
                entropy[unwanted] = np.inf
        layer, head = np.unravel_index(int(np.nanargmin(entropy)), entropy.shape)
        return int(layer), int(head)


def inspect_ids(
    model: Decoder | Encoder,
    ids: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    unjudged: Collection[int] = (),
    max_map_bytes: int = MAX_MAP_BYTES,
) -> Inspection:
    """Read `ids` with `model` once, and keep what it did.

    layers: keep maps of these only, which leaves room for finer ones (None: all). unjudged: ids whose probability says
    nothing (an encoder's [CLS] and [MASK]). max_map_bytes: what the maps may take; beyond it they are pooled. Raises
    BadInputError for no ids, too many, or a layer that is not there.
    """
    config = model.config
    _check(ids, config.vocab_size, config.context)
    wanted = sorted(set(range(config.num_layers) if layers is None else layers))
    if wrong := [layer for layer in wanted if not 0 <= layer < config.num_layers]:
        raise BadInputError(f"layer {wrong[0]} is not one of this model's: 0 to {config.num_layers - 1}")
    ids_bt = torch.tensor([list(ids)], device=model.device)
    causal = isinstance(model, Decoder)
    targets_t = _targets(ids_bt[0], causal, unjudged)
    keeper = _Keeper(
        cell=cell_size(len(ids), len(wanted) * config.num_heads, max_map_bytes),
        shape=(config.num_layers, config.num_heads),
        predict=_predictor(model, targets_t),
    )
    checked = watch(model, keeper, lambda: model.hidden(ids_bt), layers=frozenset(wanted))
    return Inspection(
        ids=np.array(ids),
        causal=causal,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        cell=keeper.cell,
        maps=keeper.maps,
        heads=HeadFigures(*keeper.figures),
        lens=keeper.lens,
        map_error=checked.largest_difference,
    )


def readout(model: Decoder | Encoder) -> Callable[[Tensor], Tensor] | None:
    """What turns a residual (N, D) into logits (N, V): the model's own final norm and head.

    None for an encoder that was saved without a head: its hidden states were never trained to name tokens.
    """
    if isinstance(model, Encoder) and family_of(model.config) is not None and not model.config.head_transform:
        return None
    return lambda residual_nd: model.logits(model.norm(residual_nd))


def _targets(ids_t: Tensor, causal: bool, unjudged: Collection[int]) -> Tensor:
    """The id that each position is judged by, -1 for none: a decoder's is the next one, an encoder's its own."""
    targets_t = torch.cat((ids_t[1:], ids_t.new_full((1,), -1))) if causal else ids_t.clone()
    for token in unjudged:
        targets_t[targets_t == token] = -1
    return targets_t


def _predictor(model: Decoder | Encoder, targets_t: Tensor) -> Callable[[Tensor], Predictions] | None:
    read = readout(model)
    return None if read is None else lambda residual_td: predictions(read, residual_td, targets_t)


class _Keeper:
    """The watcher that makes an Inspection's arrays as the pass goes on."""

    def __init__(self, cell: int, shape: tuple[int, int], predict: Callable[[Tensor], Predictions] | None) -> None:
        self.cell, self.predict = cell, predict
        self.maps: dict[int, FloatArray] = {}
        self.figures = np.full((len(fields(HeadFigures)), *shape), np.nan, dtype=np.float32)
        self.lens: list[Predictions] = []

    def on_residual(self, layer: int, residual_td: Tensor) -> None:
        if self.predict is not None:
            assert layer == len(self.lens)
            self.lens.append(self.predict(residual_td))

    def on_attention(self, layer: int, head: int, weights_ts: Tensor) -> None:
        cells = pooled(weights_ts.cpu().numpy(), self.cell)
        if layer not in self.maps:
            self.maps[layer] = np.zeros((self.figures.shape[2], *cells.shape), dtype=np.float32)
        self.maps[layer][head] = cells
        self.figures[:, layer, head] = head_figures(weights_ts)


def _check(ids: Sequence[int], vocab_size: int, context: int) -> None:
    if not ids:
        raise BadInputError("the text is empty: give at least one token")
    if len(ids) > context:
        raise BadInputError(
            f"the text has {len(ids)} tokens, the model's context holds {context}: shorten the text or use a model "
            "with a longer context"
        )
    if wrong := [token for token in ids if not 0 <= token < vocab_size]:
        raise BadInputError(f"token id {wrong[0]} is outside the model's vocabulary of {vocab_size}")
