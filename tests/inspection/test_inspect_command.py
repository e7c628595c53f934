"""`journey inspect`, `load(...).inspect(...)`: the same figures, for people and for scripts."""

from pathlib import Path

import pytest
import torch

import llm_journey
from command_line import Journey
from llm_journey.app.inspect import inspect_model
from llm_journey.checkpoint.model_folder import save_model
from llm_journey.model.config import TransformerConfig
from llm_journey.model.encoder import Encoder

TEXT = "The old stone bridge"


def test_the_command_shows_tokens_lens_and_a_map(shared_home: Path, journey: Journey) -> None:
    outcome = journey("inspect", "rivers", TEXT)
    assert outcome.code == 0, outcome.err
    for part in ("Bits per token", "expected here", "(next)", "Logit lens", "came", "sharpest head", "weight: · from"):
        assert part in outcome.out
    assert "written" not in outcome.err


def test_json_equals_python(shared_home: Path, journey: Journey) -> None:
    found = llm_journey.load("rivers").inspect(TEXT)
    assert journey("inspect", "rivers", TEXT, "--json").json == found.describe()
    model = llm_journey.load("rivers")
    ids = [model.tokenizer.end_id, *model.tokenizer.encode(TEXT)]
    assert found.inspection.ids.tolist() == ids
    with torch.inference_mode():
        log_probabilities = model.decoder(torch.tensor([ids]))[0].log_softmax(-1)
    bits = -sum(float(log_probabilities[at, token]) for at, token in enumerate(ids[1:])) / (len(ids) - 1)
    assert found.bits == pytest.approx(bits / torch.tensor(2.0).log().item(), abs=1e-4)


def test_files_are_written_where_they_were_asked_for(shared_home: Path, journey: Journey, tmp_path: Path) -> None:
    page, pictures = tmp_path / "new" / "page.html", tmp_path / "pictures"
    outcome = journey("inspect", "rivers", TEXT, "--html", page, "--png", pictures, "--layer", "0", "--head", "1")
    assert outcome.code == 0
    assert outcome.err.splitlines()[:2] == [f"written: {page}", f"written: 4 pictures in {pictures}"]
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in pictures.iterdir()) == [
        *("attention-layer-00.png", "attention.png", "lens.png", "tokens.png"),
    ]
    assert "Layer 0, head 1" in outcome.out


def test_a_text_of_nothing_is_its_begin_token(shared_home: Path, journey: Journey) -> None:
    assert len(journey("inspect", "rivers", "", "--json").json["tokens"]) == 2
    assert journey("inspect", "rivers", "").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no-such", "x"), "unknown model 'no-such'"),
        (("rivers", "river " * 100), "the model's context holds 32"),
        (("rivers", "x", "--layer", "7"), "layer 7 is not one of this model's: 0 to 0"),
        (("rivers", "x", "--head", "2"), "head 2 is not one of this model's: 0 to 1"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: tuple[str, ...], message: str, shared_home: Path, journey: Journey, tmp_path: Path
) -> None:
    outcome = journey("inspect", *arguments, "--html", tmp_path / "page.html")
    assert (outcome.code, outcome.out) == (2, "") and message in outcome.err and outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_by_its_folder(shared_home: Path, journey: Journey, tmp_path: Path) -> None:
    tokenizer = llm_journey.load("rivers").tokenizer
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, kind="encoder", width=16, num_layers=2, num_heads=2)
    save_model(Encoder(config), tmp_path / "encoder", tokenizer=tokenizer)
    found = inspect_model(str(tmp_path / "encoder"), TEXT)
    assert not found.inspection.causal and found.attention(0, 0)[0, -1] > 0
    assert found.tokens[0] == found.tokens[-1] == "<|endoftext|>"
    facts = found.token_facts()
    assert len(facts) == found.inspection.length and facts[0].probability is None and facts[1].probability is not None
    outcome = journey("inspect", tmp_path / "encoder", TEXT, "--html", tmp_path / "page.html")
    assert outcome.code == 0, outcome.err
    assert "on following" in outcome.out and "came" not in outcome.out
