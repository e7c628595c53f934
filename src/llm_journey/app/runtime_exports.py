"""Models out for runtimes: ONNX, torch.export, TorchScript, and a folder for the edge that answers by itself.

    model.onnx (model.onnx.data), config.json, tokenizer.json ...                  --to onnx
    model.onnx (model.onnx.data), edge.json, run.py, tokenizer.json, tokenizer.py  --to edge
    model.pt2, config.json, tokenizer.json ...                                     --to torch-export
    model.ts, config.json, tokenizer.json ...                                      --to torchscript

What was written is opened by the runtime that it is for and set beside the model in float32: whole texts, texts read
token by token with keys and values, texts of unequal length in one batch, and what both write.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_journey.app.certificates import LOGIT_BOUND, TEXTS, Source, compare, findings, require
from llm_journey.app.find_models import GGUF_SUFFIX
from llm_journey.app.language_model import LanguageModel
from llm_journey.core import files
from llm_journey.core.errors import BadInputError, JourneyError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    from llm_journey.compression.onnx_files import OnnxDecoder

RUNTIME_FORMATS = ("onnx", "torch-export", "torchscript", "edge")
# What is promised of ONNX in float32: other kernels, sums taken in another order.
ONNX_BOUND = 1e-3
# What fewer bits may cost: mean KL to float32 in nats. SmolLM2 on the fixed texts: 8e-3 for int8, whose activations are
# rounded too, 6e-4 for int4, whose are not (its weights lie on int4's grid already; other models lose more there).
# onnxruntime's own dynamic int8 cost 0.77 on 40 tokens: its one scale for a tensor of activations does not bear this
# model's outliers.
KL_BOUNDS = {"int8": 2e-2, "int4": 5e-2, "int8-dynamic": 5e-2}
_GREEDY_TOKENS = 32
# What run.py remembers: SmolLM2's keys and values take 46 kB a token, 47 MB for these, which leaves room under 400 MB.
EDGE_CONTEXT = 1024
_RUNNER = "run.py"


def write_onnx(source: Source, folder: Path, type: str | None) -> tuple[str, dict[str, Any]]:
    """A decoder's or an encoder's graph. type: float32 (the default), int8, int4, int8-dynamic."""
    from llm_journey.compression.onnx_files import OnnxDecoder, require_onnx

    type = type or "float32"
    if type not in ("float32", *KL_BOUNDS):
        raise unknown_name("ONNX type", type, ("float32", *KL_BOUNDS))
    require_onnx()
    model = _decoder_of(source)
    path = folder / "model.onnx"
    source.observer.stage("writing the graph")
    notes = write_graph(model, path, type)
    write_neighbours(source, folder)
    source.observer.stage("comparing what onnxruntime makes of it with the model")
    peer = OnnxDecoder(path)
    certificate = _certify(model, type, _whole(peer), peer)
    if type == "float32":
        cached, padded = _cached_difference(model, peer), _padded_difference(model, peer)
        require(cached, ONNX_BOUND, "the largest logit difference with keys and values")
        require(padded, ONNX_BOUND, "the largest logit difference in a padded batch")
        certificate |= {"cached_logit_difference": cached, "padded_logit_difference": padded}
    return path.name, certificate | {"notes": notes}


def write_edge(source: Source, folder: Path, type: str | None) -> tuple[str, dict[str, Any]]:
    """A folder that answers with numpy and onnxruntime alone. type: int4 (the default), int8 or float32."""
    from llm_journey.compression.onnx_files import OnnxDecoder, require_onnx

    type = type or "int4"
    if type not in ("float32", "int4", "int8"):
        raise unknown_name("type", type, ("float32", "int4", "int8"))
    require_onnx()
    model = _decoder_of(source)
    path = folder / "model.onnx"
    source.observer.stage("writing the graph")
    notes = write_graph(model, path, type, answering=True)
    files.write_json(folder / "edge.json", _edge_facts(model))
    _write_tokenizer(model, folder)
    write_runner(folder)
    _require_same_cut(model, folder)
    source.observer.stage("comparing what onnxruntime makes of it with the model, token by token")
    peer = OnnxDecoder(path)
    certificate = _certify(model, type, _by_token(peer), peer)
    source.observer.stage("running run.py")
    return path.name, certificate | _try_runner(model, peer, folder) | {"notes": [*notes, *_edge_notes(model)]}


def write_torch_export(source: Source, folder: Path, type: str | None) -> tuple[str, dict[str, Any]]:
    """A .pt2 file."""
    from llm_journey.compression import torch_graphs

    return _write_step(
        source, folder, type, "model.pt2", torch_graphs.write_torch_export, torch_graphs.open_torch_export
    )


def write_torchscript(source: Source, folder: Path, type: str | None) -> tuple[str, dict[str, Any]]:
    """A TorchScript file."""
    from llm_journey.compression import torch_graphs

    return _write_step(source, folder, type, "model.ts", torch_graphs.write_torchscript, torch_graphs.open_torchscript)


# How what was written is used, for its card.
USES = {
    "onnx": "import onnxruntime\nsession = onnxruntime.InferenceSession('model.onnx')",
    "edge": f'pip install numpy onnxruntime\npython {_RUNNER} "Which planets have rings?"',
    "torch-export": "import torch\nstep = torch.export.load('model.pt2').module()\n"
    "logits, past = step(ids, past)   # ids (B, T), past (layers, 2, B, key-value heads, positions so far, head width)",
    "torchscript": "import torch\nstep = torch.jit.load('model.ts')\n"
    "logits, past = step(ids, past)   # ids (B, T), past (layers, 2, B, key-value heads, positions so far, head width)",
}


def _decoder_of(source: Source) -> LanguageModel:
    if not source.is_decoder:
        raise BadInputError(
            f"{source.name}: of kind {source.config.kind!r}; this export is for decoders "
            "(an encoder goes --to onnx, every kind goes --to hf)"
        )
    if source.config.prefix_tokens:
        raise BadInputError(
            f"{source.name}: has a tuned prefix, which this form has no place for; adapter/ goes to peft"
        )
    return source.model


def write_graph(model: LanguageModel, path: Path, type: str, *, answering: bool = False) -> list[str]:
    """Write a graph; returns what is to be noted of it."""
    from llm_journey.compression.onnx_bits import MATRICES
    from llm_journey.compression.onnx_files import quantize_dynamically, save_onnx
    from llm_journey.compression.onnx_graph import decoder_graph, float_linear

    if type == "int8-dynamic":
        whole = path.with_name("float32.onnx")
        save_onnx(decoder_graph(model.decoder, head=float_linear, answering=answering), whole)
        quantize_dynamically(whole, path)
        for file in path.parent.glob("float32.onnx*"):
            file.unlink()
        return []
    linear, head, embed = MATRICES[type]
    graph = decoder_graph(model.decoder, linear=linear, head=head, embed=embed, answering=answering)
    kinds = [node.op_type for node in graph.graph.node]
    narrow, kept = kinds.count("MatMulNBits"), 0 if type == "float32" else _num_products(graph)
    if type != "float32" and not narrow:
        raise BadInputError(f"{model.name}: no matrix has inputs in whole groups of 32, so none can be {type}")
    save_onnx(graph, path)
    total = narrow + kept
    return [f"{kept} of {total} matrices stay float32: their inputs are no whole groups of 32"] if kept else []


def _num_products(graph: Any) -> int:
    """Products with a float32 matrix of the model's own."""
    ours = {tensor.name for tensor in graph.graph.initializer if tensor.name.endswith(".transposed")}
    head = any(node.op_type == "Transpose" and node.input[0].endswith(".weight") for node in graph.graph.node)
    return len(ours) + head


def write_neighbours(source: Source, folder: Path) -> None:
    """config.json and the tokenizer's files, as other programs expect them beside a graph."""
    from llm_journey.app.imports import write_model_folder
    from llm_journey.checkpoint.families import family_of

    if family_of(source.config) is None and source.path.suffix == GGUF_SUFFIX:
        _write_tokenizer(source.model, folder)
        return
    whole = folder / "whole"
    whole.mkdir()
    write_model_folder(source.path, whole)
    for file in whole.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            file.rename(folder / file.name)
    shutil.rmtree(whole)


def _write_tokenizer(model: LanguageModel, folder: Path) -> None:
    from llm_journey.tokenizer import io

    io.save(model.tokenizer, folder)


def _write_step(
    source: Source,
    folder: Path,
    type: str | None,
    name: str,
    write: Callable[[Any, Path], None],
    opened: Callable[[Path], Any],
) -> tuple[str, dict[str, Any]]:
    from llm_journey.compression.torch_graphs import DecoderStep

    if type not in (None, "float32"):
        raise BadInputError(f"type {type!r}: this export keeps the model's numbers in float32")
    model = _decoder_of(source)
    source.observer.stage("writing the graph")
    write(model.decoder, folder / name)
    write_neighbours(source, folder)
    source.observer.stage("comparing what PyTorch makes of it with the model")
    step, empty = opened(folder / name), DecoderStep(model.decoder).empty

    def whole(ids_bt: "Tensor") -> "Tensor":
        logits: Tensor = step(ids_bt, empty(len(ids_bt)))[0]
        return logits

    def in_two(ids_bt: "Tensor") -> "Tensor":
        """As `whole`, the second half read after the first's keys and values."""
        import torch

        half = ids_bt.shape[1] // 2
        if half == 0:
            return whole(ids_bt)
        first, past = step(ids_bt[:, :half], empty(len(ids_bt)))
        return torch.cat((first, step(ids_bt[:, half:], past)[0]), dim=1)

    agreement, cached = compare(model, model.decoder, whole), compare(model, model.decoder, in_two)
    require(agreement.largest_logit_difference, LOGIT_BOUND, "the largest logit difference")
    require(cached.largest_logit_difference, LOGIT_BOUND, "the largest logit difference with keys and values")
    compared = f"{model.name} in float32 with this file, opened by torch {_version('torch')}"
    return name, findings(compared, agreement, {"largest_logit_difference": LOGIT_BOUND}) | {
        "cached_logit_difference": cached.largest_logit_difference
    }


def _certify(
    model: LanguageModel, type: str, reading: "Callable[[Tensor], Tensor]", peer: "OnnxDecoder"
) -> dict[str, Any]:
    """`reading`, by `peer`, beside the model on the fixed texts, and what both write."""
    agreement = compare(model, model.decoder, reading)
    if type == "float32":
        bounds = {"largest_logit_difference": ONNX_BOUND}
        require(agreement.largest_logit_difference, ONNX_BOUND, "the largest logit difference")
    else:
        bounds = {"mean_kl": KL_BOUNDS[type]}
        require(agreement.mean_kl, KL_BOUNDS[type], f"the mean KL of {type}", "; choose a type with more bits")
    greedy = _greedy_agreement(model, peer)
    if type == "float32":
        require(1 - greedy, 0.0, "the share of greedily written tokens that are not the model's")
    compared = f"{model.name} in float32 with this file in onnxruntime {_version('onnxruntime')}"
    return {"type": type, **findings(compared, agreement, bounds), "same_greedy_text": greedy}


def _whole(peer: "OnnxDecoder") -> "Callable[[Tensor], Tensor]":
    """Logits of texts, read in one piece."""
    import torch

    def reading(ids_bt: "Tensor") -> "Tensor":
        peer.reset(len(ids_bt))
        return torch.from_numpy(peer.read(ids_bt.numpy()))

    return reading


def _by_token(peer: "OnnxDecoder") -> "Callable[[Tensor], Tensor]":
    """Logits of texts, read token by token, each after the keys and values of those before."""
    import torch

    def reading(ids_bt: "Tensor") -> "Tensor":
        peer.reset(len(ids_bt))
        columns = ids_bt.numpy()
        return torch.cat([torch.from_numpy(peer.read(columns[:, t : t + 1])) for t in range(columns.shape[1])], dim=1)

    return reading


def _cached_difference(model: LanguageModel, peer: "OnnxDecoder") -> float:
    """The largest difference of logits between a text read whole by the model and token by token by `peer`."""
    import torch

    by_token, largest = _by_token(peer), 0.0
    with torch.inference_mode():
        for text in TEXTS[:2]:
            ids_bt = torch.tensor([model.prompt_ids(text)[: model.decoder.config.context]])
            largest = max(largest, float((model.decoder(ids_bt) - by_token(ids_bt)).abs().max()))
    return largest


def _padded_difference(model: LanguageModel, peer: "OnnxDecoder") -> float:
    """The largest difference of logits between texts alone in the model and all together, padded on the left, in
    `peer`."""
    import numpy as np
    import torch

    rows = [model.prompt_ids(text)[: model.decoder.config.context] for text in TEXTS[:4]]
    longest, largest = max(map(len, rows)), 0.0
    ids_bt = np.array([[0] * (longest - len(row)) + row for row in rows])
    mask_bs = np.array([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
    peer.reset(len(rows))
    logits_btv = peer.read(ids_bt, mask_bs)
    with torch.inference_mode():
        for row, ids in enumerate(rows):
            expected_tv = model.decoder(torch.tensor([ids]))[0].numpy()
            largest = max(largest, float(np.abs(logits_btv[row, longest - len(ids) :] - expected_tv).max()))
    return largest


def _greedy_agreement(model: LanguageModel, peer: "OnnxDecoder") -> float:
    """The share of greedily written tokens, up to the first other one of each text, that are the model's own; where
    the model's two likeliest tokens lie as close as the bound, either counts."""
    same = total = 0
    for text in TEXTS[:3]:
        ids = model.prompt_ids(text)[: model.decoder.config.context // 2]
        count = min(_GREEDY_TOKENS, model.decoder.config.context - len(ids))
        expected, found = _greedy(model, ids, count), peer.greedy(ids, count)
        equal = next((at for at, pair in enumerate(zip(expected, found, strict=True)) if pair[0] != pair[1]), count)
        tied = equal < count and _lead(model, [*ids, *expected[:equal]]) < ONNX_BOUND
        same, total = same + (count if tied else equal), total + count
    return same / total


def _greedy(model: LanguageModel, ids: Sequence[int], count: int) -> list[int]:
    from llm_journey.generation.decode import generate
    from llm_journey.generation.sampling import SamplingConfig

    return list(generate(model.decoder, ids, SamplingConfig(temperature=0, max_new_tokens=count)))


def _lead(model: LanguageModel, ids: Sequence[int]) -> float:
    import torch

    with torch.inference_mode():
        first, second = model.decoder(torch.tensor([ids]))[0, -1].topk(2).values.tolist()
    return float(first - second)


def write_runner(folder: Path) -> None:
    """run.py and tokenizer.py, which know one another by these names there, and nothing of this package."""
    from llm_journey.compression import edge_runner, edge_tokenizer

    for name, source in ((_RUNNER, edge_runner.__file__), ("tokenizer.py", edge_tokenizer.__file__)):
        text = Path(source).read_text(encoding="utf-8")
        files.write_text(folder / name, text.replace("from llm_journey.compression.edge_tokenizer", "from tokenizer"))


def _edge_facts(model: LanguageModel) -> dict[str, Any]:
    """What run.py must know besides the graph and the tokenizer."""
    from llm_journey.generation.sampling import SamplingConfig

    sampling = asdict(SamplingConfig(**model.defaults))
    context = min(model.decoder.config.context, EDGE_CONTEXT)
    whole = {"top_k": sampling["top_k"] or 0, "max_new_tokens": sampling["max_new_tokens"]}
    real = {name: float(sampling[name]) for name in ("temperature", "top_p", "min_p", "repetition_penalty")}
    begin, end = _framing_names(model)
    plain = {"before": begin, "between": None, "after": end, "strip": False}
    return {
        "context": context,
        "chunk": min(64, context),
        "stop": sorted(model.stop_ids),
        "plain": plain,
        "chat": _chat_frame(model) or plain,
        "sampling": real | whole,
    }


def _edge_notes(model: LanguageModel) -> list[str]:
    """What run.py does otherwise than `journey chat`."""
    config, notes = model.decoder.config, []
    if config.context > EDGE_CONTEXT:
        size = 8 * config.num_layers * config.num_kv_heads * config.head_width
        notes.append(
            f"run.py remembers {EDGE_CONTEXT:,} of the {config.context:,} tokens that the model can, so that memory "
            f"is bounded: each takes {size:,} bytes more; `context` in edge.json changes it"
        )
    if model.defaults.get("typical_p", 1.0) != 1.0:
        notes.append("run.py draws without the model's typical_p")
    return notes


def _framing_names(model: LanguageModel) -> tuple[str, str]:
    """The names of the special tokens before and behind a bare text."""
    name_of = {token: name for name, token in model.tokenizer.special_tokens.items()}
    framed = model.tokenizer.frame([-1])
    at = framed.index(-1)
    before, after = ("".join(name_of[token] for token in part) for part in (framed[:at], framed[at + 1 :]))
    return before, after


def _chat_frame(model: LanguageModel) -> dict[str, Any] | None:
    """What the model's template writes before the first message, between an answer and the next message (None where
    the template goes on otherwise), and after each; None where it has no template, or writes a message otherwise."""
    from llm_journey.tokenizer.chat_template import render_chat

    if model.tokenizer.chat_template is None:
        return None
    first, reply, second = "  what is said  ", "what is answered", "  what follows  "
    messages = [{"role": "user", "content": first}]
    rendered = render_chat(model.tokenizer, messages, add_generation_prompt=True)
    strip = first not in rendered
    first, second = (first.strip(), second.strip()) if strip else (first, second)
    before, found, after = rendered.partition(first)
    if not found:
        return None
    messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": second}]
    rendered = render_chat(model.tokenizer, messages, add_generation_prompt=True)
    between = rendered.partition(reply)[2].partition(second)[0]
    goes_on = rendered == f"{before}{first}{after}{reply}{between}{second}{after}"
    return {"before": before, "between": between if goes_on else None, "after": after, "strip": strip}


def _require_same_cut(model: LanguageModel, folder: Path) -> None:
    """The folder's tokenizer must make the ids that the model's own makes, of texts and of chats."""
    from llm_journey.compression.edge_tokenizer import Tokenizer
    from llm_journey.tokenizer.chat_template import encode_chat

    mine, facts = Tokenizer(folder / "tokenizer.json"), files.read_json(folder / "edge.json")
    plain, chat = facts["plain"], facts["chat"]
    for text in (*TEXTS, "a  b\n\n 3½ x'll <|im_end|> \U0001f642 日本語 e\u0301 \x00\x7f\u2009."):
        same = mine.encode_chat(plain["before"], text, plain["after"]) == model.prompt_ids(text)
        if chat != plain:
            expected = encode_chat(model.tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
            said = text.strip() if chat["strip"] else text
            same = same and mine.encode_chat(chat["before"], said, chat["after"]) == expected
        if not same:
            raise JourneyError(
                f"{_RUNNER} makes other ids than the model of the text {text[:40]!r}; nothing is written"
            )


def _try_runner(model: LanguageModel, peer: "OnnxDecoder", folder: Path) -> dict[str, Any]:
    """What run.py writes, in a process of its own, beside the same file's own greedy tokens; and the most memory that
    it holds with its context full."""
    context = min(model.decoder.config.context, EDGE_CONTEXT)
    prompt, count = TEXTS[0], min(16, context // 2)
    ids = model.prompt_ids(prompt)
    if len(ids) + count > context:
        prompt, ids = "a", model.prompt_ids("a")
    written = []
    for token in peer.greedy(ids, count):
        if token in model.stop_ids:
            break
        written.append(token)
    found, _ = _run(folder, prompt, count)
    if found != model.tokenizer.decode(written) + "\n":
        raise JourneyError(f"{_RUNNER} does not write what the model does (it wrote {found[:60]!r}); nothing is left")
    words = " ".join(TEXTS * (1 + context // len(TEXTS))).split(" ")[:context]
    while len(words) > 1 and (over := len(model.prompt_ids(" ".join(words))) - context + 1) > 0:
        del words[-max(1, over // 4) :]
    return {"runner_context": context, "runner_peak_bytes": _run(folder, " ".join(words), 1)[1]}


def _run(folder: Path, prompt: str, count: int) -> tuple[str, int | None]:
    """What run.py writes after a text, greedily, and its peak memory."""
    from llm_journey.app.processes import run_measured

    options = ["--greedy", "--repetition-penalty", "1", "--max-new-tokens", str(count), "--threads", "1"]
    done = run_measured([str(folder / _RUNNER), "--plain", *options, "--", prompt])
    if done.code:
        reason = done.err.strip().splitlines()[-1:] or ["it said nothing"]
        raise JourneyError(f"{_RUNNER} fails ({reason[0]}); nothing is left")
    return done.out, done.peak_bytes


def _version(name: str) -> str:
    from importlib.metadata import version

    return version(name)
