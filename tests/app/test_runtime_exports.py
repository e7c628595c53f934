"""Exports for runtimes: what lies in their folders, what their certificates say, what fails, and the edge by itself."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from command_line import Journey, files_under
from embedder_folders import save_embedder
from gguf_files import random_model, tiny_tokenizer
from llm_journey.app import runtime_exports
from llm_journey.app.exports import Export, export_model
from llm_journey.app.language_model import open_model
from llm_journey.checkpoint.model_folder import save_model
from llm_journey.compression import onnx_graph
from llm_journey.compression.onnx_files import OnnxDecoder
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.generation.decode import generate
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.parity.random_models import MARIAN, random_encoder_decoder
from llm_journey.tokenizer.chat_template import encode_chat

CAP = 400 << 20
# Nothing but numpy and onnxruntime: other packages of this machine are hidden from the runner.
HIDDEN = ("torch", "transformers", "tokenizers", "tiktoken", "regex", "safetensors", "llm_journey", "onnx")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a trained vocabulary and the chat tokens."""
    folder = tmp_path_factory.mktemp("models") / "mill"
    model = random_model(num_kv_heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 0.5  # noise of twice this size would cost int4 more than its bound
    save_model(model, folder, tokenizer=tiny_tokenizer())
    return folder


@pytest.fixture(scope="module")
def edge(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export_model(str(source), "edge", tmp_path_factory.mktemp("exports") / "new", type="int4")


def run_alone(
    folder: Path, *arguments: str, limit: int = resource.RLIMIT_DATA, given: str = ""
) -> subprocess.CompletedProcess[str]:
    """run.py under the memory cap, every other package hidden. given: its standard input."""
    code = (
        "import os, runpy, resource, sys\n"
        f"resource.setrlimit({limit}, ({CAP}, {CAP}))\n"
        f"sys.modules |= dict.fromkeys({HIDDEN!r})\n"
        "sys.argv = sys.argv[1:]\n"
        "sys.path[0] = os.path.dirname(sys.argv[0])\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    sys.stderr.write(open('/proc/self/status').read())"
    )
    command = [sys.executable, "-B", "-c", code, str(folder / "run.py"), *arguments, "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, input=given)


def peak_bytes(status: str) -> int:
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def test_an_onnx_folder_holds_graph_neighbours_certificate_and_card(source: Path, tmp_path: Path) -> None:
    done = export_model(str(source), "onnx", tmp_path / "new", licence="MIT")
    names = files_under(done.folder)
    assert set(names) >= {"model.onnx", "config.json", "tokenizer.json", "README.md", "certificate.json"}
    assert not [name for name in names if name.endswith((".safetensors", "float32.onnx"))]
    found = done.certificate
    assert 0 < found["largest_logit_difference"] <= found["bounds"]["largest_logit_difference"] == 1e-3
    assert found["same_greedy_text"] == found["decided_agreement"] == 1.0
    assert max(found["cached_logit_difference"], found["padded_logit_difference"]) <= 1e-3
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    assert "InferenceSession('model.onnx')" in card and "read after keys and values" in card
    config = json.loads((done.folder / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "llama"


@pytest.mark.parametrize("type", ["int8", "int4", "int8-dynamic"])
def test_fewer_bits_are_certified_by_their_kl(type: str, source: Path, tmp_path: Path) -> None:
    done = export_model(str(source), "onnx", tmp_path / "new", type=type)
    assert 0 < done.certificate["mean_kl"] <= runtime_exports.KL_BOUNDS[type]
    assert done.certificate["type"] == type


def test_a_model_of_no_family_is_exported_too(tmp_path: Path) -> None:
    save_model(random_model(mlp="relu2"), tmp_path / "own", tokenizer=tiny_tokenizer())
    for to, name in (("onnx", "model.onnx"), ("torchscript", "model.ts")):
        done = export_model(str(tmp_path / "own"), to, tmp_path / to)
        assert done.file.name == name and done.certificate["largest_logit_difference"] <= 1e-3
        assert (done.folder / "tokenizer.json").is_file()


@pytest.mark.full
def test_torch_export_is_certified(source: Path, tmp_path: Path) -> None:
    done = export_model(str(source), "torch-export", tmp_path / "new")
    assert done.file.name == "model.pt2" and done.certificate["cached_logit_difference"] <= 1e-4
    with pytest.raises(BadInputError, match="keeps the model's numbers in float32"):
        export_model(str(source), "torch-export", tmp_path / "other", type="int8")


def test_a_drifting_graph_is_not_left(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """optimum#1755: exported logits drift. Planted: the scores' scale is wrong by a thousandth."""
    number = onnx_graph.Graph.number
    scale = 16**-0.5
    monkeypatch.setattr(
        onnx_graph.Graph, "number", lambda graph, value: number(graph, value * 1.001 if value == scale else value)
    )
    with pytest.raises(JourneyError, match=r"the largest logit difference is .*, over the bound 1e-03"):
        export_model(str(source), "onnx", tmp_path / "new")
    assert files_under(tmp_path) == []


def test_a_graph_that_forgets_its_past_is_not_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: positions begin at 0 in each piece. Whole texts do not show it."""
    read = OnnxDecoder.read

    def forgetful(peer: OnnxDecoder, ids_bt: Any, mask_bs: Any = None) -> Any:
        whole = peer.length
        logits = read(peer, ids_bt, mask_bs)
        if whole:
            peer.reset(len(ids_bt))
        return logits

    monkeypatch.setattr(OnnxDecoder, "read", forgetful)
    with pytest.raises(JourneyError, match=r"greedily written tokens|with keys and values"):
        export_model(str(source), "onnx", tmp_path / "new")
    assert files_under(tmp_path) == []


def test_an_embedder_goes_to_onnx(tmp_path: Path) -> None:
    save_embedder(tmp_path / "model")
    for type in ("float32", "int8-dynamic"):
        done = export_model(str(tmp_path / "model"), "onnx", tmp_path / type, type=type)
        assert "sentence_embedding" in done.certificate["compared"]
        assert done.certificate["largest_cosine_distance"] <= (1e-6 if type == "float32" else 1e-2)
    assert (tmp_path / "float32" / "tokenizer.json").is_file()
    with pytest.raises(BadInputError, match="an encoder goes to ONNX as float32, int8 or int8-dynamic"):
        export_model(str(tmp_path / "model"), "onnx", tmp_path / "other", type="int4")
    with pytest.raises(BadInputError, match="of kind 'encoder'; this export is for decoders"):
        export_model(str(tmp_path / "model"), "edge", tmp_path / "other")


def test_what_no_runtime_takes(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="unknown ONNX type 'q4_0'; known: float32, int4, int8, int8-dynamic"):
        export_model(str(source), "onnx", tmp_path / "new", type="q4_0")
    save_model(random_model(width=40, mlp_width=80), tmp_path / "narrow", tokenizer=tiny_tokenizer())
    with pytest.raises(BadInputError, match="no matrix has inputs in whole groups of 32"):
        export_model(str(tmp_path / "narrow"), "edge", tmp_path / "new")
    save_model(random_encoder_decoder(), tmp_path / "marian")
    assert MARIAN["kind"] == "encoder_decoder"
    for to in ("onnx", "torchscript", "edge"):
        with pytest.raises(BadInputError, match="of kind 'encoder_decoder'"):
            export_model(str(tmp_path / "marian"), to, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_matrices_that_stay_float32_are_stated(tmp_path: Path) -> None:
    save_model(random_model(width=40, mlp_width=96), tmp_path / "model", tokenizer=tiny_tokenizer())
    done = export_model(str(tmp_path / "model"), "onnx", tmp_path / "new", type="int8")
    assert done.certificate["notes"] == ["7 of 9 matrices stay float32: their inputs are no whole groups of 32"]


def test_a_missing_extra_names_its_command(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    with pytest.raises(JourneyError, match=r"onnxruntime not installed; pip install 'llm-journey\[onnx\]'"):
        export_model(str(source), "edge", tmp_path / "new")


def test_the_edge_folder_is_whole(edge: Export) -> None:
    expected = {"model.onnx", "tokenizer.json", "tokenizer.py", "edge.json", "run.py", "README.md", "certificate.json"}
    assert set(files_under(edge.folder)) == expected | {"tokenizer_config.json"}
    assert 0 < edge.certificate["mean_kl"] <= 5e-2
    assert 30e6 < edge.certificate["runner_peak_bytes"] < CAP
    card = (edge.folder / "README.md").read_text(encoding="utf-8")
    assert "python run.py" in card and "Peak memory of the runner" in card


def test_the_edge_answers_alone_and_under_its_cap(edge: Export) -> None:
    """What the same file's graph writes by our own hand, streamed; other packages are hidden, memory is capped."""
    done = run_alone(edge.folder, "--greedy", "--plain", "--max-new-tokens", "12", "the river")
    tokenizer = tiny_tokenizer()
    ids = OnnxDecoder(edge.file).greedy(tokenizer.encode("the river"), 12)
    stop = json.loads((edge.folder / "edge.json").read_text(encoding="utf-8"))["stop"]
    ids = ids[: next((at for at, token in enumerate(ids) if token in stop), len(ids))]
    assert done.stdout == tokenizer.decode(ids) + "\n" and ids, done.stderr
    assert peak_bytes(done.stderr) < CAP


def test_the_edge_float32_graph_writes_the_models_text(source: Path, tmp_path: Path) -> None:
    done = export_model(str(source), "edge", tmp_path / "new", type="float32")
    model = open_model(str(source))
    expected = model.tokenizer.decode(
        generate(
            model.decoder,
            model.prompt_ids("a bridge"),
            SamplingConfig(temperature=0, max_new_tokens=20),
            stop_ids=model.stop_ids,
        )
    )
    found = run_alone(done.folder, "--greedy", "--plain", "--max-new-tokens", "20", "a bridge")
    assert found.stdout == expected + "\n"
    chat = [run_alone(done.folder, "--seed", seed, "hello").stdout for seed in ("1", "1", "2")]
    assert chat[0] == chat[1] != chat[2]


def test_a_chat_goes_on_turn_by_turn(edge: Export) -> None:
    """Line by line: each answer is what the same graph writes after all that was said before."""
    tokenizer, facts = tiny_tokenizer(), json.loads((edge.folder / "edge.json").read_text(encoding="utf-8"))
    peer, expected = OnnxDecoder(edge.file), ""
    ids: list[int] = []
    for number, text in enumerate(("a", "b")):
        opening = facts["chat"]["between" if number else "before"]
        framed = opening.replace("<|endoftext|>", "") + text + facts["chat"]["after"]
        ids += ([tokenizer.special_tokens["<|endoftext|>"]] if not number else []) + tokenizer.encode(
            framed, allow_special=True
        )
        new = peer.greedy(ids, 3)
        new = new[: next((at for at, token in enumerate(new) if token in facts["stop"]), len(new))]
        ids += new
        expected += tokenizer.decode([token for token in new if token < 300]) + "\n"
    done = run_alone(edge.folder, "--greedy", "--max-new-tokens", "3", given="a\nb\n\nnot read\n")
    assert done.stdout == expected, done.stderr


def test_a_full_context_is_begun_anew_and_a_message_beyond_it_refused(edge: Export) -> None:
    chat = run_alone(edge.folder, "--greedy", "--max-new-tokens", "40", given="a\na\n")
    first, second = chat.stdout.splitlines()
    assert first == second and "the context is full: what was said before is forgotten" in chat.stderr
    done = run_alone(edge.folder, "--plain", "xyz " * 19)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == "the prompt has 76 tokens, the model's context holds 48"


@pytest.mark.parametrize(
    "option",
    [
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--min-p", "2"),
        ("--top-k", "many"),
        ("--temperature", "nan"),
        ("--top-p", "2"),
        ("--seed", "-1"),
    ],
)
def test_settings_out_of_range_are_refused(option: tuple[str, str], edge: Export) -> None:
    done = run_alone(edge.folder, *option, "hello")
    assert done.returncode == 2 and "run.py: error: " in done.stderr


def test_a_folder_without_its_tensors_says_so(edge: Export, tmp_path: Path) -> None:
    for name in ("run.py", "tokenizer.py", "tokenizer.json", "edge.json"):
        shutil.copyfile(edge.folder / name, tmp_path / name)
    done = run_alone(tmp_path, "hello")
    assert done.returncode == 1 and "\nmodel.onnx cannot be opened, is the folder whole? " in done.stderr


def test_a_runner_that_writes_otherwise_is_not_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: it takes the unlikeliest token."""
    from llm_journey.compression import edge_runner

    text = Path(edge_runner.__file__).read_text(encoding="utf-8")
    assert text.count("logits.argmax()") == 1
    (tmp_path / "planted.py").write_text(text.replace("logits.argmax()", "logits.argmin()"), encoding="utf-8")
    monkeypatch.setattr(edge_runner, "__file__", str(tmp_path / "planted.py"))
    with pytest.raises(JourneyError, match=r"run\.py does not write what the model does"):
        export_model(str(source), "edge", tmp_path / "new")
    assert files_under(tmp_path) == ["planted.py"]


def test_a_runner_that_cuts_otherwise_is_not_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_journey.compression import edge_tokenizer

    monkeypatch.setattr(edge_tokenizer, "GPT2", r"\p{L}+|[^\p{L}]+")
    with pytest.raises(JourneyError, match=r"run\.py makes other ids"):
        export_model(str(source), "edge", tmp_path / "new")


def test_the_command(source: Path, tmp_path: Path, journey: Journey) -> None:
    done = journey("export", source, "--to", "onnx", "--out", tmp_path / "new", "--json")
    assert done.code == 0 and done.json["certificate"]["format"] == "onnx"
    assert journey("export", source, "--to", "mlx", "--out", tmp_path / "other").code == 2


@pytest.mark.network
@pytest.mark.full
@pytest.mark.parametrize(("type", "limit"), [("int8", resource.RLIMIT_DATA), ("int4", resource.RLIMIT_AS)])
def test_smollm2_answers_under_400_megabytes(
    type: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cap is on the process's own memory; for int4 even on all its addresses, mapped files and libraries too."""
    for name in ("OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"):
        monkeypatch.setenv(name, "1")
    done = export_model("smollm2-135m-instruct", "edge", tmp_path / "new", type=type)
    model, question = open_model("smollm2-135m-instruct"), "What is the capital of France?"
    ids = encode_chat(model.tokenizer, [{"role": "user", "content": question}], add_generation_prompt=True)
    written = OnnxDecoder(done.file, threads=1).greedy(ids, 24)
    written = written[: next((at for at, token in enumerate(written) if token in model.stop_ids), len(written))]
    options = ("--greedy", "--max-new-tokens", "24", "--repetition-penalty", "1")
    found = run_alone(done.folder, *options, question, limit=limit)
    assert found.stdout == model.tokenizer.decode(written) + "\n" and len(written) > 5, found.stderr
    assert peak_bytes(found.stderr) < CAP
    full = "one two three four five " * 194
    assert 950 < len(model.prompt_ids(full)) < runtime_exports.EDGE_CONTEXT - 30
    found = run_alone(done.folder, *options, full, limit=resource.RLIMIT_DATA)
    assert found.returncode == 0 and peak_bytes(found.stderr) < CAP, found.stderr
    assert done.certificate["runner_context"] == 1024 and done.certificate["runner_peak_bytes"] < CAP


def test_numbers_are_float32(edge: Export) -> None:
    peer = OnnxDecoder(edge.file)
    logits = peer.read(np.array([[1, 2, 3]]))
    assert logits.dtype == np.float32 and logits.shape == (1, 1, 304)
    assert torch.from_numpy(logits).isfinite().all()
