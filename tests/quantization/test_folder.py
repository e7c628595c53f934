"""Quantized folders: what is written comes back as it was, and a folder that lies is refused by name, cheaply."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_journey.checkpoint.model_folder import load_model, load_state, save_model
from llm_journey.core.errors import BadInputError
from llm_journey.model.kinds import Model
from llm_journey.parity.random_models import BERT, GPT2, MARIAN, QWEN3, random_ids, random_model
from llm_journey.quantization.layers import dequantize_model, quantize_model
from llm_journey.quantization.scheme import Scheme

SCHEMES = [
    Scheme(format="int8"),
    Scheme(format="dynamic-int8"),
    Scheme(),
    Scheme(bits=3, group_size=64, symmetric=True),
    Scheme(group_size=128),
    Scheme(format="nf4"),
]
SIZES: dict[str, Any] = {"width": 64, "mlp_width": 128, "num_heads": 2}


def quantized_model(scheme: Scheme, **choices: Any) -> Model:
    model = random_model(scale=0.1, **SIZES, **choices)
    quantize_model(model, scheme)
    return model


@pytest.mark.parametrize("choices", [QWEN3, GPT2, {"tied_embeddings": False}], ids=["qwen3", "gpt2", "untied"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=Scheme.describe)
def test_saved_and_opened_it_is_the_same_model(scheme: Scheme, choices: dict[str, Any], tmp_path: Path) -> None:
    model = quantized_model(scheme, **choices)
    save_model(model, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model")
    ids_bt = random_ids(2, 12, 97)
    with torch.inference_mode():
        assert torch.equal(loaded(ids_bt), model(ids_bt))
    assert not loaded.training
    # Whoever asks for the state alone gets it as a plain model has it.
    config, state = load_state(tmp_path / "model")
    dequantize_model(model)
    plain = model.state_dict()
    assert config == model.config
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in plain)


@pytest.mark.parametrize("choices", [BERT, MARIAN], ids=["bert", "marian"])
def test_other_kinds_come_back_too(choices: dict[str, Any], tmp_path: Path) -> None:
    model = quantized_model(Scheme(), **choices)
    save_model(model, tmp_path / "model")
    loaded, _ = load_model(tmp_path / "model")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_codes_are_stored_two_to_a_byte(tmp_path: Path) -> None:
    save_model(quantized_model(Scheme()), tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert tensors["blocks.0.mlp.down.codes"].shape == (64, 64)
    assert tensors["blocks.0.mlp.down.codes"].dtype == torch.uint8
    assert tensors["blocks.0.mlp.down.scale"].dtype == torch.float16
    assert tensors["embed.codes"].dtype == torch.int8
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "llm_journey",
        "format": "int4",
        "bits": 4,
        "group_size": 32,
        "symmetric": False,
    }


def test_a_half_quantized_model_is_not_saved(tmp_path: Path) -> None:
    model = random_model(scale=0.1, **SIZES)
    quantize_model(model.blocks[0], Scheme())  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="is not quantized, other layers are"):
        save_model(model, tmp_path / "model")
    mixed = random_model(scale=0.1, **SIZES)
    quantize_model(mixed.blocks[0], Scheme())  # type: ignore[arg-type]
    quantize_model(mixed, Scheme(format="nf4"))
    with pytest.raises(BadInputError, match="a folder holds one scheme"):
        save_model(mixed, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "gptq"}, "names the method 'gptq'"),
        ({"format": "fp2"}, "format"),
        ({"bits": 2}, "bits must be one of 3, 4"),
        ({"group_size": 1 << 40}, "group_size must be one of 32, 64, 128"),
        ({"group_size": 64}, "has shape"),
        ({"bits": 3}, "has shape"),
        ({"symmetric": True}, "no place for"),
        ({"format": "int8"}, "no place for"),
        ({"zeros": 1}, "zeros"),
    ],
)
def test_a_config_that_lies_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_model(quantized_model(Scheme()), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))
    with pytest.raises(BadInputError, match=message):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("blocks.1.mlp.up.codes", torch.zeros(128, 31, dtype=torch.uint8), "has shape"),
        ("blocks.1.mlp.up.codes", torch.zeros(128, 32, dtype=torch.int8), "stored as int8, not as uint8"),
        ("blocks.1.mlp.up.scale", torch.full((128, 2), torch.nan).half(), "NaN or infinity"),
        ("blocks.1.mlp.up.scale", torch.zeros(128, 2), "stored as float32, not as float16"),
        ("blocks.1.mlp.up.scale", None, "missing"),
        ("blocks.1.mlp.up.weight", torch.zeros(128, 64), "no place for"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    name: str, value: torch.Tensor | None, message: str, tmp_path: Path
) -> None:
    save_model(quantized_model(Scheme()), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    save_file(tensors, path)
    with pytest.raises(BadInputError, match=message):
        load_model(tmp_path / "model")
    if value is None or message == "has shape":
        with pytest.raises(BadInputError, match=message):
            load_state(tmp_path / "model")
