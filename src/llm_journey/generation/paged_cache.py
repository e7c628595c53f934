"""The tensors of the paged key-value cache, in float32, a narrower type, or int8 with a scale for each vector.

    int8: key = scale * q, q in -127..127, one scale for each position and head

Positions lie one after another, all heads of one together, so that the blocks of a table which follow each other in
memory are read as one view; others are gathered. Legend: L layers, P positions of the pool, N new tokens, S positions
of a sequence, K key-value heads, E head width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_journey.model.config import TransformerConfig

Slots = slice | Tensor  # positions of the pool


class PagedCache:
    """Keys and values of `num_blocks` blocks of `block_size` positions, of every layer."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.block_size = block_size
        shape = (config.num_layers, 2, num_blocks * block_size, config.num_kv_heads, config.head_width)
        self._table_l2pke = torch.empty(shape, dtype=dtype, device=device)
        self._scales_l2pk = torch.empty(shape[:-1], device=device) if dtype == torch.int8 else None
        self._steps = torch.arange(block_size, device=device)

    @property
    def num_bytes(self) -> int:
        """What keys and values take when every block is in use."""
        return self._table_l2pke.nbytes + (self._scales_l2pk.nbytes if self._scales_l2pk is not None else 0)

    def slots(self, table: Sequence[int], start: int, stop: int) -> Slots:
        """Where positions `start` to `stop` of the sequence with this table lie."""
        size = self.block_size
        first, last = start // size, (stop - 1) // size
        blocks = table[first : last + 1]
        offset = start - first * size
        if blocks[-1] - blocks[0] == len(blocks) - 1 and all(b == blocks[0] + i for i, b in enumerate(blocks)):
            begin = blocks[0] * size + offset
            return slice(begin, begin + stop - start)
        starts = torch.tensor(blocks, device=self._steps.device) * size
        return (starts[:, None] + self._steps).flatten()[offset : offset + stop - start]

    def write(self, layer: int, slots: Slots, k_nke: Tensor, v_nke: Tensor) -> None:
        """Put keys and values of new tokens at their slots."""
        for side, x_nke in enumerate((k_nke, v_nke)):
            if self._scales_l2pk is None:
                self._table_l2pke[layer, side, slots] = x_nke.to(self._table_l2pke.dtype)
            else:
                scale_nk = x_nke.abs().amax(-1) / 127
                divisor_nk1 = torch.where(scale_nk > 0, scale_nk, 1.0)[..., None]
                self._scales_l2pk[layer, side, slots] = scale_nk
                self._table_l2pke[layer, side, slots] = (x_nke / divisor_nk1).round().to(torch.int8)

    def read(self, layer: int, slots: Slots) -> tuple[Tensor, Tensor]:
        """Keys and values (1, K, S, E) at these slots, float32 on a CPU."""
        k_ske, v_ske = self._one(layer, 0, slots), self._one(layer, 1, slots)
        return k_ske.transpose(0, 1)[None], v_ske.transpose(0, 1)[None]

    def _one(self, layer: int, side: int, slots: Slots) -> Tensor:
        x_ske = self._table_l2pke[layer, side, slots]
        if self._scales_l2pk is not None:
            return x_ske * self._scales_l2pk[layer, side, slots][..., None]
        return x_ske.float() if x_ske.device.type == "cpu" else x_ske
