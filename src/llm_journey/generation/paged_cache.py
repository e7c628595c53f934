"""The tensors of the paged key-value cache, in float32, a narrower type, or int8 with a scale for each vector.

    int8: key = scale * q, q in -127..127, one scale for each position and head

Positions lie one after another, all keys and values of one together, so that the blocks of a table which follow each
other in memory are read as one view; others are gathered.

Legend: L layers, P positions of the pool, N new tokens, S positions of a sequence, K key-value heads, J = 2 K keys and
values of a position, E head width.
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
        self.block_size, self._num_kv_heads = block_size, config.num_kv_heads
        shape = (config.num_layers, num_blocks * block_size, 2 * config.num_kv_heads, config.head_width)
        self._table_lpje = torch.empty(shape, dtype=dtype, device=device)
        self._scales_lpj = torch.empty(shape[:-1], device=device) if dtype == torch.int8 else None
        self._steps = torch.arange(block_size, device=device)
        self._as_it_is = dtype == torch.float32 or self._table_lpje.device.type != "cpu"

    @property
    def num_bytes(self) -> int:
        """What keys and values take when every block is in use."""
        return self._table_lpje.nbytes + (self._scales_lpj.nbytes if self._scales_lpj is not None else 0)

    @property
    def plain(self) -> bool:
        """Whether keys and values lie as they are computed, in float32."""
        return self._table_lpje.dtype == torch.float32

    def layer(self, index: int) -> Tensor:
        """(P, 2 K, E): a layer's keys and values, at every slot of the pool."""
        return self._table_lpje[index]

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

    def write(self, layer: int, slots: Slots, kv_nje: Tensor) -> None:
        """Put the keys of new tokens, and after them their values, at their slots: (N, 2 K, E)."""
        if self._scales_lpj is None:
            self._table_lpje[layer, slots] = kv_nje
            return
        scale_nj = kv_nje.abs().amax(-1) / 127
        divisor_nj1 = torch.where(scale_nj > 0, scale_nj, 1.0)[..., None]
        self._scales_lpj[layer, slots] = scale_nj
        self._table_lpje[layer, slots] = (kv_nje / divisor_nj1).round().to(torch.int8)

    def read(self, layer: int, slots: Slots) -> tuple[Tensor, Tensor]:
        """Keys and values (1, K, S, E) at these slots, float32 on a CPU."""
        kv_sje = self._table_lpje[layer, slots]
        if self._scales_lpj is not None:
            kv_sje = kv_sje * self._scales_lpj[layer, slots][..., None]
        elif not self._as_it_is:
            kv_sje = kv_sje.float()
        kv_1jse = kv_sje.transpose(0, 1)[None]
        return kv_1jse[:, : self._num_kv_heads], kv_1jse[:, self._num_kv_heads :]
