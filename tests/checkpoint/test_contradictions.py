"""Folders that contradict themselves: a key twice, a tensor twice, a tokenizer of another model. Refused by name."""

import json
import re
import struct
from pathlib import Path

import pytest
from fuzzed_kinds import embedder_folders
from small_decoders import GPT2, QWEN3, small_decoder

from llm_journey.app.embedder import open_embedder
from llm_journey.app.language_model import open_model
from llm_journey.checkpoint.model_folder import load_model, save_model
from llm_journey.core.errors import BadInputError
from llm_journey.tokenizer import Tokenizer, TokenizerConfig
from llm_journey.tokenizer import io as tokenizer_io
from llm_journey.tokenizer.train import train_tokenizer


def _tokenizer(vocab_size: int) -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat"] * 4, TokenizerConfig(vocab_size=vocab_size), processes=1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("model"), _tokenizer(270)
    save_model(small_decoder(vocab_size=270, **QWEN3), folder, tokenizer=tokenizer)
    return folder


def _copied(saved: Path, folder: Path, name: str, data: bytes) -> Path:
    """The saved folder with another content of one file."""
    for path in saved.iterdir():
        (folder / path.name).write_bytes(data if path.name == name else path.read_bytes())
    return folder


def _doubled(path: Path, key: str) -> bytes:
    """A JSON file in which the object that holds `key` holds it twice, the second time with the same value."""
    text = json.dumps(json.loads(path.read_text(encoding="utf-8")))
    found = re.search(rf'"{re.escape(key)}": ("[^"]*"|[^,}}\]]+)', text)
    assert found is not None
    return (text[: found.start()] + found.group() + ", " + text[found.start() :]).encode()


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("config.json", "hidden_size"),
        ("config.json", "model_type"),
        ("generation_config.json", "eos_token_id"),
        ("tokenizer.json", "at"),
        ("tokenizer.json", "ignore_merges"),
        ("tokenizer_config.json", "eos_token"),
    ],
)
def test_a_key_that_stands_twice(name: str, key: str, saved: Path, tmp_path: Path) -> None:
    open_model(str(saved))
    folder = _copied(saved, tmp_path, name, _doubled(saved / name, key))
    with pytest.raises(BadInputError, match=rf"{name}: not valid JSON \(key '{key}' stands twice\)"):
        open_model(str(folder))


@pytest.mark.parametrize(
    ("name", "key"), [("modules.json", "type"), ("1_Pooling/config.json", "pooling_mode_mean_tokens")]
)
def test_a_key_that_stands_twice_beside_an_embedder(name: str, key: str, tmp_path: Path) -> None:
    [folder] = embedder_folders(tmp_path)
    (folder / name).write_bytes(_doubled(folder / name, key))
    with pytest.raises(BadInputError, match=rf"{name}: .*JSON \(key '{key}' stands twice\)"):
        open_embedder(str(folder))


def test_a_tensor_that_stands_twice(saved: Path, tmp_path: Path) -> None:
    """The safetensors library takes the last of two entries that name the same bytes."""
    whole = (saved / "model.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    name = "model.norm.weight"
    entry = f'"{name}": {json.dumps(header[name])}'
    double = (json.dumps(header)[:-1] + f", {entry}}}").encode()
    data = struct.pack("<Q", len(double)) + double + whole[8 + length :]
    with pytest.raises(
        BadInputError, match=r"model\.safetensors: not a whole .* \(key 'model\.norm\.weight' stands twice"
    ):
        load_model(_copied(saved, tmp_path, "model.safetensors", data))


def test_a_tokenizer_with_more_ids_than_the_model_embeds(tmp_path: Path) -> None:
    save_model(small_decoder(vocab_size=270, **GPT2), tmp_path)
    tokenizer_io.save(_tokenizer(271), tmp_path)
    with pytest.raises(BadInputError, match="the tokenizer has 271 ids, the model embeds only 270; they do not belong"):
        load_model(tmp_path)
