"""Cached decoding against uncached, and greedy decoding against transformers' generate on the folder we wrote."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_decoders import GPT2, LLAMA, QWEN3, random_decoder
from transformers import AutoModelForCausalLM

from llm_journey.checkpoint.model_folder import save_model
from llm_journey.generation.decode import generate, next_logits
from llm_journey.generation.kv_cache import KVCache
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.model.decoder import Decoder

# float32 products over one position instead of many are summed in another order.
TOLERANCE = 1e-4
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama grouped": LLAMA | {"num_kv_heads": 2},
    "qwen3": QWEN3 | {"num_kv_heads": 1},
    "qwen3 window": QWEN3 | {"sliding_window": 4},
    "own: sinusoidal, relu2, post-norm": {"positions": "sinusoidal", "mlp": "relu2", "norm_placement": "post"},
    "own: no positions": {"positions": "none", "mlp": "gelu"},
}


@pytest.mark.parametrize("name", MODELS)
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_cached_equals_uncached(name: str, data: st.DataObject) -> None:
    """Any cut of a sequence into pieces, any batch: the logits after each piece are those of one pass."""
    model = random_decoder(**MODELS[name])
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 20))
    cuts = sorted(data.draw(st.sets(st.integers(1, length), max_size=5)) | {length})
    ids_bt = torch.randint(67, (batch, length), generator=torch.Generator().manual_seed(length))
    cache = KVCache(model.config, batch=batch, capacity=length)
    with torch.inference_mode():
        whole_btv = model(ids_bt)
        for start, stop in zip([0, *cuts], cuts, strict=False):
            piece_bv = next_logits(model, ids_bt[:, start:stop], cache)
            assert cache.length == stop
            torch.testing.assert_close(piece_bv, whole_btv[:, stop - 1], atol=TOLERANCE, rtol=1e-4)


def _greedy_by_hand(model: Decoder, ids: list[int], count: int) -> list[int]:
    """No cache: the whole sequence is read again for every token."""
    ids = list(ids)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-count:]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_the_uncached_argmax(name: str) -> None:
    model = random_decoder(**MODELS[name])
    for prompt in ([3], [5, 9, 11, 2], list(range(12))):
        config = SamplingConfig(temperature=0, max_new_tokens=20)
        assert list(generate(model, prompt, config)) == _greedy_by_hand(model, prompt, 20)


@pytest.mark.parametrize("name", ["gpt2", "llama grouped", "qwen3", "qwen3 window"])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_equals_transformers_generate(name: str, penalty: float, tmp_path: Path) -> None:
    for seed in (1, 2):
        model = random_decoder(seed, **MODELS[name])
        save_model(model, tmp_path / str(seed))
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / str(seed))
        for prompt in ([1], [7, 3, 50, 50, 7, 21]):
            expected = theirs.generate(
                torch.tensor([prompt]), max_new_tokens=20, do_sample=False, repetition_penalty=penalty, pad_token_id=0
            )
            config = SamplingConfig(temperature=0, repetition_penalty=penalty, max_new_tokens=20)
            assert list(generate(model, prompt, config)) == expected[0, len(prompt) :].tolist()


def test_stop_ids_end_where_transformers_ends(tmp_path: Path) -> None:
    model = random_decoder(3, **QWEN3)
    save_model(model, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    config = SamplingConfig(temperature=0, max_new_tokens=25)
    stop = list(generate(model, [4, 8], config))[5]
    expected = theirs.generate(
        torch.tensor([[4, 8]]), max_new_tokens=25, do_sample=False, eos_token_id=stop, pad_token_id=0
    )
    generation = generate(model, [4, 8], config, stop_ids=[stop])
    assert [*generation, stop] == expected[0, 2:].tolist()
    assert generation.finish_reason == "stop"
