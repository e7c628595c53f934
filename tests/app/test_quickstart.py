"""`journey quickstart` from text to a word with a published model; its recipe and that model have small stand-ins."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from command_line import Journey
from llm_journey.app import quickstart
from llm_journey.checkpoint.gguf.model import write_gguf
from llm_journey.core.files import sha256_file
from llm_journey.datasets import catalog
from llm_journey.datasets.sources import CatalogFile
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.tokenizer import TokenizerConfig
from llm_journey.tokenizer.chat_template import DEFAULT_TEMPLATE
from llm_journey.tokenizer.train import train_tokenizer

FILE, ANSWER = "stand-in.gguf", "Paris"


@pytest.fixture
def small(tiny_recipe: Path, empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A quickstart of the tests' own recipe, in an empty home."""
    monkeypatch.setattr(quickstart, "RECIPE", str(tiny_recipe))
    return empty_home


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    """A folder as JOURNEY_DATA_DIR, with a chat model of the published one's name that knows one answer.

    Its layers add nothing; its head says, for each token, which comes next.
    """
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=270), processes=1)
    tokenizer.chat_template = DEFAULT_TEMPLATE
    size = tokenizer.vocab_size
    config = TransformerConfig(
        vocab_size=size, width=size, num_layers=1, num_heads=1, mlp_width=8, context=256, tied_embeddings=False
    )
    model = Decoder(config).eval()
    spoken = [tokenizer.vocabulary[bytes([byte])] for byte in b"\n" + ANSWER.encode()]
    with torch.no_grad():
        model.embed.weight.copy_(torch.eye(size))
        model.head_weight.zero_()
        for token, following in pairwise([*spoken, tokenizer.special_tokens["<|im_end|>"]]):
            model.head_weight[following, token] = 1.0
        for block in model.blocks:
            block.attention.o.weight.zero_()
            block.mlp.down.weight.zero_()
    folder = tmp_path / "data" / quickstart.CHAT_MODEL
    folder.mkdir(parents=True)
    write_gguf(model, tokenizer, folder / FILE)
    return folder.parent


def _catalog_file(path: Path) -> CatalogFile:
    return CatalogFile(path.name, path.stat().st_size, sha256_file(path))


def test_the_published_model_is_asked_and_its_answer_shown(
    small: Path, data_folder: Path, journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = catalog.CATALOG[quickstart.CHAT_MODEL]
    described = replace(entry, files=(_catalog_file(data_folder / entry.name / FILE),), sources=())
    monkeypatch.setitem(catalog.CATALOG, entry.name, described)
    monkeypatch.setenv("JOURNEY_DATA_DIR", str(data_folder))
    outcome = journey("quickstart", "--name", "first")
    assert outcome.code == 0, outcome.err
    assert f"{entry.name}\n> {quickstart.QUESTION}\n{ANSWER}\n" in outcome.out
    assert f"asking {entry.name}" in outcome.err and "was not asked" not in outcome.err
    assert outcome.out.startswith("The river"), "the own model's samples come first"


def test_a_model_that_cannot_be_pulled_is_said_and_costs_nothing_else(
    small: Path, journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the real item's sources the hub alone, which the tests switch off: PyPI would be asked by pip, a process."""
    entry = catalog.CATALOG[quickstart.CHAT_MODEL]
    monkeypatch.setitem(catalog.CATALOG, entry.name, replace(entry, sources=entry.sources[:1]))
    outcome = journey("quickstart", "--name", "first", "--json")
    assert outcome.code == 0, outcome.err
    [said] = [line for line in outcome.err.splitlines() if "was not asked" in line]
    assert said.startswith(f"{entry.name} was not asked: cannot pull '{entry.name}': the Hugging Face hub is not asked")
    assert said.endswith(f"run `journey models pull {entry.name}` where a network is")
    found = json.loads(outcome.out)
    assert found["chat"] is None and found["failures"] == {} and found["beaten"] is not None
    assert [sample["prompt"] for sample in found["samples"]] == ["The river"]
    assert Path(found["model"]).is_dir() and (small / "runs" / "first" / "report.html").is_file()
