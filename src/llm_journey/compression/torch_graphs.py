"""A decoder as PyTorch's own exported graphs: torch.export's .pt2 file, and TorchScript, its deprecated forerunner.

Both hold one function of two tensors, so that a program without this package can answer with them:

    (ids (B, T), past (L, 2, B, K, P, E)) -> (logits (B, T, V), present (L, 2, B, K, P + T, E))

All of B, T and P may change from call to call; P is 0 at first. Both files are written and never opened here, save to
certify the one just written: each is a zip with a pickle or code in it.

Legend: B batch, T new positions, P past ones, L layers, K key-value heads, E head width, V vocabulary.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_journey.model.attention import Attention, causal_mask
from llm_journey.model.decoder import Decoder

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class DecoderStep(nn.Module):
    """A decoder as a function: nothing is kept between calls, keys and values go in and come out.

    block: computes each block; `read_block`, or a compiled form of it.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.block: BlockStep = read_block

    def forward(self, ids_bt: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        decoder, start, length = self.decoder, past.shape[4], ids_bt.shape[1]
        positions_1t = torch.arange(length, device=ids_bt.device)[None] + start
        mask = causal_mask(length, start + length, ids_bt.device)
        if decoder.config.sliding_window is not None:
            mask = mask & ~mask.tril(start - decoder.config.sliding_window)
        x_btd, rotary, present = decoder._embedded(ids_bt, 0, positions_1t), decoder._rotary(0, 0, positions_1t), []
        for block, of_layer in zip(decoder.blocks, past, strict=True):
            x_btd, both = self.block(block, x_btd, rotary, mask, of_layer)
            present.append(both)
        return decoder.logits(decoder.norm(x_btd)), torch.stack(present)

    def empty(self, batch: int = 1, length: int = 0) -> Tensor:
        """Keys and values of `length` positions, all zero; of none, to begin with."""
        config = self.decoder.config
        return torch.zeros(config.num_layers, 2, batch, config.num_kv_heads, length, config.head_width)


Rotary = tuple[Tensor, Tensor] | None
BlockStep = Callable[[nn.Module, Tensor, Rotary, Tensor, Tensor], tuple[Tensor, Tensor]]


def read_block(block: nn.Module, x_btd: Tensor, rotary: Rotary, mask: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """A block's output, and its keys and values (2, B, K, P + T, E), of those before (2, B, K, P, E)."""
    cache = _Past(past)
    x_btd = block(x_btd, rotary, mask, cache)
    return x_btd, cache.present


class _Past:
    """model.attention.Cache of one layer over a tensor that is not changed."""

    length = 0  # positions are given to the model by themselves

    def __init__(self, past: Tensor) -> None:
        self.present = past

    def update(self, layer_index: int, k_bkte: Tensor, v_bkte: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        self.present = torch.cat((self.present, torch.stack((k_bkte, v_bkte))), dim=3)
        return self.present[0], self.present[1]


def write_torch_export(decoder: Decoder, path: Path) -> None:
    """A .pt2 file by torch.export (PyTorch 2's way to a graph of ATen operators)."""
    step = DecoderStep(decoder).eval()
    dynamic = torch.export.Dim.DYNAMIC
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            step, _example(step), dynamic_shapes=({0: dynamic, 1: dynamic}, {2: dynamic, 4: dynamic}), strict=False
        )
        torch.export.save(program, path)


def write_torchscript(decoder: Decoder, path: Path) -> None:
    """A TorchScript file by tracing."""
    step = DecoderStep(decoder).eval()
    with torch.no_grad(), _quiet(), _traceable(decoder):
        jit: Any = torch.jit
        traced = jit.trace(step, _example(step), check_trace=False)
        traced.save(path)


def open_torch_export(path: Path) -> Step:
    """The function in a .pt2 file that was written here just now: never one from elsewhere."""
    with _quiet():
        step: Step = torch.export.load(path).module()
    return step


def open_torchscript(path: Path) -> Step:
    """The function in a TorchScript file that was written here just now: never one from elsewhere."""
    with _quiet():
        jit: Any = torch.jit
        step: Step = jit.load(path)
    return step


def _example(step: DecoderStep) -> tuple[Tensor, Tensor]:
    """Inputs to follow through the model: sizes of 0 and 1 would be taken for constants."""
    ids_bt = torch.arange(6).view(2, 3) % step.decoder.config.vocab_size
    return ids_bt, step.empty(batch=2, length=5)


@contextmanager
def _traceable(decoder: Decoder) -> Iterator[None]:
    """Inside, attention decides nothing by the sizes of its inputs, which a trace would take for numbers of its own."""
    layers = [module for module in decoder.modules() if isinstance(module, Attention)]
    before = [layer.attend for layer in layers]
    grouped = decoder.config.num_heads != decoder.config.num_kv_heads

    def attend(q_bhte: Tensor, k_bkse: Tensor, v_bkse: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q_bhte, k_bkse, v_bkse, attn_mask=mask, enable_gqa=grouped)

    for layer in layers:
        layer.attend = attend
    try:
        yield
    finally:
        for layer, attend_before in zip(layers, before, strict=True):
            layer.attend = attend_before


class _quiet(warnings.catch_warnings):  # noqa: N801 - used as a function
    """Inside, PyTorch does not say that TorchScript is old, nor what a trace cannot see: the certificate tells."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
