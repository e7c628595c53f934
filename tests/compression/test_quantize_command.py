"""journey quantize: every method gives a folder that the other commands take, with a certificate that was measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import llm_journey
from command_line import Journey
from llm_journey.app import quantize
from llm_journey.app.language_model import LanguageModel, open_model
from llm_journey.app.quantize import METHODS, QuantizeConfig, quantize_to_folder
from llm_journey.checkpoint.model_folder import load_decoder, save_model
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.evaluation.agreement import compare_logits
from llm_journey.parity.random_models import random_decoder
from llm_journey.quantization.layers import dequantize_model
from llm_journey.tokenizer import TokenizerConfig
from llm_journey.tokenizer.train import train_tokenizer


@pytest.fixture(scope="module")
def model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder that 32 divides, with a tokenizer of the corpus."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(corpus.iterdir())]
    tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=300), processes=1)
    decoder = random_decoder(
        scale=0.1, vocab_size=tokenizer.vocab_size, width=64, mlp_width=128, num_heads=2, context=64, qk_norm=True
    )
    folder = tmp_path_factory.mktemp("models") / "small"
    save_model(decoder, folder, tokenizer=tokenizer, generation={"temperature": 0.0, "eos_token_id": [0, 7]})
    return folder


@pytest.fixture
def at_home(empty_home: Path) -> Path:
    return empty_home


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_folder_that_other_commands_take(
    method: str, model: Path, corpus: Path, at_home: Path, tmp_path: Path, journey: Journey
) -> None:
    out = tmp_path / "out"
    done = journey("quantize", model, "--method", method, "--text", corpus, "--out", out, "--json")
    assert done.code == 0, done.err
    certificate = json.loads(done.out)["certificate"]
    assert certificate == json.loads((out / "certificate.json").read_text())
    # The figures again, by another route: the folder's own codes as plain weights, on the texts of the certificate.
    source, opened = open_model(str(model)), open_model(str(out))
    windows = quantize.Texts(source, str(corpus), quantize.Observer()).measured_bt
    assert certificate["positions"] == windows.numel() >= 256
    plain, _ = load_decoder(out)
    if method != "dynamic-int8":  # whose activations are rounded too
        dequantize_model(plain)
    with torch.inference_mode():
        found = compare_logits((source.decoder(ids[None])[0], plain(ids[None])[0]) for ids in windows)
    assert certificate["mean_kl"] == pytest.approx(found.mean_kl, rel=1e-3)
    assert certificate["greedy_agreement"] == pytest.approx(found.greedy_agreement)
    assert 0 < certificate["mean_kl"] < certificate["bounds"]["mean_kl"]
    assert certificate["bytes"] == (out / "model.safetensors").stat().st_size
    assert certificate["bits_per_weight"] < 9
    text = " ".join((out / "README.md").read_text().split())
    assert f"{certificate['perplexity']:.3f}" in text
    # The others' commands.
    shown = json.loads(journey("models", "show", out, "--json").out)
    assert shown["parameters"] == sum(value.numel() for value in source.decoder.parameters())
    assert shown["config"]["quantized"] == certificate["scheme"]
    written = json.loads(journey("generate", out, "The river", "--set", "max_new_tokens=5", "--json").out)
    assert written["tokens"] == 5 or written["finish_reason"] == "stop"
    assert journey("inspect", out, "The river", "--json").code == 0
    assert opened.stop_ids == source.stop_ids
    assert opened.sampling({}).temperature == 0.0


def test_python_opens_it_too(model: Path, corpus: Path, at_home: Path, tmp_path: Path) -> None:
    quantize_to_folder(str(model), tmp_path / "out", QuantizeConfig(method="int4", text=str(corpus)))
    opened = llm_journey.load(tmp_path / "out")
    assert isinstance(opened, LanguageModel)
    assert opened.generate("The river", max_new_tokens=3)


@pytest.mark.parametrize("arguments", [("gguf", "--type", "f16"), ("hf",)], ids=["gguf", "hf"])
def test_exports_are_what_the_codes_say(
    arguments: tuple[str, ...], model: Path, corpus: Path, at_home: Path, tmp_path: Path, journey: Journey
) -> None:
    """Dequantized, which is said: beside the folder's own logits, an export differs by its own rounding alone."""
    quantize_to_folder(str(model), tmp_path / "codes", QuantizeConfig(method="nf4", text=str(corpus)))
    done = journey("export", tmp_path / "codes", "--to", *arguments, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "quantized; " in done.err
    codes, exported = open_model(str(tmp_path / "codes")), open_model(str(tmp_path / "out"))
    ids_bt = torch.tensor([codes.prompt_ids("The old river by the stone house")])
    with torch.inference_mode():
        wanted, found = codes.decoder(ids_bt), exported.decoder(ids_bt)
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=5e-3 if arguments[0] == "gguf" else 1e-4)


def test_gptq_is_fitted_to_the_training_part_alone(
    model: Path, corpus: Path, at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the codes are measured on is no window that they were fitted to."""
    from llm_journey.compression import calibration

    seen: list[torch.Tensor] = []
    fit = calibration.quantize_by_gptq

    def watched(decoder: Any, windows_bt: torch.Tensor, *rest: Any, **options: Any) -> None:
        seen.append(windows_bt)
        fit(decoder, windows_bt, *rest, **options)

    monkeypatch.setattr(calibration, "quantize_by_gptq", watched)
    config = QuantizeConfig(method="gptq", bits=3, text=str(corpus), max_kl=1)
    found = quantize_to_folder(str(model), tmp_path / "out", config)
    texts = quantize.Texts(open_model(str(model)), str(corpus), quantize.Observer())
    assert torch.equal(seen[0], texts.calibration_bt)
    assert found.certificate["calibration_tokens"] == seen[0].numel()
    fitted = {tuple(row) for row in seen[0].unfold(1, 16, 1).flatten(0, 1).tolist()}
    measured = {tuple(row) for row in texts.measured_bt.unfold(1, 16, 1).flatten(0, 1).tolist()}
    assert not fitted & measured


def test_over_its_bound_nothing_is_left(
    model: Path, corpus: Path, at_home: Path, tmp_path: Path, journey: Journey
) -> None:
    out = tmp_path / "out"
    arguments = ("quantize", model, "--method", "int4", "--bits", "3", "--text", corpus, "--out", out)
    failed = journey(*arguments, "--max-kl", "0.0001")
    assert failed.code == 1
    assert "over the bound 0.0001" in failed.err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # the home, no folder nor half of one
    assert journey(*arguments, "--max-kl", "1").code == 0


def test_kernels_that_differ_are_refused(
    model: Path, corpus: Path, at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """optimum#1755: what is written may be right, and what answers may not be."""
    from llm_journey.quantization.products import Int4Product

    right = Int4Product.__call__
    monkeypatch.setattr(Int4Product, "__call__", lambda self, x_nk: right(self, x_nk).roll(1, -1))
    with pytest.raises(JourneyError, match="the fast kernels differ from the readable form"):
        quantize_to_folder(str(model), tmp_path / "out", QuantizeConfig(method="int4", text=str(corpus)))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # the home, no folder nor half of one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "fp4"], "int8"),
        (["--method", "nf4", "--bits", "3"], "nf4 has none of them"),
        (["--method", "int8", "--symmetric"], "int8 has none of them"),
        (["--method", "int4", "--act-order"], "gptq's"),
        (["--method", "int4", "--bits", "2"], "bits must be one of 3, 4"),
        (["--method", "int4", "--group", "48"], "group_size must be one of 32, 64, 128"),
        (["--method", "int4", "--max-kl", "-1"], "positive number of nats"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    arguments: list[str], message: str, model: Path, corpus: Path, at_home: Path, tmp_path: Path, journey: Journey
) -> None:
    failed = journey("quantize", model, *arguments, "--text", corpus, "--out", tmp_path / "out")
    assert failed.code == 2
    assert message in failed.err
    assert not (tmp_path / "out").exists()


def test_a_quantized_model_is_not_quantized_again(model: Path, corpus: Path, at_home: Path, tmp_path: Path) -> None:
    config = QuantizeConfig(method="int8", text=str(corpus))
    quantize_to_folder(str(model), tmp_path / "once", config)
    with pytest.raises(BadInputError, match="quantized already"):
        quantize_to_folder(str(tmp_path / "once"), tmp_path / "twice", config)


def test_too_little_text_is_refused(model: Path, at_home: Path, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("The river runs by the old stone house.\n\nA second text.\n", encoding="utf-8")
    with pytest.raises(BadInputError, match="give more text"):
        quantize_to_folder(str(model), tmp_path / "out", QuantizeConfig(method="int8", text=str(path)))
