"""Keys and values of the positions so far, so that a new token costs one position and not all of them again.

One allocation for the whole generation, filled from the left. Legend: L layers, B batch, K key-value heads, T new
positions, S positions so far, C capacity, E head width.
"""

import torch
from torch import Tensor

from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig


class KVCache:
    """Room for `capacity` positions of `batch` rows; satisfies model.attention.Cache."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        num_layers = config.num_decoder_layers or config.num_layers  # of what writes
        shape = (num_layers, batch, config.num_kv_heads, capacity, config.head_width)
        self.keys_lbkce = torch.empty(shape, dtype=dtype, device=device)
        self.values_lbkce = torch.empty(shape, dtype=dtype, device=device)
        self.capacity = capacity
        self._length = 0

    @property
    def length(self) -> int:
        """Positions held by every layer: it grows when the last layer has added its own."""
        return self._length

    def update(self, layer_index: int, k_bkte: Tensor, v_bkte: Tensor) -> tuple[Tensor, Tensor]:
        """Add T positions of a layer; returns views (B, K, S, E) of all its keys and values, the new ones included."""
        stop = self._length + k_bkte.shape[2]
        if stop > self.capacity:
            raise BadInputError(f"{stop} positions do not fit a cache of {self.capacity}")
        keys_bkce, values_bkce = self.keys_lbkce[layer_index], self.values_lbkce[layer_index]
        keys_bkce[:, :, self._length : stop] = k_bkte
        values_bkce[:, :, self._length : stop] = v_bkte
        if layer_index == len(self.keys_lbkce) - 1:
            self._length = stop
        return keys_bkce[:, :, :stop], values_bkce[:, :, :stop]

    def reorder(self, rows_b: Tensor) -> None:
        """Row b goes on from what row `rows_b[b]` holds: a beam search's hypotheses change places."""
        for table in (self.keys_lbkce, self.values_lbkce):
            table[:, :, :, : self._length] = table[:, rows_b, :, : self._length]

    def begin_as(self, other: "KVCache") -> None:
        """Every row holds what the one row of `other` does."""
        self._length = other._length
        self.keys_lbkce[:, :, :, : self._length] = other.keys_lbkce[:, :, :, : self._length]
        self.values_lbkce[:, :, :, : self._length] = other.values_lbkce[:, :, :, : self._length]
