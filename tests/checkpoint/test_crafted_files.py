"""Files made to take more than they hold: small on disk, large in memory. Each is refused by name, at once."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gguf_files import LLAMA as GGUF_LLAMA
from gguf_files import random_model, tiny_tokenizer
from llm_journey.app.find_models import find_model
from llm_journey.checkpoint.gguf.model import read_gguf, write_gguf
from llm_journey.checkpoint.model_folder import load_model, save_model
from llm_journey.checkpoint.shapes import check_tables
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig
from llm_journey.parity.random_models import LLAMA, random_decoder
from llm_journey.tokenizer.io import read_object


@pytest.mark.parametrize("positions", ["rope", "sinusoidal", "sinusoidal_halves"])
def test_tables_of_a_long_context_on_a_small_model_are_refused(positions: Any) -> None:
    config = TransformerConfig(vocab_size=8, width=64, num_heads=1, num_layers=1, context=1 << 20, positions=positions)
    with pytest.raises(BadInputError, match="context of 1048576 positions, whose tables take"):
        check_tables(config, "x")


def test_a_gguf_that_claims_a_long_context_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    write_gguf(random_model(**GGUF_LLAMA), tiny_tokenizer(), path)
    data = path.read_bytes()
    key = b"llama.context_length" + struct.pack("<I", 4)  # a 32-bit number without a sign follows
    path.write_bytes(data.replace(key + struct.pack("<I", 48), key + struct.pack("<I", 1 << 20)))
    assert path.read_bytes() != data
    with pytest.raises(BadInputError, match="context of 1048576 positions"):
        read_gguf(path)


def folder(tmp_path: Path) -> Path:
    save_model(random_decoder(**LLAMA), tmp_path / "model")
    return tmp_path / "model"


def test_a_config_of_ten_megabytes_is_refused_unread(tmp_path: Path) -> None:
    path = folder(tmp_path) / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"extra": [[]] * 2_500_000}))
    with pytest.raises(BadInputError, match=r"config\.json: larger than 1048576 bytes"):
        load_model(path.parent)


def test_more_layers_than_the_tensors_can_make_are_refused(tmp_path: Path) -> None:
    directory = folder(tmp_path)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 9}))
    with pytest.raises(BadInputError, match="9 layers"):
        load_model(directory)


def test_a_header_of_too_many_tensors_is_refused(tmp_path: Path) -> None:
    directory = folder(tmp_path)
    save_file({f"t{index}": torch.zeros(0) for index in range(20_000)}, directory / "model.safetensors")
    with pytest.raises(BadInputError, match="20000 tensors; at most 16384 can be"):
        load_model(directory)
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(BadInputError, match="its header claims"):
        load_model(directory)


def test_a_tokenizer_of_nothing_but_lists_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"a": [[]] * 800_000}))
    with pytest.raises(BadInputError, match="more values than any vocabulary"):
        read_object(path)


def test_a_pickle_named_by_its_path_is_refused_as_one(tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(b"cos")
    with pytest.raises(BadInputError, match=r"evil\.pt: a pickle, which runs code"):
        find_model(str(tmp_path / "evil.pt"))
