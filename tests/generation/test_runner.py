"""The runner computes what the decoder computes: every family, whatever is read together or in pieces."""

import copy as copy_module
from typing import Any

import pytest
import torch
from engines import FAMILIES

from llm_journey.generation.blocks import BlockPool
from llm_journey.generation.paged_cache import PagedCache
from llm_journey.generation.runner import Runner, Share
from llm_journey.model.decoder import Decoder
from llm_journey.parity.random_models import random_decoder, random_ids
from llm_journey.quantization.formats import quantize_int4, quantize_int8

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def expected(decoder: Decoder, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = decoder(torch.tensor([ids]))[0]
    return logits


def cache_for(decoder: Decoder, dtype: torch.dtype = torch.float32) -> tuple[BlockPool, PagedCache]:
    return BlockPool(64, 4), PagedCache(decoder.config, num_blocks=64, block_size=4, dtype=dtype)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_decoders_in_one_pass_in_pieces_and_beside_others(name: str) -> None:
    decoder = random_decoder(**FAMILIES[name])
    runner = Runner(decoder)
    pool, cache = cache_for(decoder)
    rows = [random_ids(1, length, 97, seed=length)[0].tolist() for length in (19, 5, 11)]
    tables: list[list[int]] = [[] for _ in rows]
    done = [0] * len(rows)
    found: list[list[torch.Tensor]] = [[] for _ in rows]
    # Pieces of unlike lengths, all sequences interleaved, so that no sequence's blocks stay together.
    for counts in ((7, 1, 4), (1, 0, 6), (5, 4, 1), (6, 0, 0)):
        shares = []
        for index, count in enumerate(counts):
            if count:
                assert pool.grow(tables[index], done[index] + count)
                ids = rows[index][done[index] : done[index] + count]
                shares.append((index, Share(ids=ids, start=done[index], table=tables[index], all_logits=True)))
                done[index] += count
        logits = runner([share for _, share in shares], cache).split([len(share.ids) for _, share in shares])
        for (index, _), part in zip(shares, logits, strict=True):
            found[index].append(part)
    assert done == [len(ids) for ids in rows]
    for ids, parts in zip(rows, found, strict=True):
        torch.testing.assert_close(torch.cat(parts), expected(decoder, ids), **TOLERANCE)


@pytest.mark.parametrize("window", [None, 40])
def test_a_long_prompt_in_pieces_of_queries_is_the_decoders(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_journey.generation.runner._QUERIES", 16)
    decoder = random_decoder(context=128, sliding_window=window)
    ids = random_ids(1, 75, 97)[0].tolist()
    pool, cache = cache_for(decoder)
    table: list[int] = []
    assert pool.grow(table, len(ids))
    runner = Runner(decoder)
    parts = [
        runner([Share(ids=ids[begin:end], start=begin, table=table, all_logits=True)], cache)
        for begin, end in ((0, 37), (37, 75))
    ]
    torch.testing.assert_close(torch.cat(parts), expected(decoder, ids), **TOLERANCE)


def rounded(decoder: Decoder, weights: str) -> Decoder:
    """The decoder with every matrix as the codes say; the head of int4 is int8."""
    copy = copy_module.deepcopy(decoder)
    body = quantize_int4 if weights == "int4" else quantize_int8
    for layer in copy.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = (quantize_int8 if layer is copy.head else body)(layer.weight).dequantize()
    return copy


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("num_rows", [1, 30, 100])
def test_narrow_weights_compute_what_their_codes_say(weights: Any, num_rows: int) -> None:
    """Both ways to multiply, packed and unpacked: what is left is the activations' rounding to bf16."""
    decoder = random_decoder(
        scale=0.1, width=64, mlp_width=128, num_heads=2, vocab_size=128, context=128, tied_embeddings=False, bias=True
    )
    ids = random_ids(1, num_rows, 97)[0].tolist()
    pool, cache = cache_for(decoder)
    table: list[int] = []
    assert pool.grow(table, num_rows)
    logits = Runner(decoder, weights)([Share(ids=ids, start=0, table=table, all_logits=True)], cache)
    wanted = expected(rounded(decoder, weights), ids)
    assert float((logits - wanted).norm() / wanted.norm()) < 0.02
    assert float((logits - expected(decoder, ids)).norm() / wanted.norm()) < {"int8": 0.03, "int4": 0.3}[weights]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.01), (torch.int8, 0.02)])
def test_narrow_caches_stay_near(dtype: torch.dtype, bound: float) -> None:
    decoder = random_decoder()
    ids = random_ids(1, 20, 97)[0].tolist()
    pool, cache = cache_for(decoder, dtype)
    table: list[int] = []
    assert pool.grow(table, len(ids))
    runner = Runner(decoder)
    for position, token in enumerate(ids):
        logits = runner([Share(ids=[token], start=position, table=table)], cache)
    wanted = expected(decoder, ids)[-1:]
    error = float((logits - wanted).norm() / wanted.norm())
    assert 0 < error < bound
