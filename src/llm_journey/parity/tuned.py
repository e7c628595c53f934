"""What fine-tuning leaves behind beside peft's own reading of it: merged models in every form that is exported exactly,
tuned prompts and prefixes."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_journey.checkpoint.gguf.model import write_gguf
from llm_journey.checkpoint.model_folder import write_model_files
from llm_journey.compression import torch_graphs
from llm_journey.compression.onnx_files import OnnxDecoder, save_onnx
from llm_journey.compression.onnx_graph import decoder_graph
from llm_journey.finetuning.config import PromptConfig
from llm_journey.finetuning.lora import remove
from llm_journey.finetuning.prefix import inject_prefix, write_prefix_files
from llm_journey.finetuning.prompt import inject_prompt, merge_prompt, write_prompt_files
from llm_journey.model.decoder import Decoder
from llm_journey.parity.adapters import adapted
from llm_journey.parity.differences import largest
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import LLAMA, opened_by_transformers, quiet, random_decoder, random_ids
from llm_journey.parity.tokens import trained

_TOKENS = 5  # of a prompt or a prefix
_SIZES: dict[str, Any] = {"width": 64, "head_width": 16, "mlp_width": 96, "num_layers": 2}


def _through_transformers(model: Decoder, folder: Path, ids_bt: Tensor, *, gguf: bool) -> Tensor:
    import transformers

    options: dict[str, Any] = {}
    if gguf:
        write_gguf(model, trained(), folder / "model.gguf", type="f16")
        options = {"gguf_file": "model.gguf"}
    else:
        write_model_files(model, folder, tokenizer=trained())
    opener: Any = transformers.AutoModelForCausalLM
    with quiet(), torch.inference_mode():
        peer = opener.from_pretrained(folder, dtype=torch.float32, local_files_only=True, **options).eval()
        logits_btv: Tensor = peer(ids_bt).logits
    return logits_btv


def _through_onnx(model: Decoder, folder: Path, ids_bt: Tensor) -> Tensor:
    save_onnx(decoder_graph(model), folder / "model.onnx")
    peer = OnnxDecoder(folder / "model.onnx", threads=1)
    peer.reset(len(ids_bt))
    return torch.from_numpy(peer.read(ids_bt.numpy()))


def _through_torch(model: Decoder, folder: Path, ids_bt: Tensor, *, script: bool) -> Tensor:
    path = folder / ("model.ts" if script else "model.pt2")
    (torch_graphs.write_torchscript if script else torch_graphs.write_torch_export)(model, path)
    step = (torch_graphs.open_torchscript if script else torch_graphs.open_torch_export)(path)
    with torch.inference_mode():
        return step(ids_bt, torch_graphs.DecoderStep(model).empty(len(ids_bt)))[0]


# Form of an export -> (what reads it, its logits, the tolerance, why).
_FORMS: dict[str, tuple[str, Callable[[Decoder, Path, Tensor], Tensor], float, str]] = {
    "a folder": ("transformers", partial(_through_transformers, gguf=False), 1e-4, "float32 sums in another order"),
    "GGUF F16": ("transformers", partial(_through_transformers, gguf=True), 2e-2, "weights have 11 bits in the file"),
    "ONNX": ("onnxruntime", _through_onnx, 1e-4, "float32 sums in another order"),
    "TorchScript": ("torch", partial(_through_torch, script=True), 1e-4, "float32 sums in another order"),
    "torch.export": ("torch", partial(_through_torch, script=False), 1e-4, "float32 sums in another order"),
}


def _merged(planted: bool, *, form: str) -> float:
    """Logits of peft's adapted model, and of ours merged and exported."""
    with tempfile.TemporaryDirectory() as name:
        choices = LLAMA | _SIZES | {"vocab_size": trained().vocab_size}
        if form == "torch.export":  # half a minute otherwise
            choices["num_layers"] = 1
        model, theirs = adapted("DoRA", choices, Path(name), planted)
        ids_bt = random_ids(2, 12, model.config.vocab_size)
        with torch.inference_mode():
            expected_btv = theirs.eval()(ids_bt).logits
        remove(model, merged=True)
        folder = Path(name) / "new"
        folder.mkdir()
        return largest(_FORMS[form][1](model.eval(), folder, ids_bt), expected_btv)


def _virtual(planted: bool, *, prefix: bool) -> float:
    """Logits behind a tuned prompt or prefix: ours of the longer text, peft's of our files and the text alone."""
    import peft

    model, rows = random_decoder(**LLAMA), 97
    if prefix:
        inject_prefix(model, PromptConfig(tokens=_TOKENS))
    else:
        inject_prompt(model, PromptConfig(tokens=_TOKENS), rows)
    (learned,) = (parameter for parameter in model.parameters() if parameter.requires_grad)
    learned.data.normal_(generator=torch.Generator().manual_seed(2))
    ids_bt = random_ids(2, 12, rows)
    with tempfile.TemporaryDirectory() as name:
        (write_prefix_files if prefix else write_prompt_files)(model, Path(name), base="model")
        with opened_by_transformers(random_decoder(**LLAMA), dtype=torch.float32) as plain:
            theirs = peft.PeftModel.from_pretrained(plain, name).eval()
    if planted:
        learned.data *= 1.01
    if not prefix:
        merge_prompt(model)
    long_bt = torch.cat([torch.arange(rows, rows + _TOKENS).expand(2, -1), ids_bt], dim=1)
    with torch.inference_mode(), quiet():
        return largest(model(long_bt)[:, -1, :rows], theirs(input_ids=ids_bt).logits[:, -1, :rows])


EQUALITIES = (
    *(
        Equality(
            component=f"adapted, merged, as {form}",
            reference="peft",
            also=("transformers", reader) if reader != "onnxruntime" else ("transformers", reader, "onnx"),
            compared=f"logits of its adapted model, and of our export read by {reader}",
            tolerance=tolerance,
            reason=reason,
            difference=partial(_merged, form=form),
        )
        for form, (reader, _, tolerance, reason) in _FORMS.items()
    ),
    *(
        Equality(
            component=f"{name} tuning",
            reference="peft",
            also=("transformers",),
            compared="logits behind it, peft's model of our files",
            tolerance=1e-4,
            reason="float32 sums in another order",
            difference=partial(_virtual, prefix=name == "prefix"),
        )
        for name in ("prompt", "prefix")
    ),
)
