"""`journey data show --mask`: what a model would learn of chats, token by token."""

import json
from pathlib import Path

import pytest

from command_line import Journey
from llm_journey.checkpoint.model_folder import save_model
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.tokenizer.chat_template import DEFAULT_TEMPLATE
from llm_journey.tokenizer.tokenizer import from_merges


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = from_merges([], pattern="gpt2", special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = DEFAULT_TEMPLATE
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, width=8, num_layers=1, num_heads=2, context=128)
    save_model(Decoder(config), tmp_path / "model", tokenizer=tokenizer)
    return tmp_path / "model"


def test_masks_are_shown_and_counted(model: Path, tmp_path: Path, journey: Journey) -> None:
    rows = [{"prompt": f"Say {number}", "completion": str(number)} for number in range(6)]
    lines = [json.dumps(row) for row in [*rows, {"prompt": "x" * 200, "completion": "y"}, {"prompt": ""}]]
    (tmp_path / "chats.jsonl").write_text("\n".join([*lines, "{"]), encoding="utf-8")
    shown = journey("data", "show", tmp_path / "chats.jsonl", "--mask", model, "--count", "3", "--seed", "1")
    assert shown.code == 0 and shown.out.count("<|im_end|>⟧") == 3 and "left out: no JSON object" in shown.out
    assert f"(first: {tmp_path / 'chats.jsonl'}:9)" in shown.out
    found = journey("data", "show", tmp_path / "chats.jsonl", "--mask", model, "--count", "2", "--json").json
    assert (found["chats"], found["too_long"], found["context"], len(found["shown"])) == (7, 1, 128, 2)
    assert found["trained"] == 7 * 2  # a letter and the end of the turn
    for chat in found["shown"]:
        (trained,) = (piece["text"] for piece in chat["pieces"] if piece["trained"])
        assert trained.endswith("<|im_end|>") and chat["trained"] == 2
        assert sum(len(piece["text"]) for piece in chat["pieces"]) > 30


def test_what_cannot_be_shown(model: Path, tmp_path: Path, journey: Journey) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    done = journey("data", "show", tmp_path / "texts.jsonl", "--mask", model)
    assert done.code == 2 and "no row is a chat" in done.err and "texts.jsonl:1" in done.err
    done = journey("data", "show", tmp_path / "texts.jsonl", "--mask", model, "--dropped", "short")
    assert done.code == 2 and "leave out --dropped" in done.err
    (model / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = from_merges([], pattern="gpt2", special_tokens=["<|endoftext|>"])
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, width=8, num_layers=1, num_heads=2, context=128)
    save_model(Decoder(config), tmp_path / "plain", tokenizer=tokenizer)
    done = journey("data", "show", tmp_path / "texts.jsonl", "--mask", tmp_path / "plain")
    assert done.code == 2 and "has no chat template" in done.err
