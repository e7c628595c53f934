"""A model by name, text in and text out."""

import json
from pathlib import Path

import pytest

import llm_journey
from llm_journey.app.find_models import find_model
from llm_journey.app.language_model import LanguageModel, open_model
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
    reply = model.stream("The", seed=5, max_new_tokens=12)
    assert reply.finish_reason is None
    pieces = list(reply)
    assert "".join(pieces) == reply.text == model.generate("The", seed=5, max_new_tokens=12)
    assert reply.finish_reason in {"length", "stop"} and reply.num_tokens <= 12


def test_characters_spread_over_tokens_come_whole(model: LanguageModel) -> None:
    """Byte by byte, a stream never shows half a character."""
    text = "café 🎉 naïve"
    reply = model.stream("The", choices=[text], temperature=0)
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


def test_stop_texts_end_an_answer_and_are_no_part_of_it(model: LanguageModel) -> None:
    options = {"temperature": 0, "max_new_tokens": 20}
    whole = model.generate("The river", **options)
    stop = whole[4:7]
    reply = model.stream("The river", **options, stop=stop)
    assert "".join(reply) == reply.text == whole[: whole.find(stop)]
    assert reply.finish_reason == "stop" and not model.engine.busy


def test_a_reply_that_nobody_reads_on_is_let_go(model: LanguageModel) -> None:
    pieces = iter(model.stream("The", max_new_tokens=20, temperature=0))  # sampled, it may end at once
    next(pieces)
    assert model.engine.busy
    pieces.close()  # type: ignore[attr-defined]
    assert not model.engine.busy and model.engine.pool.num_free == model.engine.pool.num_blocks


def test_weights_are_held_once(model: LanguageModel) -> None:
    """The decoder goes when the engine comes, and comes back from the file where it is asked for."""
    import weakref

    state = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    block = weakref.ref(model.decoder.blocks[0])
    assert model.generate("The", max_new_tokens=2) and block() is None
    assert all(value.equal(state[name]) for name, value in model.decoder.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_precisions_answer(shared_home: Path, precision: str) -> None:
    opened = llm_journey.load("rivers", precision=precision)
    assert isinstance(opened, LanguageModel) and opened.engine.runner.weights == precision
    assert isinstance(opened.generate("The", max_new_tokens=3, seed=0), str)


def test_an_unknown_precision_is_refused(shared_home: Path) -> None:
    with pytest.raises(BadInputError, match=r"unknown precision 'int5'; known: auto, bfloat16, float32, int4, int8"):
        llm_journey.load("rivers", precision="int5")


def test_a_gguf_file_answers_in_as_many_bits_as_it_holds(tmp_path: Path, model: LanguageModel) -> None:
    from llm_journey.checkpoint.gguf.model import write_gguf
    from llm_journey.parity.random_models import random_decoder

    decoder = random_decoder(vocab_size=model.tokenizer.vocab_size, width=64, num_kv_heads=2)
    for kind, precision in (("f16", "float32"), ("q8_0", "int8"), ("q4_1", "int4"), ("q4_0", "int4")):
        write_gguf(decoder, model.tokenizer, tmp_path / f"{kind}.gguf", type=kind)
        opened = open_model(str(tmp_path / f"{kind}.gguf"))
        assert opened.precision == precision and opened.engine.runner.weights == precision
    assert open_model(str(tmp_path / "q4_1.gguf"), "float32").precision == "float32"


def test_a_draft_model_changes_no_greedy_answer(model: LanguageModel) -> None:
    settings = {"temperature": 0, "max_new_tokens": 12}
    reply = model.stream("The river", draft=open_model("rivers"), **settings)
    assert "".join(reply) == model.generate("The river", **settings)
    guessed, kept = reply.guesses
    assert 0 < kept <= guessed


def test_threads_share_a_model(model: LanguageModel) -> None:
    """Each has its own answer, as if it were alone."""
    from concurrent.futures import ThreadPoolExecutor

    options = {"temperature": 0, "max_new_tokens": 10}
    prompts = ["The river", "A king", "The old town", "In winter"]
    alone = [model.generate(text, **options) for text in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda text: model.generate(text, **options), prompts * 3)) == alone * 3
