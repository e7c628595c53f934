"""A base that gets tokens for the text it goes on with: rows that mean what their pieces meant, resumed bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Recorder, steps, validations

from gguf_files import random_model, tiny_tokenizer
from llm_journey.checkpoint.decoders import read_decoder
from llm_journey.checkpoint.model_folder import load_decoder, save_model
from llm_journey.core.errors import BadInputError
from llm_journey.finetuning.vocabulary import enlarge
from llm_journey.tokenizer.extension import extended
from llm_journey.training.recipe import Recipe, load_recipe, recipe_from
from llm_journey.training.run import train

WORDS = ("boundary layer", "supersonic flow", "laminar", "viscous fluid", "pressure gradient", "heat transfer")


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_model(random_model(tied_embeddings=request.param), tmp_path / "base", tokenizer=tiny_tokenizer())
    return tmp_path / "base"


def texts(folder: Path) -> Path:
    folder.mkdir()
    for number in range(24):
        words = " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 9))
        (folder / f"{number:02}.txt").write_text(f"{words} in experiment {number}.", encoding="utf-8")
    return folder


def recipe(base: Path, source: Path, **choices: Any) -> Recipe:
    mapping = {
        "name": "more",
        "base": str(base),
        "data": {"source": str(source), "held_out": 0.2},
        "vocabulary": {"new_tokens": 16},
        "forgetting": {"source": str(source), "tokens": 200},
        "training": {
            "steps": 4,
            "batch_size": 4,
            "context": 16,
            "log_every": 1,
            "validations": 1,
            "checkpoints": 4,
            "optimizer": {"name": "adamw", "learning_rate": 0.01},
        },
    }
    return recipe_from(mapping | choices, "test")


def test_the_run(base: Path, tmp_path: Path) -> None:
    wanted, heard = recipe(base, texts(tmp_path / "texts")), Recorder()
    whole = train(wanted, tmp_path / "whole", base=base, observer=heard)
    assert any("16 new tokens: held-out text takes -" in message for message in heard.messages)
    model, tokenizer = load_decoder(whole.directory / "model")
    before = read_decoder(base)
    assert tokenizer is not None and tokenizer.vocab_size == before.tokenizer.vocab_size + 16
    assert model.config.vocab_size == max(before.decoder.config.vocab_size, tokenizer.vocab_size)
    assert whole.figures["general_bits_per_byte"] > 0

    def stop(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path / "cut", base=base, observer=Recorder(stop))
    saved = load_recipe(tmp_path / "cut")  # what the command line goes on with: it names the larger vocabulary
    assert saved.model.vocab_size == model.config.vocab_size
    resumed = train(saved, tmp_path / "cut", base=base, resume=True)
    assert steps(resumed.directory) == steps(whole.directory)
    assert validations(resumed.directory) == validations(whole.directory)


def test_rows_begin_as_the_mean_of_their_pieces(base: Path) -> None:
    stored = read_decoder(base)
    before = {name: value.clone() for name, value in stored.decoder.state_dict().items()}
    after = extended(stored.tokenizer, [" ".join(WORDS * 3)], 9, processes=1)
    ids_bt = torch.arange(20)[None]
    logits_btv = stored.decoder(ids_bt)
    enlarge(stored.decoder, stored.tokenizer, after)
    first = stored.tokenizer.vocab_size
    torch.testing.assert_close(stored.decoder(ids_bt)[..., :first], logits_btv[..., :first])
    spelled = {token: data for data, token in after.vocabulary.items()}
    for token in range(first, after.vocab_size):
        pieces = stored.tokenizer.encode_word(spelled[token])
        assert len(pieces) > 1
        for name in {"embed.weight", "head.weight"} & before.keys():
            torch.testing.assert_close(stored.decoder.state_dict()[name][token], before[name][pieces].mean(0))


def test_where_it_does_not_go(base: Path, tmp_path: Path) -> None:
    source = texts(tmp_path / "texts")
    for choices in ({"stage": "sft"}, {"method": "lora"}):
        with pytest.raises(BadInputError, match="stage pretrain, method full"):
            recipe(base, source, **choices)
    with pytest.raises(BadInputError, match="needs a model to go on from; give base"):
        recipe_from({"data": {"source": "x"}, "vocabulary": {"new_tokens": 5}, "training": {"steps": 1}}, "test")
