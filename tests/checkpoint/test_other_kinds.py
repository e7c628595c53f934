"""Folders of encoders and encoder-decoders: older spellings, copies of tied tensors, what is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_decoders import BERT, MARIAN, MASKED, OWN_KINDS, QWEN3, equal, small_decoder, small_model

from llm_journey.checkpoint.families import family_of
from llm_journey.checkpoint.model_folder import (
    load_config,
    load_decoder,
    load_encoder,
    load_encoder_decoder,
    load_model,
    load_state,
    save_model,
)
from llm_journey.core.errors import BadInputError
from llm_journey.model.encoder import Encoder
from llm_journey.model.encoder_decoder import EncoderDecoder
from llm_journey.tokenizer import TokenizerConfig
from llm_journey.tokenizer.train import train_tokenizer
from llm_journey.tokenizer.wordpiece import WordPiece


def _rewrite(directory: Path, change: Any) -> None:
    """The folder's tensors with `change` applied to the mapping of them."""
    path = directory / "model.safetensors"
    save_file({name: tensor.clone() for name, tensor in change(load_file(path)).items()}, path)


def _edit(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("choices", OWN_KINDS)
def test_choices_of_no_family_are_saved_in_our_own_format(choices: dict[str, Any], tmp_path: Path) -> None:
    model = small_model(**choices)
    assert family_of(model.config) is None
    save_model(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "llm_journey"
    loaded, _ = load_model(tmp_path / "model")
    assert type(loaded) is type(model) and loaded.config == model.config
    assert equal(dict(loaded.state_dict()), dict(model.state_dict()))


def test_our_config_from_before_there_were_kinds_still_opens(tmp_path: Path) -> None:
    model = small_decoder(norm="layernorm", mlp="relu2", positions="sinusoidal")
    save_model(model, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    new = {"kind", "token_types", "num_decoder_layers", "embedding_norm", "embedding_scale", "pooler", "next_sentence"}
    new |= {"head_transform", "head_bias"}
    assert new < set(values)
    path.write_text(json.dumps({key: value for key, value in values.items() if key not in new}))
    loaded, _ = load_decoder(tmp_path / "model")
    assert loaded.config == model.config and equal(dict(loaded.state_dict()), dict(model.state_dict()))


def test_files_of_older_berts_are_read(tmp_path: Path) -> None:
    """gamma and beta, the position numbers as a buffer, the head's copies of what it is tied to."""
    model = small_model(**MASKED | {"pooler": True, "next_sentence": True})
    save_model(model, tmp_path / "model")

    def older(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        named = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        return named | {
            "bert.embeddings.position_ids": torch.arange(16)[None],
            "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"],
            "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
        }

    _rewrite(tmp_path / "model", older)
    assert len(load_file(tmp_path / "model" / "model.safetensors")) == len(model.state_dict()) + 3
    config, state = load_state(tmp_path / "model")
    assert config == model.config and equal(state, dict(model.state_dict()))


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("pooler", [False, True])
def test_an_encoder_alone_is_read_with_its_prefix_and_without(prefix: str, pooler: bool, tmp_path: Path) -> None:
    """sentence-transformers writes none; whether there is a pooler shows in the names alone."""
    model = small_model(**BERT | {"pooler": pooler})
    save_model(model, tmp_path / "model")
    names = load_file(tmp_path / "model" / "model.safetensors")
    assert "embeddings.word_embeddings.weight" in names and ("pooler.dense.weight" in names) == pooler
    _rewrite(tmp_path / "model", lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})
    loaded, _ = load_encoder(tmp_path / "model")
    assert loaded.config == model.config == load_config(tmp_path / "model")
    assert equal(dict(loaded.state_dict()), dict(model.state_dict()))


WRONG = [
    (BERT, {"encoder.layer.1.output.dense.bias": None}, r"missing: bert\.encoder\.layer\.1\.output\.dense\.bias"),
    (BERT, {"encoder.layer.2.output.dense.bias": torch.ones(8)}, r"no place for: bert\.encoder\.layer\.2\.output"),
    (
        BERT,
        {"embeddings.LayerNorm.gamma": torch.ones(8)},
        r"LayerNorm\.weight and embeddings\.LayerNorm\.gamma are two",
    ),
    (BERT, {"bert.pooler.dense.bias": torch.ones(8)}, r"missing: bert\.pooler\.dense\.weight"),
    (BERT, {"cls.predictions.bias": torch.ones(29)}, r"missing: cls\.predictions\.transform"),
    (MASKED, {"cls.seq_relationship.bias": torch.ones(2)}, r"missing: bert\.pooler\.dense\.bias"),
    (MASKED, {"cls.predictions.bias": None}, r"missing: cls\.predictions\.bias"),
    (MASKED, {"cls.predictions.decoder.bias": torch.ones(29)}, r"decoder\.bias differs from cls\.predictions\.bias"),
    (MASKED, {"cls.predictions.decoder.weight": torch.ones(29, 8)}, r"decoder\.weight differs from bert\.embeddings"),
    (
        MASKED,
        {"cls.predictions.decoder.weight": torch.ones(8, 29)},
        r"has shape \[8, 29\], its config asks for \[29, 8\]",
    ),
    (
        MARIAN,
        {"final_logits_bias": torch.ones(29)},
        r"final_logits_bias has shape \[29\], its config asks for \[1, 29\]",
    ),
    (MARIAN, {"model.decoder.layers.1.encoder_attn.k_proj.weight": None}, r"missing: model\.decoder\.layers\.1\.enc"),
    (MARIAN, {"lm_head.weight": torch.ones(29, 8)}, r"lm_head\.weight differs from model\.shared\.weight"),
    (MARIAN, {"model.encoder.embed_positions.weight": torch.ones(16, 8)}, r"embed_positions\.weight holds other numb"),
]


@pytest.mark.parametrize(("choices", "change", "message"), WRONG)
def test_tensors_that_do_not_fit_are_named(
    choices: dict[str, Any], change: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    save_model(small_model(**choices), tmp_path / "model")
    _rewrite(
        tmp_path / "model",
        lambda tensors: {name: tensor for name, tensor in (tensors | change).items() if tensor is not None},
    )
    with pytest.raises(BadInputError, match=message) as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("choices", "change", "message"),
    [
        (BERT, {"type_vocab_size": 1 << 30}, r"has shape \[2, 8\], its config asks for \[1073741824, 8\]"),
        (BERT, {"num_hidden_layers": 1 << 30}, "claims 1073741824 layers"),
        (MARIAN, {"decoder_layers": 1 << 30}, "claims 1073741826 layers"),
        (MARIAN, {"max_position_embeddings": 1 << 20 | 1}, "key 'max_position_embeddings'"),
    ],
)
def test_a_lying_config_is_refused(
    choices: dict[str, Any], change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_model(small_model(**choices), tmp_path / "model")
    _edit(tmp_path / "model", **change)
    with pytest.raises(BadInputError, match=message):
        load_model(tmp_path / "model")


def test_position_tables_out_of_proportion_are_refused(tmp_path: Path) -> None:
    """No file's size bounds what is computed: tables of 2**20 positions take hundreds of MiB for a model of 20 kB."""
    save_model(small_model(**MARIAN), tmp_path / "narrow")
    _edit(tmp_path / "narrow", max_position_embeddings=1 << 18)
    assert load_model(tmp_path / "narrow")[0].config.context == 1 << 18, "48 MiB are just allowed"
    save_model(small_model(**MARIAN | {"width": 16}), tmp_path / "sines")
    _edit(tmp_path / "sines", max_position_embeddings=1 << 20)
    with pytest.raises(
        BadInputError, match=r"context of 1048576 positions, whose tables take 384 MiB, more than the model"
    ):
        load_model(tmp_path / "sines")
    save_model(small_decoder(**QWEN3, head_width=64), tmp_path / "rope")
    _edit(tmp_path / "rope", max_position_embeddings=1 << 20)
    with pytest.raises(BadInputError, match=r"context of 1048576 positions, whose tables take 384 MiB"):
        load_model(tmp_path / "rope")


def test_each_loader_takes_its_own_kind(tmp_path: Path) -> None:
    save_model(small_decoder(**QWEN3), tmp_path / "decoder")
    save_model(small_model(**BERT), tmp_path / "encoder")
    save_model(small_model(**MARIAN), tmp_path / "both")
    assert isinstance(load_encoder(tmp_path / "encoder")[0], Encoder)
    assert isinstance(load_encoder_decoder(tmp_path / "both")[0], EncoderDecoder)
    with pytest.raises(BadInputError, match="of kind 'encoder'; what generates text is of kind 'decoder'"):
        load_decoder(tmp_path / "encoder")
    with pytest.raises(BadInputError, match="of kind 'decoder'; what embeds texts is of kind 'encoder'"):
        load_encoder(tmp_path / "decoder")
    with pytest.raises(BadInputError, match="of kind 'encoder'; what turns one text into another is of kind"):
        load_encoder_decoder(tmp_path / "encoder")


def test_a_wordpiece_tokenizer_comes_with_its_encoder_and_no_decoder(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "##s"]
    tokenizer = {
        "model": {"type": "WordPiece", "vocab": {word: number for number, word in enumerate(words)}},
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
    }
    save_model(small_model(**BERT), tmp_path / "encoder")
    save_model(small_decoder(**QWEN3), tmp_path / "decoder")
    for name in ("encoder", "decoder"):
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    _, found = load_encoder(tmp_path / "encoder")
    assert isinstance(found, WordPiece) and found.encode("Rivers") == [2, 5, 6, 3]
    with pytest.raises(BadInputError, match=r"a tokenizer of another kind \(WordPiece\); a decoder needs BPE"):
        load_decoder(tmp_path / "decoder")
    tokenizer["model"]["vocab"]["sea"] = 29
    (tmp_path / "encoder" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BadInputError, match="the tokenizer has 30 ids, the model embeds only 29"):
        load_encoder(tmp_path / "encoder")


def test_a_target_begins_with_the_padding_token(tmp_path: Path) -> None:
    """Marian's convention, which transformers' generate follows by decoder_start_token_id."""
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=270), processes=1)
    save_model(small_model(**MARIAN | {"vocab_size": 270}), tmp_path / "model", tokenizer=tokenizer)
    padding = tokenizer.special_tokens[tokenizer.roles.padding]
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "model" / name).read_text())["decoder_start_token_id"] == padding
    assert load_encoder_decoder(tmp_path / "model")[0].config.vocab_size == 270


def test_the_config_of_a_family_is_exact() -> None:
    """family_of takes a family only for choices that it computes: each of these, changed alone, leaves it."""
    assert family_of(small_model(**BERT).config) == family_of(small_model(**MASKED).config) == "bert"
    assert family_of(small_model(**MARIAN).config) == "marian"
    shared: tuple[dict[str, Any], ...] = (
        {"norm": "rmsnorm"},
        {"norm_placement": "pre"},
        {"positions": "sinusoidal"},
        {"mlp": "relu2"},
        {"bias": False},
        {"tied_embeddings": False},
        {"num_kv_heads": 1},
        {"head_width": 6},
        {"qk_norm": True},
    )
    for change in (*shared, {"embedding_norm": False}, {"token_types": 0}, {"embedding_scale": True}):
        assert family_of(small_model(**BERT | change).config) is None, change
    for change in (*shared, {"embedding_norm": True}, {"head_bias": False}, {"norm_epsilon": 1e-6}):
        assert family_of(small_model(**MARIAN | change).config) is None, change
    for change in ({"embedding_norm": True}, {"embedding_scale": True}):
        assert family_of(small_decoder(**QWEN3 | change).config) is None
