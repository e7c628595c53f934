"""Folders that we write, opened by transformers as they are: the same logits, no tensor missing or left over."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from random_decoders import BERT, BERT_MASKED, GPT2, LLAMA, MARIAN, QWEN3, random_decoder, random_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
)

from llm_journey.checkpoint import families
from llm_journey.checkpoint.model_folder import load_model, save_model
from llm_journey.checkpoint.verify import compare_with_transformers
from llm_journey.core.errors import BadInputError
from llm_journey.model.encoder import Encoder
from llm_journey.model.encoder_decoder import EncoderDecoder

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
    "bert": ("bert", BERT),
    "bert masked": ("bert", BERT_MASKED),
    "bert odd": ("bert", BERT_MASKED | {"vocab_size": 101, "width": 15, "num_heads": 3, "mlp_width": 37}),
    "bert pooler": ("bert", BERT | {"pooler": True, "token_types": 1, "mlp": "gelu_tanh", "dropout": 0.1}),
    "bert one head": ("bert", BERT_MASKED | {"width": 9, "num_heads": 1, "num_layers": 1, "mlp": "relu"}),
    "bert whole": ("bert", BERT_MASKED | {"pooler": True, "next_sentence": True, "mlp": "silu"}),
    "bert larger": ("bert", BERT_MASKED | {"width": 96, "num_heads": 8, "num_layers": 6, "context": 160}),
    "marian": ("marian", MARIAN),
    "marian uneven": ("marian", MARIAN | {"num_layers": 1, "num_decoder_layers": 3, "vocab_size": 101, "mlp": "relu"}),
    "marian unscaled": ("marian", MARIAN | {"embedding_scale": False, "width": 14, "num_heads": 7, "mlp": "gelu"}),
    "marian larger": ("marian", MARIAN | {"width": 96, "num_heads": 8, "num_layers": 6, "context": 160}),
}
OPENERS = {
    "bert": AutoModel,
    "bert masked": AutoModelForMaskedLM,
    "bert whole": AutoModelForPreTraining,
    "marian": AutoModelForSeq2SeqLM,
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    family, choices = CASES[case]
    model = random_model(scale=0.2, **choices)
    assert families.family_of(model.config) == family
    save_model(model, tmp_path / "model")
    ids = torch.randint(model.config.vocab_size, (model.config.context,), generator=torch.Generator().manual_seed(1))
    assert compare_with_transformers(tmp_path / "model", ids.tolist()) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_loading_back_gives_the_identical_model(case: str, tmp_path: Path) -> None:
    model = random_model(**CASES[case][1])
    save_model(model, tmp_path / "model")
    loaded, tokenizer = load_model(tmp_path / "model")
    assert tokenizer is None
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "case", ["gpt2", "llama grouped, untied", "qwen3 window", "bert masked", "bert whole", "marian"]
)
def test_transformers_opens_the_folder_without_a_word(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(random_model(**CASES[case][1]), tmp_path / "model")
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="transformers"):
        warnings.simplefilter("error")
        opener = OPENERS.get(case, AutoModelForCausalLM)
        _, report = opener.from_pretrained(tmp_path / "model", output_loading_info=True)
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


@pytest.mark.parametrize(
    "case", ["gpt2", "llama grouped, untied", "qwen3 window", "bert", "bert masked", "bert whole", "marian"]
)
def test_what_transformers_saves_again_comes_back_bit_for_bit(case: str, tmp_path: Path) -> None:
    """Ours -> transformers opens -> transformers saves, in its way -> ours."""
    model = random_model(**CASES[case][1])
    save_model(model, tmp_path / "ours")
    options = {"add_pooling_layer": False} if case == "bert" else {}
    theirs = OPENERS.get(case, AutoModelForCausalLM).from_pretrained(tmp_path / "ours", **options)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded, _ = load_model(tmp_path / "theirs")
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("opener", [AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining])
def test_fresh_bert_models_of_transformers_are_read_exactly(opener: Any, tmp_path: Path) -> None:
    sizes = {"vocab_size": 53, "hidden_size": 20, "num_attention_heads": 5, "num_hidden_layers": 2}
    config = AutoConfig.for_model("bert", **sizes, intermediate_size=30, max_position_embeddings=24)
    torch.manual_seed(0)
    theirs = opener.from_config(config).eval()
    theirs.save_pretrained(tmp_path / "model")
    ours, _ = load_model(tmp_path / "model")
    assert isinstance(ours, Encoder) and ours.config.pooler == (opener is not AutoModelForMaskedLM)
    ids_bt, types_bt = torch.arange(24)[None] * 2, (torch.arange(24)[None] > 11).long()
    with torch.inference_mode():
        expected = theirs(ids_bt, token_type_ids=types_bt)
        hidden = ours.hidden(ids_bt, token_types_bt=types_bt)
        if opener is AutoModel:
            torch.testing.assert_close(hidden, expected.last_hidden_state, atol=TOLERANCE, rtol=0)
            torch.testing.assert_close(ours.pooled(hidden), expected.pooler_output, atol=TOLERANCE, rtol=0)
        elif opener is AutoModelForMaskedLM:
            torch.testing.assert_close(ours.logits(hidden), expected.logits, atol=TOLERANCE, rtol=0)
        else:
            torch.testing.assert_close(ours.logits(hidden), expected.prediction_logits, atol=TOLERANCE, rtol=0)
            follows = ours.next_sentence_logits(hidden)
            torch.testing.assert_close(follows, expected.seq_relationship_logits, atol=TOLERANCE, rtol=0)


def test_fresh_marian_models_of_transformers_are_read_exactly(tmp_path: Path) -> None:
    """Their sinusoids at all of 512 positions; then from a file that holds them and every copy of the embedding."""
    config = AutoConfig.for_model(
        "marian",
        vocab_size=53,
        d_model=20,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=5,
        decoder_attention_heads=5,
        encoder_ffn_dim=30,
        decoder_ffn_dim=30,
        max_position_embeddings=512,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=52,
        decoder_start_token_id=52,
    )
    torch.manual_seed(0)
    theirs = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        theirs.final_logits_bias.normal_()
    theirs.save_pretrained(tmp_path / "model")
    source_bs, target_bt = torch.arange(512)[None] * 7 % 53, torch.arange(512)[None] * 5 % 53
    with torch.inference_mode():
        expected = theirs(input_ids=source_bs, decoder_input_ids=target_bt).logits
        ours, _ = load_model(tmp_path / "model")
        assert isinstance(ours, EncoderDecoder)
        torch.testing.assert_close(ours(source_bs, target_bt), expected, atol=TOLERANCE, rtol=0)
    path = tmp_path / "model" / "model.safetensors"
    everything = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    assert len(everything) == len(load_file(path)) + 5
    save_file(everything, path)
    again, _ = load_model(tmp_path / "model")
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in ours.state_dict().items())
    everything["model.decoder.embed_positions.weight"][300, 3] += 0.1
    save_file(everything, path)
    with pytest.raises(BadInputError, match=r"model\.decoder\.embed_positions\.weight holds other numbers"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(("family", "inner"), [("bert", "attention.q"), ("marian", "mlp.up")])
def test_a_wrong_map_of_the_other_kinds_shows_too(
    family: str, inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two matrices of equal shape exchanged on the way out, and back again before ours is built."""
    module = getattr(families, family)
    other = {"attention.q": "attention.k", "mlp.up": "mlp.down"}[inner]
    choices = (BERT_MASKED if family == "bert" else MARIAN) | {"mlp_width": 24}
    model = random_model(**choices)
    save_model(model, tmp_path / "model")
    assert compare_with_transformers(tmp_path / "model", list(range(32))) <= TOLERANCE
    first, second = module._INNER[inner], module._INNER[other]
    monkeypatch.setitem(module._INNER, inner, second)
    monkeypatch.setitem(module._INNER, other, first)
    assert compare_with_transformers(tmp_path / "model", list(range(32))) > 100 * TOLERANCE


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
