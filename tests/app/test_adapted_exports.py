"""An adapted model, merged, says the same in every form that it is exported in."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from gguf_files import random_model, tiny_tokenizer
from llm_journey.app.adapters import merge_adapter
from llm_journey.app.exports import export_model
from llm_journey.checkpoint.decoders import read_decoder
from llm_journey.checkpoint.model_folder import save_model
from llm_journey.compression.torch_graphs import open_torchscript
from llm_journey.finetuning.config import LoraConfig
from llm_journey.finetuning.lora import adapted_layers, inject
from llm_journey.finetuning.peft_format import save_adapter
from llm_journey.model.decoder import Decoder

_IDS = torch.arange(2, 40)[None]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, Path]:
    """A model with an adapter that changes it, and the folder that the two were merged into."""
    folder = tmp_path_factory.mktemp("adapted")
    save_model(random_model(tied_embeddings=True), folder / "base", tokenizer=tiny_tokenizer())
    model, config = read_decoder(folder / "base").decoder, LoraConfig(rank=4, dora=True)
    inject(model, config)
    for _, layer in adapted_layers(model):
        torch.nn.init.normal_(layer.adapter("default").b_nr, std=0.1)
    save_adapter(model, folder / "adapter", config, base="base")
    merge_adapter(str(folder / "base"), folder / "adapter", folder / "merged")
    return model, folder / "merged"


@pytest.mark.parametrize(("to", "bound"), [("hf", 1e-4), ("gguf", 2e-2), ("onnx", 1e-3), ("torchscript", 1e-3)])
def test_every_form_says_what_the_adapted_model_says(
    to: str, bound: float, adapted: tuple[Decoder, Path], tmp_path: Path
) -> None:
    """gguf in f16, whose rounding is the bound; the others in float32."""
    model, merged = adapted
    done = export_model(str(merged), to, tmp_path / "new")
    with torch.no_grad():
        expected = model(_IDS)
        found = _logits(to, done.file)
        before = read_decoder(merged.parent / "base").decoder(_IDS)
    assert float((expected - before).abs().max()) > 10 * bound  # the adapter does something
    torch.testing.assert_close(found, expected, atol=bound, rtol=0)


def _logits(to: str, file: Path) -> Tensor:
    match to:
        case "onnx":
            from llm_journey.compression.onnx_files import OnnxDecoder

            peer = OnnxDecoder(file)
            peer.reset(1)
            return torch.from_numpy(peer.read(_IDS.numpy()))
        case "torchscript":
            step = open_torchscript(file)
            logits, _ = step(_IDS, torch.zeros(2, 2, 1, 4, 0, 16))
            return logits
    return read_decoder(file if to == "gguf" else file.parent).decoder(_IDS)
