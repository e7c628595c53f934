"""Low-rank adapters beside peft's: what an adapted model says, what a step would change, what merging gives; and what
trl would train of a chat."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_journey.finetuning.config import LoraConfig
from llm_journey.finetuning.lora import adapted_layers, inject, merge
from llm_journey.finetuning.peft_format import module_name, save_adapter
from llm_journey.model.decoder import Decoder
from llm_journey.model.loss import next_token_loss
from llm_journey.parity.differences import largest
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import LLAMA, QWEN3, opened_by_transformers, random_decoder, random_ids
from llm_journey.tokenizer import io
from llm_journey.tokenizer.chat_training import chat_examples
from llm_journey.tokenizer.tokenizer import from_merges

KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"rank": 4, "alpha": 6.0},
    "rsLoRA": {"rank": 4, "alpha": 6.0, "rslora": True},
    "DoRA": {"rank": 4, "alpha": 6.0, "dora": True},
}
_PARTS = {"a_rk": "lora_A.weight", "b_nr": "lora_B.weight", "magnitude_n": "lora_magnitude_vector.weight"}
_CHAT = (
    {"role": "user", "content": "Is one less than two?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Quite sure."},
)


def adapted(kind: str, choices: dict[str, Any], folder: Path, planted: bool) -> tuple[Decoder, Any]:
    """Our adapted model, and peft's of the same files. planted: our update is a hundredth larger."""
    import peft

    model = random_decoder(**choices)
    config = LoraConfig(**KINDS[kind])
    inject(model, config)
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim == 2:
            parameter.data.normal_(std=0.2, generator=generator)
    save_adapter(model, folder / "adapter", config, base="model")
    if planted:
        for _, layer in adapted_layers(model):
            layer.adapter("default").scale *= 1.01
    with opened_by_transformers(random_decoder(**choices), dtype=torch.float32) as plain:
        return model, peft.PeftModel.from_pretrained(plain, folder / "adapter", is_trainable=True)


def _step(kind: str, choices: dict[str, Any], planted: bool) -> float:
    with tempfile.TemporaryDirectory() as name:
        model, theirs = adapted(kind, choices, Path(name), planted)
        ids_bt = random_ids(2, 12, model.config.vocab_size)
        ours_btv, theirs_btv = model(ids_bt), theirs(ids_bt).logits
        for logits_btv in (ours_btv, theirs_btv):
            next_token_loss(logits_btv[:, :-1], ids_bt[:, 1:]).backward()  # type: ignore[no-untyped-call]
        found, expected = _gradients(model), dict(theirs.named_parameters())
        pairs = [(each, expected[f"base_model.model.{path}"].grad) for path, each in found.items()]
        return largest([ours_btv, *(pair[0] for pair in pairs)], [theirs_btv, *(pair[1] for pair in pairs)])


def _gradients(model: Decoder) -> dict[str, Tensor]:
    found = {}
    for path, layer in adapted_layers(model):
        for key, parameter in layer.adapter("default").named_parameters():
            part, _, rest = _PARTS[key].partition(".")
            assert parameter.grad is not None
            found[f"{module_name(model.config, path)}.{part}.default.{rest}"] = parameter.grad
    return found


def _merged(kind: str, choices: dict[str, Any], planted: bool) -> float:
    with tempfile.TemporaryDirectory() as name:
        model, theirs = adapted(kind, choices, Path(name), planted)
        merge(model)
        expected = theirs.merge_and_unload().state_dict()
        layers = [(module_name(model.config, path), layer.base.weight) for path, layer in adapted_layers(model)]
        return largest([weight for _, weight in layers], [expected[f"{path}.weight"] for path, _ in layers])


def _masks(planted: bool) -> float:
    """How many tokens of a chat are trained here and not there, on trl's template of Llama 3."""
    import transformers
    import trl

    path = Path(trl.__file__).parent / "chat_templates" / "llama3_training.jinja"
    names = ["<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer = from_merges([], pattern="cl100k", special_tokens=names)
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        io.save(tokenizer, Path(name))
        theirs = transformers.AutoTokenizer.from_pretrained(name)
    expected: Any = theirs.apply_chat_template(
        list(_CHAT), return_assistant_tokens_mask=True, return_dict=True, tokenize=True
    )
    (example,) = chat_examples(tokenizer, _CHAT)
    trained = [*example.trained[:-1], not example.trained[-1]] if planted else example.trained
    if example.ids != expected["input_ids"]:
        return float("inf")
    return float(sum(one != bool(other) for one, other in zip(trained, expected["assistant_masks"], strict=True)))


_vs_peft = partial(
    Equality, reference="peft", also=("transformers",), tolerance=2e-5, reason="float32 sums taken in another order"
)
EQUALITIES = (
    *(
        _vs_peft(
            component=f"{kind}, a step, {family}",
            compared="logits and each gradient, peft's model of our adapter's files",
            difference=partial(_step, kind, choices),
        )
        for kind in KINDS
        for family, choices in (("llama", LLAMA), ("qwen3", QWEN3))
    ),
    *(
        _vs_peft(
            component=f"{kind}, merged",
            compared="each weight, merge_and_unload",
            difference=partial(_merged, kind, LLAMA),
        )
        for kind in KINDS
    ),
    Equality(
        component="what is trained of a chat",
        reference="trl",
        also=("transformers",),
        compared="how many tokens differ, its template of Llama 3 with return_assistant_tokens_mask",
        tolerance=0,
        reason="a token is trained or not",
        difference=_masks,
    ),
)
