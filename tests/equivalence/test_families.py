"""Folders that we write, opened by transformers as they are: the same logits, no tensor missing or left over."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from random_decoders import GPT2, LLAMA, QWEN3, random_decoder
from transformers import AutoConfig, AutoModelForCausalLM

from llm_journey.checkpoint import families
from llm_journey.checkpoint.model_folder import load_model, save_model
from llm_journey.checkpoint.verify import compare_with_transformers

# float32 sums taken in another order: transformers fuses and splits its products differently from us.
TOLERANCE = 1e-4

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", GPT2),
    "gpt2 odd": ("gpt2", GPT2 | {"vocab_size": 101, "width": 15, "num_heads": 3, "num_layers": 3, "mlp_width": 37}),
    "gpt2 one head": ("gpt2", GPT2 | {"width": 9, "num_heads": 1, "num_layers": 1, "norm_epsilon": 1e-3}),
    "gpt2 untied": ("gpt2", GPT2 | {"tied_embeddings": False, "dropout": 0.1}),
    "llama": ("llama", LLAMA),
    "llama grouped, untied": ("llama", {"num_kv_heads": 2, "tied_embeddings": False, "num_layers": 3}),
    "llama multi-query, wide head": ("llama", {"num_kv_heads": 1, "head_width": 10, "mlp_width": 33, "vocab_size": 7}),
    "llama biases": ("llama", {"bias": True, "num_kv_heads": 2, "dropout": 0.2}),
    "llama theta": ("llama", {"rope_theta": 500_000.0, "norm_epsilon": 1e-3, "context": 128}),
    "qwen3": ("qwen3", QWEN3),
    "qwen3 grouped, odd": ("qwen3", QWEN3 | {"width": 21, "num_heads": 6, "num_kv_heads": 3, "head_width": 8}),
    "qwen3 untied, one layer": ("qwen3", QWEN3 | {"tied_embeddings": False, "num_layers": 1, "num_kv_heads": 1}),
    "qwen3 window": ("qwen3", QWEN3 | {"sliding_window": 5, "num_layers": 3}),
    "qwen3 window of one": ("qwen3", QWEN3 | {"sliding_window": 1}),
    "qwen3 larger": (
        "qwen3",
        QWEN3 | {"width": 96, "num_heads": 8, "num_kv_heads": 2, "num_layers": 6, "context": 160},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    family, choices = CASES[case]
    model = random_decoder(scale=0.2, **choices)
    assert families.family_of(model.config) == family
    save_model(model, tmp_path / "model")
    ids = torch.randint(model.config.vocab_size, (model.config.context,), generator=torch.Generator().manual_seed(1))
    assert compare_with_transformers(tmp_path / "model", ids.tolist()) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_loading_back_gives_the_identical_model(case: str, tmp_path: Path) -> None:
    model = random_decoder(**CASES[case][1])
    save_model(model, tmp_path / "model")
    loaded, tokenizer = load_model(tmp_path / "model")
    assert tokenizer is None
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("case", ["gpt2", "llama grouped, untied", "qwen3 window"])
def test_transformers_opens_the_folder_without_a_word(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(random_decoder(**CASES[case][1]), tmp_path / "model")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="transformers"):
        warnings.simplefilter("error")
        _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_folders_that_transformers_writes_are_read_exactly(family: str, tmp_path: Path) -> None:
    """The other direction: their initial weights, their config.json, their file; our logits."""
    sizes: dict[str, Any] = {"vocab_size": 53, "tie_word_embeddings": True}
    if family == "gpt2":
        sizes |= {"n_embd": 20, "n_head": 5, "n_layer": 2, "n_positions": 24}
    else:
        sizes |= {"hidden_size": 20, "intermediate_size": 30, "num_hidden_layers": 2, "num_attention_heads": 5}
        sizes |= {"num_key_value_heads": 5, "head_dim": 4, "max_position_embeddings": 24}
    config = AutoConfig.for_model(family, **sizes)
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config).eval()
    theirs.save_pretrained(tmp_path / "model")
    ours, _ = load_model(tmp_path / "model")
    ids_bt = torch.arange(24)[None] * 2
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids_bt), theirs(ids_bt).logits, atol=TOLERANCE, rtol=0)


def test_a_wrong_weight_shows_in_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate can fail: with two matrices exchanged on the way out, the difference is far over the bound."""
    from llm_journey.checkpoint.families import llama

    monkeypatch.setitem(llama._INNER, "attention.q", "self_attn.o_proj")
    monkeypatch.setitem(llama._INNER, "attention.o", "self_attn.q_proj")
    model = random_decoder(**LLAMA)
    save_model(model, tmp_path / "model")
    monkeypatch.undo()
    ids_bt = torch.arange(32)[None]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.inference_mode():
        assert float((model(ids_bt) - theirs(ids_bt).logits).abs().max()) > 100 * TOLERANCE
