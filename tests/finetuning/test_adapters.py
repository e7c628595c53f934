"""`journey adapters`: what a folder holds; a merged model that is the adapted one, for every other command."""

from pathlib import Path

import pytest
import torch

from command_line import Journey
from llm_journey.app.language_model import open_model
from llm_journey.checkpoint.model_folder import load_decoder, save_model
from llm_journey.compression.onnx_files import OnnxDecoder
from llm_journey.core.files import read_json
from llm_journey.finetuning.config import LoraConfig, PromptConfig
from llm_journey.finetuning.lora import inject
from llm_journey.finetuning.peft_format import load_adapter, save_adapter
from llm_journey.finetuning.prefix import inject_prefix, write_prefix_files
from llm_journey.finetuning.prompt import inject_prompt, write_prompt_files
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.parity.random_models import random_decoder
from llm_journey.tokenizer.chat_template import DEFAULT_TEMPLATE
from llm_journey.tokenizer.tokenizer import from_merges


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tokenizer = from_merges([], pattern="gpt2", special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = DEFAULT_TEMPLATE
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, width=32, num_layers=2, num_heads=4, num_kv_heads=2, context=128
    )
    save_model(Decoder(config), tmp_path / "model", tokenizer=tokenizer)
    return tmp_path / "model"


def write_adapter(model: Path, folder: Path, **settings: object) -> Path:
    decoder, _ = load_decoder(model)
    config = LoraConfig(**settings)  # type: ignore[arg-type]
    inject(decoder, config)
    torch.manual_seed(1)
    for parameter in decoder.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(decoder, folder, config, base="mine")
    return folder


@pytest.mark.parametrize("settings", [{}, {"dora": True, "rslora": True}, {"targets": ("embed", "v")}])
def test_merged_is_adapted_in_every_form(
    settings: dict[str, object], model: Path, tmp_path: Path, journey: Journey
) -> None:
    """unsloth#5410: the merged model spoke garbage. The folder, GGUF, ONNX and the quantized folder come from one."""
    adapter = write_adapter(model, tmp_path / "adapter", **settings)
    done = journey("adapters", "merge", model, adapter, "--out", tmp_path / "merged", "--json")
    assert done.code == 0, done.err
    certificate = done.json["certificate"]
    assert certificate["largest_logit_difference"] < 1e-4 < 1e-2 < certificate["largest_change"]
    assert read_json(tmp_path / "merged" / "certificate.json") == certificate
    adapted, _ = load_decoder(model)
    load_adapter(adapted, adapter)
    ids_bt = torch.arange(3, 60)[None]
    expected_btv = adapted(ids_bt)
    assert (load_decoder(tmp_path / "merged")[0](ids_bt) - expected_btv).abs().max() < 1e-4
    assert journey("export", tmp_path / "merged", "--to", "gguf", "--out", tmp_path / "gguf").code == 0
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    of_gguf = open_model(str(file), precision="float32").decoder
    assert (of_gguf(ids_bt) - expected_btv).abs().max() < 1e-2  # float16 weights
    assert journey("export", tmp_path / "merged", "--to", "onnx", "--out", tmp_path / "onnx").code == 0
    of_onnx = torch.from_numpy(OnnxDecoder(tmp_path / "onnx" / "model.onnx").read(ids_bt.numpy()))
    assert (of_onnx - expected_btv).abs().max() < 1e-3
    found = journey("generate", tmp_path / "merged", "abc", "--set", "max_new_tokens=5", "--set", "seed=1")
    assert found.code == 0 and found.out


def test_prompts_and_prefixes_are_listed_too(tmp_path: Path, journey: Journey) -> None:
    for name, inject_one, write, learned in (
        ("prompt", lambda decoder: inject_prompt(decoder, PromptConfig(tokens=3), 97), write_prompt_files, 3 * 32),
        ("prefix", lambda decoder: inject_prefix(decoder, PromptConfig(tokens=3)), write_prefix_files, 3 * 3 * 2 * 32),
    ):
        decoder = random_decoder()
        inject_one(decoder)
        (tmp_path / name).mkdir()
        write(decoder, tmp_path / name, base="mine")
        (found,) = journey("adapters", "list", tmp_path / name, "--json").json
        assert (found["kind"], found["base"], found["rank"], found["parameters"]) == (name, "mine", None, learned)
    assert journey("adapters", "list", tmp_path).code == 0


def test_the_list(model: Path, tmp_path: Path, journey: Journey) -> None:
    write_adapter(model, tmp_path / "outputs" / "one", rank=4)
    write_adapter(model, tmp_path / "outputs" / "two", dora=True, targets=("q",))
    done = journey("adapters", "list", tmp_path / "outputs", "--json")
    assert [(Path(each["folder"]).name, each["kind"], each["rank"], each["modules"]) for each in done.json] == [
        ("one", "LoRA", 4, 14),
        ("two", "DoRA", 8, 2),
    ]
    shown = journey("adapters", "list", tmp_path / "outputs")
    assert "mine" in shown.out and "DoRA" in shown.out
    assert "no adapter there" in journey("adapters", "list", model).err


def test_what_does_not_fit_is_refused_and_nothing_is_left(model: Path, tmp_path: Path, journey: Journey) -> None:
    adapter = write_adapter(model, tmp_path / "adapter")
    other = Decoder(TransformerConfig(vocab_size=300, width=64, num_layers=1, num_heads=4, context=64))
    save_model(other, tmp_path / "other", tokenizer=load_decoder(model)[1])
    done = journey("adapters", "merge", tmp_path / "other", adapter, "--out", tmp_path / "merged")
    assert done.code == 2 and "belongs to" in done.err and not (tmp_path / "merged").exists()
    done = journey("adapters", "merge", model, tmp_path / "nowhere", "--out", tmp_path / "merged")
    assert done.code == 2 and "no adapter there" in done.err
    done = journey("adapters", "merge", model, adapter, "--out", model)
    assert done.code == 2 and "is not empty" in done.err
    assert journey("adapters", "list", tmp_path / "nowhere").code == 2
