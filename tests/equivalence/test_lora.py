"""LoRA, rsLoRA and DoRA are peft's: outputs, gradients, merged weights; and each opens the other's files."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_journey.checkpoint.model_folder import load_decoder, save_model
from llm_journey.core.errors import BadInputError
from llm_journey.finetuning.config import LoraConfig
from llm_journey.finetuning.lora import (
    LoraEmbedding,
    activate,
    adapted_layers,
    adapter_names,
    disabled,
    inject,
    merge,
    remove,
    unmerge,
)
from llm_journey.finetuning.peft_format import load_adapter, module_name, save_adapter
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

CONFIG = TransformerConfig(
    vocab_size=96, width=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp="swiglu", context=32, tied_embeddings=False
)
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "all": {"targets": ("all-linear", "head", "embed"), "rank": 3, "alpha": 5.0},
    "two": {"targets": ("q", "blocks.1.mlp.*"), "rank": 2, "alpha": 7.0},
    "rsLoRA": {"rslora": True, "rank": 6},
    "DoRA": {"dora": True},
    "DoRA and head": {"dora": True, "rslora": True, "targets": ("*.v", "head")},
}
IDS_BT = torch.arange(40).view(2, 20) * 7 % 96


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A random model of the llama family."""
    torch.manual_seed(3)
    model = Decoder(dataclasses.replace(CONFIG, tied_embeddings=request.param))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


def adapted(folder: Path, tmp_path: Path, **settings: Any) -> tuple[Decoder, LoraConfig, Path]:
    """A model with an adapter of random numbers, and the adapter's folder."""
    model, _ = load_decoder(folder)
    if model.head is None:
        settings["targets"] = tuple(each for each in settings.get("targets", ("all-linear",)) if each != "head")
    config = LoraConfig(**settings)
    inject(model, config)
    randomize(model)
    save_adapter(model, tmp_path / "adapter", config, base=str(folder))
    return model, config, tmp_path / "adapter"


def randomize(model: Decoder, seed: int = 5) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)


def theirs(folder: Path, adapter: Path) -> Any:
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(plain, adapter, is_trainable=True)


def loss(logits_btv: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits_btv[:, :-1].flatten(0, 1), IDS_BT[:, 1:].flatten())


def gradients(model: Decoder) -> dict[str, Tensor]:
    """Of each trained parameter, under peft's name and in its form."""
    found = {}
    for path, layer in adapted_layers(model):
        table = isinstance(layer, LoraEmbedding)
        names = {"a_rk": "lora_A.weight", "b_nr": "lora_B.weight", "magnitude_n": "lora_magnitude_vector.weight"}
        names = {"a_rk": "lora_embedding_B", "b_nr": "lora_embedding_A"} if table else names
        for key, parameter in layer.adapters["default"].named_parameters():
            name = f"{module_name(model.config, path)}.{names[key]}"
            found[name] = parameter.grad.T if table else parameter.grad
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients(kind: str, folder: Path, tmp_path: Path) -> None:
    model, _, adapter = adapted(folder, tmp_path, **KINDS[kind])
    reference = theirs(folder, adapter)
    logits_btv, expected_btv = model(IDS_BT), reference(IDS_BT).logits
    assert (logits_btv - expected_btv).abs().max() < 2e-5
    assert (logits_btv - load_decoder(folder)[0](IDS_BT)).abs().max() > 1e-2  # the adapter does something
    loss(logits_btv).backward()
    loss(expected_btv).backward()
    found = {
        name.replace(".default", "").removeprefix("base_model.model."): parameter.grad
        for name, parameter in reference.named_parameters()
        if parameter.requires_grad
    }
    ours = gradients(model)
    assert ours.keys() == found.keys()
    for name, gradient in ours.items():
        assert torch.allclose(gradient, found[name], atol=1e-6, rtol=1e-4), name
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_and_logits(kind: str, folder: Path, tmp_path: Path) -> None:
    """unsloth#5410: a merged model spoke garbage. Merged = adapted, tied embeddings included."""
    model, _, adapter = adapted(folder, tmp_path, **KINDS[kind])
    expected_btv = model(IDS_BT)
    merge(model)
    assert (model(IDS_BT) - expected_btv).abs().max() < 2e-5
    unmerge(model)
    assert torch.equal(model(IDS_BT), expected_btv)
    remove(model, merged=True)
    assert not adapter_names(model)
    assert (model(IDS_BT) - expected_btv).abs().max() < 2e-5
    save_model(model, tmp_path / "merged")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert (again(IDS_BT).logits - expected_btv).abs().max() < 2e-5
    if "embed" in KINDS[kind].get("targets", ()) and load_decoder(folder)[0].head is None:
        return  # there peft's merged model changes the head too
    reference = theirs(folder, adapter).merge_and_unload().state_dict()
    for name, weight in again.state_dict().items():
        assert torch.allclose(weight, reference[name], atol=1e-6), name


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"patterns": True}, {"embed": True}]
)
def test_what_peft_writes_is_read(settings: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    more: dict[str, Any] = {"target_modules": "all-linear", **settings}
    if more.pop("patterns", False):
        more |= {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r".*\.1\.mlp\.(up|down)_proj": 3, "o_proj": 9}}
    if more.pop("embed", False):
        more["target_modules"] = ["embed_tokens", "v_proj"]
    reference = peft.get_peft_model(plain, peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **more))
    for name, parameter in reference.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    reference.save_pretrained(tmp_path / "theirs")
    model, _ = load_decoder(folder)
    load_adapter(model, tmp_path / "theirs")
    assert (model(IDS_BT) - reference(IDS_BT).logits).abs().max() < 2e-5


def test_an_untrained_adapter_changes_nothing_and_dropout_is_for_training(folder: Path) -> None:
    model, _ = load_decoder(folder)
    expected_btv = model(IDS_BT)
    inject(model, LoraConfig(dropout=0.5, targets=("all-linear", "embed")))
    assert torch.equal(model(IDS_BT), expected_btv)
    randomize(model)
    assert torch.equal(model(IDS_BT), model(IDS_BT))
    model.train()
    assert not torch.equal(model(IDS_BT), model(IDS_BT))


def test_several_adapters_are_switched_added_and_left_out(folder: Path, tmp_path: Path) -> None:
    model, _ = load_decoder(folder)
    plain_btv = model(IDS_BT)
    made: dict[str, Tensor] = {}
    for name, settings in {"one": {}, "other": {"rank": 3, "targets": ("up", "o")}}.items():
        inject(model, LoraConfig(**settings), name)
        randomize(model, seed=len(made))
        activate(model, name)
        made[name] = model(IDS_BT)
    activate(model, "one")
    assert not torch.equal(model(IDS_BT), made["other"]) and adapter_names(model) == ["one", "other"]
    activate(model, "one", "other")
    both_btv = model(IDS_BT)
    assert not torch.allclose(both_btv, made["other"])
    with disabled(model):
        assert torch.equal(model(IDS_BT), plain_btv)
    assert torch.equal(model(IDS_BT), both_btv)
    merge(model)
    assert (model(IDS_BT) - both_btv).abs().max() < 2e-5
    unmerge(model)
    activate(model, "other")
    assert torch.equal(model(IDS_BT), made["other"])
    remove(model, merged=False)
    assert torch.equal(model(IDS_BT), plain_btv) and not list(adapted_layers(model))


def broken(adapter: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Tensor]]]:
    from safetensors.torch import load_file

    from llm_journey.core.files import read_json

    values, tensors = read_json(adapter / "adapter_config.json"), load_file(adapter / "adapter_model.safetensors")
    name = next(iter(tensors))
    yield "is not followed", values | {"bias": "all"}, tensors
    yield "changed the model.s own matrices too", values | {"init_lora_weights": "pissa_niter_4"}, tensors
    yield "changed the model.s own matrices too", values | {"init_lora_weights": "olora"}, tensors
    yield "only low-rank adapters", values | {"peft_type": "PREFIX_TUNING"}, tensors
    yield "is not followed", values | {"modules_to_save": ["lm_head"]}, tensors
    yield "use_dora is True", values | {"use_dora": True}, tensors
    yield "alpha", values | {"lora_alpha": -1}, tensors
    yield "alpha", values | {"lora_alpha": "x"}, tensors
    yield "the rank of .* is 5, its factors have 8", values | {"r": 5}, tensors
    yield "timed out", values | {"alpha_pattern": {r"((\w|.)*)*\s": 3}}, tensors
    yield "pattern '\\[': unterminated", values | {"alpha_pattern": {"[": 3}}, tensors
    yield "must map at most 1000 patterns", values | {"rank_pattern": [1]}, tensors
    yield "no finite floating point", values, tensors | {name: tensors[name] * float("nan")}
    yield "no finite floating point", values, tensors | {name: tensors[name].long()}
    yield "a factor is missing", values, {key: value for key, value in tensors.items() if key != name}
    yield "belongs to no matrix", values, tensors | {"base_model.model.x.lora_A.weight": tensors[name].clone()}
    yield "belongs to another model", values, tensors | {name: tensors[name][:, :-1].contiguous()}
    yield "belongs to another model", values, tensors | {name: tensors[name].flatten()}
    other = torch.zeros(96, 32)
    yield "another model was adapted", values, tensors | {"base_model.model.model.embed_tokens.weight": other}
    yield "no tensor", values, {}


def test_wrong_files_are_refused_and_the_model_stays_as_it_was(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from llm_journey.core.files import write_json

    _, _, adapter = adapted(folder, tmp_path)
    for number, (message, values, tensors) in enumerate(broken(adapter)):
        other = tmp_path / f"broken-{number}"
        other.mkdir()
        write_json(other / "adapter_config.json", values)
        save_file(tensors, other / "adapter_model.safetensors")
        model, _ = load_decoder(folder)
        with pytest.raises(BadInputError, match=message):
            load_adapter(model, other)
        assert not adapter_names(model)
    with pytest.raises(BadInputError, match="no such adapter folder"):
        load_adapter(load_decoder(folder)[0], tmp_path / "nowhere")


def test_targets_that_name_nothing_and_names_that_are_taken(folder: Path) -> None:
    model, _ = load_decoder(folder)
    with pytest.raises(BadInputError, match=r"'attn\.c' names no matrix of this model; there are down, embed, gate, "):
        inject(model, LoraConfig(targets=("attn.c",)))
    inject(model, LoraConfig())
    with pytest.raises(BadInputError, match="has an adapter called 'default' already"):
        inject(model, LoraConfig())
    with pytest.raises(BadInputError, match="no adapter called 'x'; it has default"):
        activate(model, "x")
    with pytest.raises(BadInputError, match="DoRA is for linear layers"):
        inject(load_decoder(folder)[0], LoraConfig(dora=True, targets=("embed",)))
