"""SmolLM2-135M-Instruct answering one person: ours beside llama.cpp and transformers, alternated in slices of one run.

    python benchmarks/decode.py                       # what is installed
    python benchmarks/decode.py --rounds 12 --append

Every arm reads the same 512 tokens (prefill), then writes `--tokens` more, one by one, from a prompt of 64 (decode).
A round measures each arm once, the order turned about; ratios are taken round by round. Perplexity is on the first
`--perplexity-tokens` of wikitext-2's test part in windows of 512, each engine by its own logits.

Arms
  ours int4, ours int8     the engine, as `journey generate --precision NAME --compile` runs it (eager where there is no
                           C++ compiler, which is said)
  llama.cpp Q4_1, Q8_0     llama-cpp-python (no dependency; left out, and said so, where it is not installed); the Q8_0
                           file is written by `journey export --to gguf --type q8_0`
  transformers             `generate`, float32, greedy
The share of the bandwidth limit is decoded tokens times the bytes of weights that each reads, over what one pass over a
large array reads in the same time.
"""

import argparse
import importlib.util
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

import figures as shared
from figures import Figure, ratio, say

MODEL = "smollm2-135m-instruct"
PREFILL, PROMPT, WINDOW = 512, 64, 512


class Arm(Protocol):
    """What is measured: seconds to read a prompt, seconds to write tokens after one, logits."""

    name: str
    bytes_per_token: int

    def prefill(self, ids: Sequence[int]) -> float: ...

    def decode(self, ids: Sequence[int], count: int) -> float: ...

    def logits(self, ids: Sequence[int]) -> torch.Tensor: ...


class Ours:
    """The engine with its weights in one form."""

    def __init__(self, decoder: Any, weights: Any) -> None:
        from llm_journey.core.errors import JourneyError
        from llm_journey.generation.engine import Engine, EngineConfig
        from llm_journey.generation.runner import Runner

        self.name = f"ours {weights}"
        runner = Runner(decoder, weights)
        try:
            runner.compile(on_work=lambda what: say(f"{self.name}: compiling {what}"))
        except JourneyError as error:
            say(f"{self.name}: eager ({error})")
        self.engine = Engine(runner, EngineConfig(cache_tokens=2048, reuse=False))
        self.bytes_per_token = self.engine.runner.num_bytes

    def prefill(self, ids: Sequence[int]) -> float:
        return self._seconds(ids, 1)

    def decode(self, ids: Sequence[int], count: int) -> float:
        from llm_journey.generation.sampling import SamplingConfig

        request = self.engine.submit(ids, SamplingConfig(temperature=0, max_new_tokens=count + 1))
        while not request.tokens:
            self.engine.step()
        began = time.perf_counter()
        while self.engine.busy:
            self.engine.step()
        return time.perf_counter() - began

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        from llm_journey.generation.runner import Share

        table: list[int] = []
        assert self.engine.pool.grow(table, len(ids))
        found = self.engine.runner([Share(ids=ids, start=0, table=table, all_logits=True)], self.engine.cache)
        self.engine.pool.release(table)
        return found

    def _seconds(self, ids: Sequence[int], count: int) -> float:
        from llm_journey.generation.sampling import SamplingConfig

        began = time.perf_counter()
        self.engine.submit(ids, SamplingConfig(temperature=0, max_new_tokens=count))
        while self.engine.busy:
            self.engine.step()
        return time.perf_counter() - began


class LlamaCpp:
    """llama.cpp by its Python binding, which adds nothing to an evaluation but the call."""

    def __init__(self, file: Path, name: str, threads: int) -> None:
        import llama_cpp

        self.name = f"llama.cpp {name}"
        self.bytes_per_token = file.stat().st_size
        options: dict[str, Any] = {"n_ctx": 2048, "n_batch": PREFILL, "n_threads": threads, "n_threads_batch": threads}
        self.model = llama_cpp.Llama(str(file), verbose=False, **options)
        self.scorer = llama_cpp.Llama(str(file), verbose=False, logits_all=True, **options)

    def prefill(self, ids: Sequence[int]) -> float:
        self.model.reset()
        began = time.perf_counter()
        self.model.eval(list(ids))
        return time.perf_counter() - began

    def decode(self, ids: Sequence[int], count: int) -> float:
        import numpy as np

        self.model.reset()
        self.model.eval(list(ids))
        pointer, vocab = self.model._ctx.get_logits, self.model.n_vocab()
        began = time.perf_counter()
        for _ in range(count):
            logits = np.ctypeslib.as_array(pointer(), shape=(vocab,))
            self.model.eval([int(logits.argmax())])
        return time.perf_counter() - began

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        self.scorer.reset()
        self.scorer.eval(list(ids))
        return torch.from_numpy(self.scorer.scores[: len(ids)].copy())


class Transformers:
    """`generate` as people call it."""

    def __init__(self, file: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.name = "transformers float32"
        self.model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
        self.bytes_per_token = sum(parameter.nbytes for parameter in self.model.parameters())

    def prefill(self, ids: Sequence[int]) -> float:
        with torch.inference_mode():
            began = time.perf_counter()
            self.model(torch.tensor([ids]), logits_to_keep=1)
            return time.perf_counter() - began

    def decode(self, ids: Sequence[int], count: int) -> float:
        prompt = torch.tensor([ids])
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        began = time.perf_counter()
        self.model.generate(prompt, max_new_tokens=1, **options)
        first = time.perf_counter() - began
        began = time.perf_counter()
        self.model.generate(prompt, max_new_tokens=count + 1, **options)
        return time.perf_counter() - began - first

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = self.model(torch.tensor([ids])).logits[0]
        return logits


@dataclass
class Measured:
    """Tokens/s of one arm, round by round."""

    prefill: list[float]
    decode: list[float]


def make_arms(options: argparse.Namespace, folder: Path) -> list[Arm]:
    import llm_journey
    from llm_journey.app.exports import export_model
    from llm_journey.datasets.catalog import resolve

    model = llm_journey.load(MODEL)
    file = next(iter(sorted(resolve(MODEL).glob("*.gguf"))))
    arms: list[Arm] = [Ours(model.decoder, weights) for weights in ("int4", "int8")]
    if importlib.util.find_spec("llama_cpp") is not None:
        say("writing the Q8_0 file")
        export_model(MODEL, "gguf", folder / "q8", type="q8_0")
        arms.append(LlamaCpp(file, "Q4_1", options.threads))
        arms.append(LlamaCpp(next((folder / "q8").glob("*.gguf")), "Q8_0", options.threads))
    else:
        say("llama.cpp is left out: llama_cpp is not installed here")
    if not options.without_transformers:
        arms.append(Transformers(file))
    return arms


def bandwidth() -> float:
    """Bytes/s of one pass over an array that no cache holds."""
    large = torch.ones(64_000_000)
    best = math.inf
    for _ in range(5):
        began = time.perf_counter()
        large.sum()
        best = min(best, time.perf_counter() - began)
    return large.nbytes / best


def measure(
    arms: Sequence[Arm], ids: Sequence[int], options: argparse.Namespace
) -> tuple[dict[str, Measured], list[float]]:
    found = {arm.name: Measured([], []) for arm in arms}
    bandwidths = []
    for arm in arms:  # the first call of everything is not measured
        arm.prefill(ids[:PREFILL])
        arm.decode(ids[:PROMPT], 4)
    for number in range(options.rounds):
        bandwidths.append(bandwidth())
        for arm in arms[:: 1 if number % 2 == 0 else -1]:
            found[arm.name].prefill.append(PREFILL / arm.prefill(ids[:PREFILL]))
            found[arm.name].decode.append(options.tokens / arm.decode(ids[:PROMPT], options.tokens))
        line = ", ".join(f"{name} {each.prefill[-1]:.0f}/{each.decode[-1]:.1f}" for name, each in found.items())
        say(f"round {number + 1}/{options.rounds}: prefill/decode tokens/s {line}")
    return found, bandwidths


def perplexities(arms: Sequence[Arm], ids: Sequence[int]) -> dict[str, float]:
    """exp of the mean loss of every token but a window's first."""
    windows = [ids[start : start + WINDOW] for start in range(0, len(ids) - WINDOW + 1, WINDOW)]
    found = {}
    for arm in arms:
        losses = []
        for window in windows:
            logits = arm.logits(window)[:-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:])).item())
        found[arm.name] = math.exp(sum(losses) / len(losses))
        say(f"{arm.name}: perplexity {found[arm.name]:.4f}")
    return found


def compare(found: dict[str, Measured], scores: dict[str, float]) -> list[Figure]:
    """Ours over each peer that it is meant to replace."""
    pairs = [("ours int4", "llama.cpp Q4_1"), ("ours int8", "llama.cpp Q8_0")]
    pairs += [("ours int4", "llama.cpp Q8_0"), ("ours int4", "transformers float32")]
    figures = []
    for mine, other in pairs:
        if other in found:
            name = f"{mine} / {other}"
            figures.append(ratio(name, "decode", found[mine].decode, found[other].decode))
            figures.append(ratio(name, "prefill of 512", found[mine].prefill, found[other].prefill))
            if scores:
                figures.append(Figure(name, "perplexity", "ratio", [scores[mine] / scores[other]]))
    return figures


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of a decode slice")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--perplexity-tokens", type=int, default=8192, help="0: leave it out")
    parser.add_argument("--text", help="a text file (default: wikitext-2's test part)")
    parser.add_argument("--without-transformers", action="store_true")
    shared.add_options(parser)
    return parser.parse_args()


def main() -> None:
    options = parse()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(options.threads)
    import llm_journey
    from llm_journey.datasets.catalog import resolve

    path = Path(options.text) if options.text else resolve("wikitext-2") / "test.txt"
    text = path.read_text(encoding="utf-8")
    ids = llm_journey.load(MODEL).tokenizer.encode(text[: 8 * max(options.perplexity_tokens, 4 * PREFILL)])
    with tempfile.TemporaryDirectory() as folder:
        arms = make_arms(options, Path(folder))
        found, bandwidths = measure(arms, ids, options)
        scores = perplexities(arms, ids[: options.perplexity_tokens]) if options.perplexity_tokens else {}
    figures = [Figure("this machine", "bandwidth of a read", "GB/s", [value / 1e9 for value in bandwidths])]
    for arm in arms:
        each = found[arm.name]
        figures.append(Figure(arm.name, "decode", "tokens/s", each.decode))
        figures.append(Figure(arm.name, "prefill of 512", "tokens/s", each.prefill))
        shares = [speed * arm.bytes_per_token / limit for speed, limit in zip(each.decode, bandwidths, strict=True)]
        figures.append(Figure(arm.name, "share of the bandwidth limit", "ratio", shares))
    figures += [
        Figure(name, f"perplexity, {options.perplexity_tokens:,} tokens", "", [value]) for name, value in scores.items()
    ]
    shared.report("decode", [*figures, *compare(found, scores)], options)


if __name__ == "__main__":
    main()
