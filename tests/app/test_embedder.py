"""An embedder by name: from Python and the command line; folders that it does not understand are refused by name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llm_journey
from command_line import Journey
from embedder_folders import MODULES, POOLING, save_bert, save_embedder
from llm_journey.app.embedder import Embedder, open_embedder
from llm_journey.core.errors import BadInputError

LONG = "the river " * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedder of 16 tokens, 24 numbers."""
    return save_embedder(tmp_path_factory.mktemp("models") / "small")


def test_load_gives_an_embedder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = llm_journey.load(folder)
    assert isinstance(model, Embedder) and (model.name, model.width, model.max_tokens) == ("small", 24, 16)
    vectors = model.embed(["the old king", "A City!", LONG])
    assert vectors.shape == (3, 24) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert capsys.readouterr().err == (
        "1 of 3 texts are longer than the 16 tokens that small reads; what is beyond is not in their vectors\n"
    )
    np.testing.assert_allclose(model.embed("the old king"), vectors[:1], atol=1e-6)
    assert model.embed([]).shape == (0, 24)
    assert capsys.readouterr().err == ""
    assert "16 tokens" in model._repr_html_() and "of length 1" in model._repr_html_()
    with pytest.raises(BadInputError, match="text 1 is a int; a text must be a string"):
        model.embed(["a", 7])  # type: ignore[list-item]


def test_a_cut_text_equals_its_beginning(folder: Path) -> None:
    model = open_embedder(str(folder))
    found = model.embed_counted([LONG, " ".join(LONG.split()[:14]), " ".join(LONG.split()[:13])])
    assert (found.cut, found.tokens) == ([0], [16, 16, 15])
    np.testing.assert_allclose(found.vectors[0], found.vectors[1], atol=1e-6)
    assert np.abs(found.vectors[0] - found.vectors[2]).max() > 1e-3


def test_embed_prints_a_line_a_text(folder: Path, journey: Journey) -> None:
    outcome = journey("embed", folder, "the old king", LONG)
    assert outcome.code == 0 and "1 of 2 texts are longer than the 16 tokens" in outcome.err
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(row["index"], row["tokens"], row["cut"]) for row in rows] == [(0, 5, False), (1, 16, True)]
    expected = open_embedder(str(folder)).embed_counted(["the old king", LONG]).vectors
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], dtype=np.float32), expected)
    whole = journey("embed", folder, "the old king", LONG, "--json").json
    assert {key: whole[key] for key in ("model", "width", "max_tokens", "texts", "tokens", "cut")} == {
        "model": "small", "width": 24, "max_tokens": 16, "texts": 2, "tokens": 21, "cut": 1,
    }  # fmt: skip
    assert whole["embeddings"] == rows


def test_texts_from_a_file_and_vectors_to_one(folder: Path, tmp_path: Path, journey: Journey) -> None:
    texts = ["the old king", "a red stone", "near the river"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts) + "\n")
    (tmp_path / "t.txt").write_text("\n\n".join(texts) + "\r\n")
    expected = open_embedder(str(folder)).embed(texts)
    for source in ("t.jsonl", "t.txt"):
        outcome = journey("embed", folder, "--file", tmp_path / source, "--out", tmp_path / "v.npy")
        assert (outcome.code, outcome.out) == (0, "") and "v.npy (3 x 24)" in outcome.err
        np.testing.assert_allclose(np.load(tmp_path / "v.npy", allow_pickle=False), expected, atol=1e-6)
    outcome = journey("embed", folder, "--file", tmp_path / "t.txt", "--out", tmp_path / "v.jsonl", "--json")
    assert outcome.json["out"] == str(tmp_path / "v.jsonl") and "embeddings" not in outcome.json
    rows = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        (b" \n\n", "holds no text"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b'{"text": "a"}\nplain\n', "line 2: no JSON"),
        (b'{"text": "a"}\n\n{"text": 3}\n', "line 3: holds no string under the key 'text'"),
        (b"[" * 100_000, "line 1: no JSON"),
    ],
)
def test_a_file_that_holds_no_texts(
    content: bytes | None, said: str, folder: Path, tmp_path: Path, journey: Journey
) -> None:
    path = tmp_path / "texts.jsonl"
    if content is not None:
        path.write_bytes(content)
    outcome = journey("embed", folder, "--file", path)
    assert outcome.code == 2 and f"{path}: {said}" in outcome.err and outcome.err.count("\n") == 1


def test_wrong_use_of_the_command(folder: Path, tmp_path: Path, journey: Journey) -> None:
    assert journey("embed", folder).code == 2
    assert journey("embed", folder, "a", "--file", tmp_path / "t.txt").code == 2
    outcome = journey("embed", folder, "a", "--out", tmp_path / "v.pickle")
    assert outcome.code == 2 and "must end in .npy or .jsonl" in outcome.err
    (tmp_path / "taken.npy").mkdir()
    outcome = journey("embed", folder, "a", "--out", tmp_path / "taken.npy")
    assert outcome.code == 1 and "cannot be written" in outcome.err
    outcome = journey("embed", save_bert(tmp_path / "bare"), "a")
    assert outcome.code == 2 and "holds no modules.json" in outcome.err


def _pooling(**changes: Any) -> dict[str, Any]:
    return POOLING | changes


_DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


@pytest.mark.parametrize(
    ("file", "value", "said"),
    [
        ("modules.json", [*MODULES[:2], _DENSE], "its modules are Transformer + Pooling + Dense"),
        ("modules.json", [], "its modules are none"),
        ("modules.json", {"0": "Transformer"}, "must be a list of modules"),
        ("modules.json", [MODULES[0], MODULES[1] | {"path": "../1_Pooling"}], "leads out of the model's folder"),
        ("modules.json", [MODULES[0] | {"path": "0_Transformer"}, MODULES[1]], "must lie in the folder itself"),
        ("1_Pooling/config.json", _pooling(pooling_mode_cls_token=True), "pooling is cls, mean; one of mean, max, cls"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "pooling is lasttoken"),
        ("1_Pooling/config.json", {"pooling_mode": {}}, "pooling is {}"),
        ("1_Pooling/config.json", {}, "pooling is none"),
        ("1_Pooling/config.json", _pooling(include_prompt=False), "'include_prompt' = False"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "'default_prompt_name' = 'query'"),
        ("config_sentence_transformers.json", {"truncate_dim": 8}, "'truncate_dim' = 8"),
        ("sentence_bert_config.json", {"max_seq_length": "many"}, "'max_seq_length' = 'many'"),
        ("sentence_bert_config.json", {"max_seq_length": 2}, "from 3 on"),
    ],
)
def test_what_is_not_done_is_refused_by_name(file: str, value: Any, said: str, tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model")
    (folder / file).write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(BadInputError) as caught:
        open_embedder(str(folder))
    assert said in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_that_keeps_capitals_is_not_asked_for_lower_case(tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16, "do_lower_case": true}')
    assert open_embedder(str(folder)).max_tokens == 16
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BadInputError, match="lower case of a tokenizer that keeps capitals"):
        open_embedder(str(folder))


def test_tokenizer_show_knows_wordpiece(folder: Path, journey: Journey) -> None:
    shown = journey("tokenizer", "show", folder, "Kings, the river", "--json").json
    assert shown["pattern"] == "wordpiece, lower case" and shown["vocab_size"] == 46
    assert [token["text"] for token in shown["tokens"]] == ["[CLS]", "[UNK]", "[UNK]", "the", "river", "[SEP]"]
    assert "wordpiece" in journey("tokenizer", "show", folder).out


def test_the_catalog_model_generates_nothing(empty_home: Path, journey: Journey) -> None:
    """Said before anything is pulled."""
    for command in ("generate", "chat"):
        outcome = journey(command, "all-minilm-l6-v2", "Hi")
        assert outcome.code == 2 and "journey embed all-minilm-l6-v2 TEXT" in outcome.err
    assert not empty_home.exists()
