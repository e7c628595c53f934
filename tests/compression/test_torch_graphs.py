"""torch.export and TorchScript: the function in the file beside the model, at sizes that it was not made with."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_journey.compression.torch_graphs import (
    DecoderStep,
    Step,
    open_torch_export,
    open_torchscript,
    write_torch_export,
    write_torchscript,
)
from llm_journey.model.decoder import Decoder
from llm_journey.parity.random_models import GPT2, LLAMA, QWEN3, random_decoder, random_ids

CHOICES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": QWEN3,
    "gpt2": GPT2,
    "window": {"sliding_window": 4},
    "post-norm": {"norm_placement": "post", "norm": "layernorm", "positions": "sinusoidal", "mlp": "relu2"},
}


def check(decoder: Decoder, step: Step) -> None:
    """Whole texts, and texts in three pieces, the second of them a single token."""
    ids_bt, empty = random_ids(4, 20, 97), DecoderStep(decoder).empty
    with torch.inference_mode():
        expected = decoder(ids_bt)
        torch.testing.assert_close(step(ids_bt, empty(4))[0], expected, rtol=0, atol=1e-5)
        past, found = empty(4), []
        for piece in ids_bt.split((9, 1, 10), dim=1):
            logits, past = step(piece, past)
            found.append(logits)
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=0, atol=1e-5)
    assert past.shape == empty(4, 20).shape


@pytest.mark.parametrize("name", CHOICES)
def test_torchscript_computes_what_the_model_does(name: str, tmp_path: Path) -> None:
    decoder = random_decoder(**CHOICES[name])
    before = [block.attention.attend for block in decoder.blocks]  # type: ignore[union-attr]
    write_torchscript(decoder, tmp_path / "model.ts")
    assert [block.attention.attend for block in decoder.blocks] == before  # type: ignore[union-attr]
    check(decoder, open_torchscript(tmp_path / "model.ts"))


@pytest.mark.parametrize("name", ["llama", pytest.param("window", marks=pytest.mark.full)])
def test_torch_export_computes_what_the_model_does(name: str, tmp_path: Path) -> None:
    decoder = random_decoder(num_layers=2, **CHOICES[name])
    write_torch_export(decoder, tmp_path / "model.pt2")
    check(decoder, open_torch_export(tmp_path / "model.pt2"))


@pytest.mark.full
@pytest.mark.parametrize(("write", "load"), [(write_torchscript, "torch.jit.load(sys.argv[1])")])
def test_a_file_needs_no_package_of_ours(write: Callable[[Decoder, Path], None], load: str, tmp_path: Path) -> None:
    decoder = random_decoder(num_layers=1)
    write(decoder, tmp_path / "model")
    code = (
        f"import sys, torch\nsys.modules['llm_journey'] = None\nstep = {load}\n"
        "logits, past = step(torch.tensor([[5, 6, 7]]), torch.zeros(1, 2, 1, 4, 0, 8))\n"
        "print(repr(float(logits[0, -1].sum())))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True)
    with torch.inference_mode():
        assert float(done.stdout) == pytest.approx(float(decoder(torch.tensor([[5, 6, 7]]))[0, -1].sum()), abs=1e-3), (
            done.stderr
        )
