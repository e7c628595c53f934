"""What `journey bench` compares: one model answered by each runtime on this machine, behind one small contract.

A backend opens its own form of the model (`prepare_files` writes those that are files) and gives the tokens after a
prompt one by one, greedily, as it makes them. Nothing is imported before its backend is opened: each runs in a process
of its own, whose memory is its own.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llm_journey.core.errors import BadInputError

if TYPE_CHECKING:
    from llm_journey.app.language_model import LanguageModel

_WEIGHTS = ("float32", "bfloat16", "int8", "int4")
Files = dict[str, str]  # what is needed -> where it lies: "model" is the name that the person gave


class Backend(Protocol):
    """num_bytes: of weights that a decoding step reads."""

    num_bytes: int

    def tokens(self, ids: Sequence[int], count: int) -> Iterator[int]:
        """`count` tokens after `ids`, each as soon as it is there."""
        ...


@dataclass(frozen=True)
class Kind:
    """A row of the table: what it needs on this machine, and how it is opened with so many threads."""

    name: str
    needs: tuple[str, ...]
    open: Callable[[Files, int], Backend]
    file: str = "model"


class _Engine:
    """The engine, as `generate`, `chat` and `serve` run it; `compiled`: with --compile."""

    def __init__(
        self,
        files: Files,
        threads: int,  # noqa: ARG002
        *,
        weights: Any,
        device: str = "cpu",
        compiled: bool = False,
    ) -> None:
        from llm_journey.app.language_model import open_model
        from llm_journey.generation.engine import Engine, EngineConfig
        from llm_journey.generation.runner import Runner

        decoder = open_model(files["model"]).decoder.to(device)
        room = EngineConfig(cache_tokens=min(decoder.config.context, 4096), reuse=False)
        runner = Runner(decoder, weights)
        if compiled:
            runner.compile()
        self.engine = Engine(runner, room)
        self.num_bytes = self.engine.runner.num_bytes

    def tokens(self, ids: Sequence[int], count: int) -> Iterator[int]:
        from llm_journey.generation.sampling import SamplingConfig
        from llm_journey.generation.stream import Stream

        request = self.engine.submit(ids, SamplingConfig(temperature=0, max_new_tokens=count))
        for token in Stream(self.engine, request):
            yield token.id


class _Plain:
    """The decoder as it was trained, PyTorch's eager mode, a dense cache."""

    def __init__(self, files: Files, threads: int, *, device: str = "cpu") -> None:  # noqa: ARG002
        from llm_journey.app.language_model import open_model

        self.decoder = open_model(files["model"]).decoder.to(device).eval()
        self.num_bytes = _weight_bytes(self.decoder)

    def tokens(self, ids: Sequence[int], count: int) -> Iterator[int]:
        from llm_journey.generation.decode import generate
        from llm_journey.generation.sampling import SamplingConfig

        yield from generate(self.decoder, ids, SamplingConfig(temperature=0, max_new_tokens=count))


class _Compiled:
    """torch.compile of a block as a function of its input, keys and values: one for all, since compiling a whole
    decoder writes each layer out (30 layers took more than 180 s)."""

    def __init__(self, files: Files, threads: int, *, device: str = "cpu") -> None:  # noqa: ARG002
        import torch

        from llm_journey.app.language_model import open_model
        from llm_journey.compression.torch_graphs import DecoderStep, read_block

        decoder = open_model(files["model"]).decoder.to(device).eval()
        self.step, self.torch, self.device = DecoderStep(decoder), torch, device
        self.step.block = torch.compile(read_block, dynamic=True)
        self.num_bytes = _weight_bytes(decoder)
        list(self.tokens([1, 2, 3, 4], 4))

    def tokens(self, ids: Sequence[int], count: int) -> Iterator[int]:
        torch = self.torch
        with torch.inference_mode():
            past, ids_bt = self.step.empty().to(self.device), torch.tensor([list(ids)], device=self.device)
        for _ in range(count):
            with torch.inference_mode():
                logits, past = self.step(ids_bt, past)
                ids_bt = logits[:, -1:].argmax(-1)
            yield int(ids_bt)


class _Transformers:
    """`generate` as people call it, told of each token by a streamer."""

    def __init__(self, files: Files, threads: int) -> None:  # noqa: ARG002
        import torch
        from transformers import AutoModelForCausalLM

        opener: Any = AutoModelForCausalLM
        self.model = opener.from_pretrained(files["hf"], dtype=torch.float32, local_files_only=True).eval()
        self.torch, self.num_bytes = torch, _weight_bytes(self.model)

    def tokens(self, ids: Sequence[int], count: int) -> Iterator[int]:
        import queue
        import threading

        given: queue.SimpleQueue[int | None] = queue.SimpleQueue()

        class Streamer:
            """generate's own contract: the prompt first, then each token."""

            prompt = True

            def put(self, value: Any) -> None:
                if not self.prompt:
                    given.put(int(value.reshape(-1)[-1]))
                self.prompt = False

            def end(self) -> None:
                given.put(None)

        prompt = self.torch.tensor([list(ids)])
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        options |= {"max_new_tokens": count, "streamer": Streamer(), "attention_mask": self.torch.ones_like(prompt)}
        thread = threading.Thread(target=self.model.generate, args=(prompt,), kwargs=options, daemon=True)
        thread.start()
        while (token := given.get()) is not None:
            yield token
        thread.join()


class _OnnxRuntime:
    """onnxruntime with our graph."""

    def __init__(self, files: Files, threads: int, *, file: str) -> None:
        from llm_journey.compression.onnx_files import OnnxDecoder, files_of

        path = Path(files[file])
        self.model = OnnxDecoder(path, threads)
        self.num_bytes = sum(each.stat().st_size for each in files_of(path))

    def tokens(self, ids: Sequence[int], count: int) -> Iterator[int]:
        import numpy as np

        self.model.reset()
        row = np.array([list(ids)], np.int64)
        for _ in range(count):
            token = int(self.model.read(row)[0, -1].argmax())
            yield token
            row = np.array([[token]], np.int64)


class _LlamaCpp:
    """llama.cpp by its Python binding, which adds nothing to an evaluation but the call."""

    def __init__(self, files: Files, threads: int, *, file: str) -> None:
        import llama_cpp  # type: ignore[import-not-found, unused-ignore]

        path = Path(files[file])
        options: dict[str, Any] = {"n_ctx": 4096, "n_batch": 512, "n_threads": threads, "n_threads_batch": threads}
        self.model: Any = llama_cpp.Llama(str(path), verbose=False, **options)
        self.num_bytes = path.stat().st_size

    def tokens(self, ids: Sequence[int], count: int) -> Iterator[int]:
        import numpy as np

        self.model.reset()
        row = list(ids)
        for _ in range(count):
            self.model.eval(row)
            pointer = self.model._ctx.get_logits()
            row = [int(np.ctypeslib.as_array(pointer, shape=(self.model.n_vocab(),)).argmax())]
            yield row[0]


def _weight_bytes(model: Any) -> int:
    """Bytes of all parameters, each counted once: of a tied embedding a step reads all, as the head."""
    return sum(parameter.nbytes for parameter in model.parameters())


def _kinds() -> list[Kind]:
    return [
        *(Kind(f"ours {weights}", (), partial(_Engine, weights=weights)) for weights in _WEIGHTS),
        *(
            Kind(f"ours {weights} compiled", ("C++ compiler",), partial(_Engine, weights=weights, compiled=True))
            for weights in _WEIGHTS
        ),
        Kind("eager float32", (), _Plain),
        Kind("compiled float32", (), _Compiled),
        Kind("transformers float32", ("transformers",), _Transformers, file="hf"),
        *(
            Kind(
                f"onnxruntime {type}",
                ("onnx", "onnxruntime"),
                partial(_OnnxRuntime, file=f"onnx-{type}"),
                f"onnx-{type}",
            )
            for type in ("float32", "int8", "int4")
        ),
        *(
            Kind(f"llama.cpp {type}", ("llama_cpp",), partial(_LlamaCpp, file=f"gguf-{type}"), f"gguf-{type}")
            for type in ("q8_0", "q4_1")
        ),
        *(
            Kind(f"ours {weights} cuda", ("cuda",), partial(_Engine, weights=weights, device="cuda"))
            for weights in _WEIGHTS
        ),
        Kind("eager float32 cuda", ("cuda",), partial(_Plain, device="cuda")),
        Kind("compiled float32 cuda", ("cuda",), partial(_Compiled, device="cuda")),
    ]


KINDS: dict[str, Kind] = {kind.name: kind for kind in _kinds()}


def lacking(kind: Kind) -> str:
    """What this machine lacks for a backend; "" where it lacks nothing."""
    for name in kind.needs:
        if name == "C++ compiler":
            from llm_journey.generation.machine_code import find_compiler

            if find_compiler() is None:
                return "no C++ compiler here"
        elif name == "cuda":
            import torch

            if not torch.cuda.is_available():
                return "no CUDA device here"
        elif importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
    return ""


def prepare_file(model: "LanguageModel", file: str, folder: Path) -> Path:
    """Write a backend's own form of the model into `folder`. Raises BadInputError where the model has none such."""
    kind, _, type = file.partition("-")
    match kind:
        case "onnx":
            from llm_journey.app.runtime_exports import write_graph

            path = folder / f"{file}.onnx"
            write_graph(model, path, type, answering=True)
        case "gguf":
            from llm_journey.checkpoint.gguf.model import write_gguf

            path = folder / f"{file}.gguf"
            write_gguf(model.decoder, model.tokenizer, path, type=type)
        case "hf":
            from llm_journey.checkpoint.families import FAMILIES, family_of
            from llm_journey.checkpoint.model_folder import save_model

            if family_of(model.decoder.config) is None:
                raise BadInputError(f"fits none of {', '.join(FAMILIES)}")
            path = folder / "hf"
            save_model(model.decoder, path)
        case _:
            raise AssertionError(file)
    return path
