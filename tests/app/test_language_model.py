"""A model by name, text in and text out."""

import json
from pathlib import Path

import pytest

import llm_journey
from llm_journey.app.language_model import LanguageModel, find_model, open_model
from llm_journey.core.errors import BadInputError
from llm_journey.generation.decode import generate
from llm_journey.generation.sampling import SamplingConfig


@pytest.fixture
def model(shared_home: Path) -> LanguageModel:
    return llm_journey.load("rivers")


def test_generate_equals_decoding_the_ids(model: LanguageModel) -> None:
    """The text side adds the begin token and nothing else."""
    settings = SamplingConfig(temperature=0, max_new_tokens=6)
    ids = [model.tokenizer.end_id, *model.tokenizer.encode("The river")]
    expected = model.tokenizer.decode(list(generate(model.decoder, ids, settings, stop_ids=model.stop_ids)))
    assert model.generate("The river", temperature=0, max_new_tokens=6) == expected


def test_a_stream_is_the_whole_text_in_pieces(model: LanguageModel) -> None:
    reply = model.stream("The", settings={"seed": 5, "max_new_tokens": 12})
    assert reply.finish_reason is None
    pieces = list(reply)
    assert "".join(pieces) == reply.text == model.generate("The", seed=5, max_new_tokens=12)
    assert reply.finish_reason in {"length", "stop"} and reply.num_tokens <= 12


def test_characters_spread_over_tokens_come_whole(model: LanguageModel) -> None:
    """Byte by byte, a stream never shows half a character."""
    text = "café 🎉 naïve"
    reply = model.stream("The", settings={"choices": [text], "temperature": 0})
    pieces = list(reply)
    assert "".join(pieces) == text and reply.finish_reason == "stop"
    assert all("\ufffd" not in piece for piece in pieces)
    assert reply.num_tokens > len(pieces)


def test_chat_takes_text_or_messages(model: LanguageModel) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    options = {"temperature": 0, "max_new_tokens": 3}
    assert model.chat("Hi", **options) == model.chat(messages, **options)


def test_defaults_of_the_folder_are_used_and_overridden(home: Path) -> None:
    path = home / "runs" / "rivers" / "model" / "generation_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | {"temperature": 0.25, "top_k": 7, "eos_token_id": [3, 5]}), encoding="utf-8")
    opened = open_model("rivers")
    assert {3, 5, opened.tokenizer.end_id} <= opened.stop_ids
    assert (opened.sampling({}).temperature, opened.sampling({}).top_k) == (0.25, 7)
    assert opened.sampling({"temperature": 1.5}).temperature == 1.5
    with pytest.raises(BadInputError, match="unknown key 'tempo'"):
        opened.sampling({"tempo": 1})


def test_a_run_without_model_gives_its_newest_checkpoint(home: Path) -> None:
    import shutil

    run = home / "runs" / "rivers"
    shutil.rmtree(run / "model")
    assert find_model("rivers").parent == run / "checkpoints"
    assert open_model("rivers").generate("The", max_new_tokens=2, seed=0) is not None
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(BadInputError, match="has saved no model yet"):
        find_model("rivers")


def test_a_folder_without_tokenizer_is_refused(home: Path) -> None:
    folder = home / "runs" / "rivers" / "model"
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadInputError, match=r"holds no tokenizer\.json"):
        open_model(str(folder))


def test_a_catalog_model_on_this_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a form that our loader opens, and in one that it does not."""
    folder = home / "runs" / "rivers" / "model"
    monkeypatch.setattr("llm_journey.datasets.catalog.locate", lambda entry: folder)
    assert open_model("smollm2-135m-instruct").directory == folder
    other = home / "other"
    other.mkdir()
    (other / "model.onnx").write_bytes(b"ONNX")
    monkeypatch.setattr("llm_journey.datasets.catalog.locate", lambda entry: other)
    with pytest.raises(BadInputError, match=r"is here as model\.onnx only, which cannot be opened"):
        open_model("smollm2-135m-instruct")


def test_it_shows_itself_in_a_notebook(model: LanguageModel) -> None:
    html = model._repr_html_()
    assert html.startswith("<table>") and "32 tokens" in html and "rivers" in html
