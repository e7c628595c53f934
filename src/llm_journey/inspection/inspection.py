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
from llm_journey.inspection.maps import FloatArray, HeadFigures, cell_size, cross_figures, head_figures, pooled
from llm_journey.inspection.recorder import watch
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder import Encoder
from llm_journey.model.encoder_decoder import EncoderDecoder
from llm_journey.model.kinds import Model

# 512 positions of a model with 30 layers of 9 heads need 283 MB; what needs more is pooled.
MAX_MAP_BYTES = 1 << 29


@dataclass(frozen=True)
class Part:
    """Attentions of one kind: the layers that have their maps, numbered through all parts; whose positions the queries
    are, and whose the keys. name: empty where a model has but one part."""

    name: str
    layers: range
    queries: range
    keys: range


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a model did while it read `ids`.

    maps: layer -> (H, G, G) weights, query cells by key cells; `cell` positions a cell (1: the weights themselves).
    Layers that were not asked for are absent. heads: figures of all heads, (L, H), NaN where a layer was not asked for.
    lens: predictions after 0, 1 .. L layers (the last: the model's own); empty where the model has no head over
    tokens. causal: each position predicts the next token (a decoder), else its own (an encoder). map_error: the largest
    difference between a map times its values and what the model's own kernel gave.

    Of an encoder-decoder, ids are the source's and behind them the target's, with the lens for the latter alone. Its
    parts are the encoder, the decoder, and the cross-attention from target to source; "layers" count through them.
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
    parts: tuple[Part, ...]

    @property
    def length(self) -> int:
        """Positions of the text."""
        return len(self.ids)

    @property
    def lens_start(self) -> int:
        """The first position that the lens is about."""
        return self.parts[-1].queries.start

    @property
    def predicted(self) -> Predictions | None:
        """What the model itself predicts at each position."""
        return self.lens[-1] if self.lens else None

    def part(self, layer: int) -> Part:
        """The part that a layer belongs to."""
        return next(part for part in self.parts if layer in part.layers)

    def layer_name(self, layer: int) -> str:
        """A layer's number, in a model of several parts with the part's name before it."""
        part = self.part(layer)
        return f"{part.name} {layer - part.layers.start}".strip()

    def attention(self, layer: int, head: int) -> FloatArray:
        """One head's map, (G, G); rows look at columns. Raises BadInputError for one that was not kept."""
        if layer not in self.maps:
            kept = ", ".join(map(self.layer_name, self.maps))
            raise BadInputError(f"layer {layer} has no map here; there are maps of layers {kept}")
        if not 0 <= head < self.num_heads:
            raise BadInputError(f"head {head} is not one of this model's: 0 to {self.num_heads - 1}")
        weights: FloatArray = self.maps[layer][head]
        return weights

    def sharpest_head(self, part: Part | None = None) -> tuple[int, int]:
        """(layer, head) of the lowest entropy among the heads that say something, of all parts or of one.

        Most heads rest on the first position when they have nothing to do (Xiao et al. 2024, attention sinks) or look
        at the token itself: those that put half of their weight there are passed over while there are others.
        """
        entropy, idle = self.heads.entropy, np.fmax(self.heads.first, self.heads.itself)
        layers = range(self.num_layers) if part is None else part.layers
        known = ~np.isnan(entropy) & np.isin(np.arange(self.num_layers), layers)[:, None]
        busy = known & (idle < 0.5)
        chosen = busy if busy.any() else known
        layer, head = np.unravel_index(int(np.where(chosen, entropy, np.inf).argmin()), entropy.shape)
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
    _check(ids, config, "text")
    ids_bt = torch.tensor([list(ids)], device=model.device)
    whole = range(len(ids))
    return _inspect(
        model,
        lambda: model.hidden(ids_bt),
        ids=ids,
        targets_t=_targets(ids_bt[0], isinstance(model, Decoder), unjudged),
        parts=(Part("", range(config.num_layers), whole, whole),),
        layers=_wanted(layers, config.num_layers),
        max_map_bytes=max_map_bytes,
    )


def inspect_pair(
    model: EncoderDecoder,
    source: Sequence[int],
    target: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    max_map_bytes: int = MAX_MAP_BYTES,
) -> Inspection:
    """Read the ids `source` and write `target` (a begin token first) under teacher forcing, and keep what happened.

    layers: keep maps of these only, in each of the three parts (None: all). Raises BadInputError as `inspect_ids`.
    """
    config = model.config
    _check(source, config, "source")
    _check(target, config, "target")
    reading, writing = config.num_layers, config.num_decoder_layers
    wanted = _wanted(layers, max(reading, writing))
    sources, targets = range(len(source)), range(len(source), len(source) + len(target))
    parts = (
        Part("encoder", range(reading), sources, sources),
        Part("decoder", range(reading, reading + writing), targets, targets),
        Part("cross", range(reading + writing, reading + 2 * writing), targets, sources),
    )
    source_bs, target_bt = (torch.tensor([list(ids)], device=model.device) for ids in (source, target))
    return _inspect(
        model,
        lambda: model.hidden(source_bs, target_bt),
        ids=[*source, *target],
        targets_t=_targets(target_bt[0], True, ()),
        parts=parts,
        layers=[part.layers[layer] for part in parts for layer in wanted if layer < len(part.layers)],
        max_map_bytes=max_map_bytes,
    )


def _inspect(
    model: Model,
    forward: Callable[[], Tensor],
    *,
    ids: Sequence[int],
    targets_t: Tensor,
    parts: tuple[Part, ...],
    layers: Sequence[int],
    max_map_bytes: int,
) -> Inspection:
    num_heads, num_layers = model.config.num_heads, parts[-1].layers.stop
    longest = max(len(part.queries) for part in parts)
    read = readout(model)
    keeper = _Keeper(
        cell=cell_size(longest, len(layers) * num_heads, max_map_bytes),
        shape=(num_layers, num_heads),
        predict=None if read is None else lambda residual_td: predictions(read, residual_td, targets_t),
        crossing=frozenset(layer for part in parts if part.queries != part.keys for layer in part.layers),
    )
    checked = watch(model, keeper, forward, layers=frozenset(layers))
    return Inspection(
        ids=np.array(ids),
        causal=not isinstance(model, Encoder),
        num_layers=num_layers,
        num_heads=num_heads,
        cell=keeper.cell,
        maps={layer: keeper.maps[layer] for layer in sorted(keeper.maps)},
        heads=HeadFigures(*keeper.figures),
        lens=keeper.lens,
        map_error=checked.largest_difference,
        parts=parts,
    )


def readout(model: Model) -> Callable[[Tensor], Tensor] | None:
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


def _wanted(layers: Sequence[int] | None, num_layers: int) -> list[int]:
    wanted = sorted(set(range(num_layers) if layers is None else layers))
    if wrong := [layer for layer in wanted if not 0 <= layer < num_layers]:
        raise BadInputError(f"layer {wrong[0]} is not one of this model's: 0 to {num_layers - 1}")
    return wanted


class _Keeper:
    """The watcher that makes an Inspection's arrays as the pass goes on."""

    def __init__(
        self,
        cell: int,
        shape: tuple[int, int],
        predict: Callable[[Tensor], Predictions] | None,
        crossing: frozenset[int],
    ) -> None:
        self.cell, self.predict, self.crossing = cell, predict, crossing
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
        figures = cross_figures if layer in self.crossing else head_figures
        self.figures[:, layer, head] = figures(weights_ts)


def _check(ids: Sequence[int], config: TransformerConfig, what: str) -> None:
    if not ids:
        raise BadInputError(f"the {what} is empty: give at least one token")
    if len(ids) > config.context:
        raise BadInputError(
            f"the {what} has {len(ids)} tokens, the model's context holds {config.context}: shorten the {what} or use "
            "a model with a longer context"
        )
    if wrong := [token for token in ids if not 0 <= token < config.vocab_size]:
        raise BadInputError(f"token id {wrong[0]} is outside the model's vocabulary of {config.vocab_size}")
