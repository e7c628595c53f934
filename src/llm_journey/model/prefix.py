"""Prefix tuning: tokens whose keys and values are learned, layer by layer, in the model's stead (Li and Liang 2021).

    K_l[t] = P_l[t],  V_l[t] = Q_l[t]       at each position that holds one of the prefix's P tokens, the last P ids

What such a token is otherwise made to is seen by nobody. So a prefix stands in a text like any token: packed rows,
masks, caches and batches need know nothing of it. Its keys are kept as attention sees them, rotated.

Legend: L layers, P tokens of the prefix, B batch, T new positions, S positions so far, K key-value heads, J = 2 K keys
and values of a position, E head width.
"""

import torch
from torch import Tensor, nn

from llm_journey.model.attention import Cache
from llm_journey.model.config import TransformerConfig


class Prefix(nn.Module):
    """keys_values_lpje: keys and, after them, values of each head."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.first = config.vocab_size - config.prefix_tokens
        shape = (config.num_layers, config.prefix_tokens, 2 * config.num_kv_heads, config.head_width)
        self.keys_values_lpje = nn.Parameter(torch.zeros(shape))

    def over(self, ids_bt: Tensor, cache: Cache | None) -> Cache:
        """A cache that puts the prefix's keys and values where its tokens stand, before `cache` keeps them."""
        return _Prefixed(self, ids_bt, cache)


class Recorder:
    """Keeps the keys and values of each layer of one pass from position 0 on; satisfies model.attention.Cache."""

    length = 0

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def update(self, layer_index: int, k_bkte: Tensor, v_bkte: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values as they are; layers come in order."""
        assert layer_index == len(self.layers)
        self.layers.append((k_bkte, v_bkte))
        return k_bkte, v_bkte


class _Prefixed:
    """One pass's cache; satisfies model.attention.Cache."""

    def __init__(self, prefix: Prefix, ids_bt: Tensor, cache: Cache | None) -> None:
        self._cache, self._prefix = cache, prefix
        self._place_bt = (ids_bt - prefix.first).clamp(min=0)
        self._is_prefix_b1t1 = (ids_bt >= prefix.first)[:, None, :, None]

    @property
    def length(self) -> int:
        """Positions before the new ones."""
        return 0 if self._cache is None else self._cache.length

    def update(self, layer_index: int, k_bkte: Tensor, v_bkte: Tensor) -> tuple[Tensor, Tensor]:
        """The new keys and values with the prefix's among them, behind what the cache held: each (B, K, S, E)."""
        learned_bjte = self._prefix.keys_values_lpje[layer_index, self._place_bt].transpose(1, 2)
        keys_bkte, values_bkte = learned_bjte.chunk(2, dim=1)
        k_bkte = torch.where(self._is_prefix_b1t1, keys_bkte.to(k_bkte.dtype), k_bkte)
        v_bkte = torch.where(self._is_prefix_b1t1, values_bkte.to(v_bkte.dtype), v_bkte)
        return (k_bkte, v_bkte) if self._cache is None else self._cache.update(layer_index, k_bkte, v_bkte)
