"""The cache: what it hands back, when its length grows, and its limit."""

import pytest
import torch

from llm_journey.core.errors import BadInputError
from llm_journey.generation.kv_cache import KVCache
from llm_journey.model.config import TransformerConfig

CONFIG = TransformerConfig(vocab_size=9, width=12, num_layers=3, num_heads=4, num_kv_heads=2, head_width=6)


def _positions(count: int, seed: int) -> torch.Tensor:
    return torch.randn(2, 2, count, 6, generator=torch.Generator().manual_seed(seed))


def test_what_was_put_in_comes_back_joined_and_nothing_is_allocated_anew() -> None:
    cache = KVCache(CONFIG, batch=2, capacity=7, dtype=torch.float32)
    start = cache.keys_lbkce.data_ptr()
    keys = [_positions(4, 1), _positions(1, 2), _positions(2, 3)]
    for number, piece in enumerate(keys):
        for layer in range(3):
            k_bkse, v_bkse = cache.update(layer, piece + layer, piece - layer)
            assert torch.equal(k_bkse, torch.cat(keys[: number + 1], dim=2) + layer)
            assert torch.equal(v_bkse, torch.cat([part - layer for part in keys[: number + 1]], dim=2))
    assert cache.length == 7 and cache.keys_lbkce.data_ptr() == start


def test_the_length_grows_with_the_last_layer() -> None:
    """While a pass runs, every layer must see the same number of earlier positions."""
    cache = KVCache(CONFIG, batch=2, capacity=5)
    lengths = []
    for layer in range(3):
        cache.update(layer, _positions(3, 0), _positions(3, 1))
        lengths.append(cache.length)
    assert lengths == [0, 0, 3]


def test_more_than_fits_is_refused_with_both_counts() -> None:
    cache = KVCache(CONFIG, batch=2, capacity=5)
    with pytest.raises(BadInputError, match="6 positions do not fit a cache of 5"):
        cache.update(0, _positions(6, 0), _positions(6, 1))
