"""What few bits cost, method by method: size, memory, perplexity, KL to float32, agreement, tokens a second.

    python benchmarks/compression.py                              # the table for SmolLM2, and its two claims
    python benchmarks/compression.py --model RUN --parts judge llama.cpp
    python benchmarks/compression.py --parts whole                # int8 on the whole text, once
    python benchmarks/compression.py --parts speed --rounds 5     # on an idle machine
    python benchmarks/compression.py --parts table judge whole speed --append

Every arm is a quantized folder, made once and kept in --work with the figures of each window, so that a run that was
cut off goes on where it was. A catalog model is measured
on wikitext-2's test part, a run on the validation part of its own corpus. GPTQ is fitted to the training part of the
article summaries. Intervals are 95%, by a bootstrap over windows; differences are taken window by window.

Parts
  table      every arm: bits a weight, file size, perplexity and its change, mean KL, same most likely token
  judge      GPTQ's KL minus round-to-nearest's at the same bits must exclude 0 from below
  llama.cpp  our int4 beside llama.cpp's Q4_1 of the same model, read back (made by llama.cpp's own quantizer where
             llama-cpp-python is installed, else by our writer of that format). Its embedding and head take 8.5 bits a
             weight, ours 8 and a scale a row: with ours beside its layers, at equal bits, our KL must be no higher
  whole      int8 on the whole text: its perplexity within 0.5% of float32's
  speed      decoded tokens a second and peak memory, each arm in a process of its own, alternated
"""

import argparse
import gc
import importlib.util
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_journey.app.language_model import LanguageModel, open_model
from llm_journey.app.processes import run_measured
from llm_journey.app.quantize import QuantizeConfig, Texts, bits, quantized_decoder
from llm_journey.checkpoint.gguf.model import build_decoder, read_gguf, write_gguf
from llm_journey.checkpoint.model_folder import load_decoder, save_model
from llm_journey.core import ledger
from llm_journey.datasets.catalog import CATALOG, resolve
from llm_journey.evaluation.on_text import TextComparison, WindowFigures, bootstrap_interval, compare_window
from llm_journey.training.observer import Observer

LEDGER = Path(__file__).with_name("ledger.jsonl")
SMOLLM2 = "smollm2-135m-instruct"
PARTS = ("table", "judge", "llama.cpp", "whole", "speed")
ARMS: dict[str, QuantizeConfig] = {
    "int8": QuantizeConfig(method="int8"),
    "dynamic-int8": QuantizeConfig(method="dynamic-int8"),
    "int4": QuantizeConfig(method="int4"),
    "int4 symmetric 128": QuantizeConfig(method="int4", group_size=128, symmetric=True),
    "nf4": QuantizeConfig(method="nf4"),
    "gptq": QuantizeConfig(method="gptq"),
    "gptq symmetric 128": QuantizeConfig(method="gptq", group_size=128, symmetric=True),
    "int4 3 bits": QuantizeConfig(method="int4", bits=3),
    "gptq 3 bits": QuantizeConfig(method="gptq", bits=3),
}
# SmolLM2 lies on Q4_1's grid, where four bits in groups of 32 lose nothing: it is judged off that grid.
JUDGED = {
    SMOLLM2: (("gptq 3 bits", "int4 3 bits"), ("gptq symmetric 128", "int4 symmetric 128")),
    "": (("gptq", "int4"), ("gptq symmetric 128", "int4 symmetric 128"), ("gptq 3 bits", "int4 3 bits")),
}
LLAMA_CPP, SAME_BITS = "Q4_1", "Q4_1 at our bits"
WHOLE = "int8, whole text"
PROMPT, NEW_TOKENS = 32, 96


@dataclass(frozen=True)
class Figure:
    arm: str
    metric: str
    value: float
    unit: str
    spread: tuple[float, float] | None
    n: int


class Bench:
    """The model, its text, and the folder in which arms and figures are kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model: LanguageModel = open_model(options.model, precision="float32")
        self.work = Path(options.work) / self.model.name
        self.work.mkdir(parents=True, exist_ok=True)
        self.texts = Texts(self.model, "wiki-summaries", Observer())
        self._kept = self.work / "windows.jsonl"
        self.windows_bt = self._windows()

    def _windows(self) -> Tensor:
        """(B, T) ids of the whole text, cut into windows; what is left over is not measured."""
        length = min(self.options.window, self.model.config.context)
        if self.options.model in CATALOG:
            text = (resolve("wikitext-2") / "test.txt").read_text(encoding="utf-8")
            ids = self.model.tokenizer.encode(text)
        else:
            ids = [token for document in self.texts.documents("validation") for token in document]
        return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)

    @property
    def num_windows(self) -> int:
        length: int = self.windows_bt.shape[1]
        return min(len(self.windows_bt), int(self.options.tokens) // length)

    @property
    def arms(self) -> list[str]:
        """Those that were asked for."""
        return [arm for arm in ARMS if arm in self.options.arms]

    def folder(self, arm: str) -> Path:
        """The arm's folder, made if it is not there."""
        path = self.work / arm.replace(" ", "-")
        if not (path / "config.json").is_file():
            say(f"{arm}: choosing its codes")
            began = time.monotonic()
            calibration_bt = self.texts.calibration_bt if ARMS[arm].method == "gptq" else torch.empty(0, 0)
            decoder = quantized_decoder(self.model.decoder, ARMS[arm], calibration_bt, _Said())
            generation = dict(self.model.defaults) | {"eos_token_id": sorted(self.model.stop_ids)}
            save_model(decoder, path, tokenizer=self.model.tokenizer, generation=generation)
            say(f"{arm}: made in {time.monotonic() - began:.0f} s")
        return path

    def compared(self, arms: Sequence[str], num_windows: int) -> dict[str, TextComparison]:
        """The figures of each arm on the first windows; those that are missing are measured, all arms side by side."""
        known = self._read()
        missing = [arm for arm in arms if any((arm, index) not in known for index in range(num_windows))]
        decoders = {arm: self._open(arm) for arm in missing}
        began, todo = time.monotonic(), 0
        with self._kept.open("a", encoding="utf-8") as file, torch.inference_mode():
            for index in range(num_windows):
                behind = [arm for arm in missing if (arm, index) not in known]
                if not behind:
                    continue
                ids_t = self.windows_bt[index]
                reference_tv = self.model.decoder(ids_t[None])[0]
                for arm in behind:
                    known[arm, index] = found = compare_window(ids_t, reference_tv, decoders[arm](ids_t[None])[0])
                    row = {"arm": arm, "window": index, "length": len(ids_t), **found.describe()}
                    file.write(json.dumps(row) + "\n")
                file.flush()
                todo += 1
                say(f"window {index + 1} of {num_windows}: {len(behind)} arms, {time.monotonic() - began:.0f} s so far")
        del decoders
        gc.collect()
        return {arm: TextComparison([known[arm, index] for index in range(num_windows)]) for arm in arms}

    def _open(self, arm: str) -> Callable[[Tensor], Tensor]:
        if arm in (LLAMA_CPP, SAME_BITS):
            theirs = build_decoder(read_gguf(q4_1_file(self)))
            if arm == SAME_BITS:
                ours, _ = load_decoder(self.folder("int4"))
                theirs.embed, theirs.head = ours.embed, ours.head
            return theirs
        return load_decoder(self.folder("int8" if arm == WHOLE else arm))[0]

    def _read(self) -> dict[tuple[str, int], WindowFigures]:
        found: dict[tuple[str, int], WindowFigures] = {}
        lines = self._kept.read_text(encoding="utf-8").splitlines() if self._kept.is_file() else []
        for line in lines:
            row = json.loads(line)
            arm, window, length = (row.pop(key) for key in ("arm", "window", "length"))
            if length == self.windows_bt.shape[1]:
                found[arm, window] = WindowFigures(**row)
        return found


class _Said(Observer):
    def progress(self, done: float, total: float | None, unit: str) -> None:
        say(f"  {done:g} of {total:g} {unit}")


def table(bench: Bench) -> Iterator[Figure]:
    """Every arm on the first --tokens."""
    found = bench.compared(bench.arms, bench.num_windows)
    plain = 4 * sum(parameter.numel() for parameter in bench.model.decoder.parameters()) / 1e6
    yield Figure("float32", "weights", plain, "MB", None, 1)
    first = next(iter(found.values()))
    yield Figure("float32", "perplexity", first.reference_perplexity, "perplexity", None, len(first.windows))
    for arm, comparison in found.items():
        yield from arm_figures(bench, arm, comparison)


def arm_figures(bench: Bench, arm: str, comparison: TextComparison) -> Iterator[Figure]:
    count = len(comparison.windows)
    change, interval = comparison.perplexity_change()
    kl = bootstrap_interval([each.kl for each in comparison.windows])
    same = bootstrap_interval([each.same for each in comparison.windows])
    if arm in ARMS:
        folder = bench.folder(arm)
        yield Figure(arm, "bits a weight", bits(load_decoder(folder)[0]), "bits", None, 1)
        yield Figure(arm, "weights", (folder / "model.safetensors").stat().st_size / 1e6, "MB", None, 1)
    yield Figure(arm, "perplexity", comparison.perplexity, "perplexity", None, count)
    yield Figure(arm, "perplexity, change from float32", change, "share", interval, count)
    yield Figure(arm, "mean KL to float32", comparison.mean_kl, "nats", kl, count)
    yield Figure(arm, "same most likely token", comparison.greedy_agreement, "share", same, count)


def judge(bench: Bench) -> Iterator[Figure]:
    """GPTQ against round-to-nearest on the same grid."""
    pairs = JUDGED[SMOLLM2 if bench.options.model == SMOLLM2 else ""]
    found = bench.compared(list(dict.fromkeys(arm for pair in pairs for arm in pair)), bench.num_windows)
    for fitted, rounded in pairs:
        difference, interval = found[fitted].kl_difference(found[rounded])
        yield Figure(f"{fitted} / {rounded}", "mean KL, difference", difference, "nats", interval, bench.num_windows)
        require(interval[1] < 0, f"{fitted}: KL below {rounded}'s, {difference:.3g} {interval}")


def beside_llama_cpp(bench: Bench) -> Iterator[Figure]:
    """Four bits and a minimum in groups of 32: the same format, made by both."""
    found = bench.compared(["int4", "gptq", LLAMA_CPP, SAME_BITS], bench.num_windows)
    for theirs in (LLAMA_CPP, SAME_BITS):
        yield from arm_figures(bench, theirs, found[theirs])
        for ours in ("int4", "gptq"):
            difference, interval = found[ours].kl_difference(found[theirs])
            arm = f"{ours} / {theirs}"
            yield Figure(arm, "mean KL, difference", difference, "nats", interval, bench.num_windows)
            if theirs == SAME_BITS:
                require(interval[0] <= 0, f"{ours}: KL no higher than {theirs}, {difference:.3g} {interval}")


def q4_1_file(bench: Bench) -> Path:
    """The model as Q4_1; embedding and head Q8_0, where ours are int8 by the row."""
    path = bench.work / "q4_1.gguf"
    if path.is_file():
        return path
    if importlib.util.find_spec("llama_cpp") is None:
        say("llama.cpp: not installed, the file is our writer's")
        write_gguf(bench.model.decoder, bench.model.tokenizer, path, type="q4_1")
        return path
    import llama_cpp

    whole = bench.work / "f16.gguf"
    write_gguf(bench.model.decoder, bench.model.tokenizer, whole, type="f16")
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1
    parameters.output_tensor_type = parameters.token_embedding_type = llama_cpp.GGML_TYPE_Q8_0
    failed = llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), parameters)
    require(not failed, f"llama.cpp {llama_cpp.__version__} quantizes the model itself")
    return path


def whole(bench: Bench) -> Iterator[Figure]:
    """int8 on every window of the text."""
    comparison = bench.compared([WHOLE], len(bench.windows_bt))[WHOLE]
    yield from arm_figures(bench, WHOLE, comparison)
    change, _ = comparison.perplexity_change()
    require(abs(change) <= 0.005, f"int8: perplexity within 0.5% of float32's on {bench.windows_bt.numel()} tokens")


def speed(bench: Bench) -> Iterator[Figure]:
    """Each arm in turn, in a process of its own; the order turns about from round to round."""
    sources = {"float32": bench.options.model} | {arm: str(bench.folder(arm)) for arm in bench.arms}
    measured: dict[str, list[dict[str, float]]] = {arm: [] for arm in sources}
    for index in range(bench.options.rounds):
        for arm in list(sources)[:: -1 if index % 2 else 1]:
            done = run_measured([__file__, "--child", sources[arm]])
            if done.code or done.peak_bytes is None:
                sys.exit(f"{arm}: {done.err or 'this system does not tell how much memory a process held'}")
            measured[arm].append(json.loads(done.out) | {"peak": done.peak_bytes / 1e6})
            say(f"round {index + 1}: {arm}: {measured[arm][-1]}")
    for arm, rounds in measured.items():
        for key, metric, unit in (("decode", "decode", "tok/s"), ("peak", "peak memory", "MB")):
            values = [each[key] for each in rounds]
            spread = (min(values), max(values))
            yield Figure(arm, metric, statistics.median(values), unit, spread, len(values))


def child(source: str) -> None:
    """One arm: open it as `journey generate` does, write some tokens, say how fast."""
    from llm_journey.generation.sampling import SamplingConfig

    model = open_model(source, precision="float32")
    ids = list(range(1000, 1000 + PROMPT)) if model.config.vocab_size > 2000 else list(range(PROMPT))
    request = model.engine.submit(ids, SamplingConfig(temperature=0, max_new_tokens=NEW_TOKENS))
    times = []
    while model.engine.busy:
        model.engine.step()
        times.append(time.perf_counter())
    decode = (len(request.tokens) - 1) / (times[-1] - times[len(times) - len(request.tokens)])
    print(json.dumps({"decode": decode}))


def require(holds: bool, claim: str) -> None:
    """Say whether a claim holds; the benchmark fails at its end where one does not."""
    say(f"{'ok' if holds else 'FAILED'}: {claim}")
    if not holds:
        FAILED.append(claim)


FAILED: list[str] = []


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rows_of(figures: Sequence[Figure], options: argparse.Namespace) -> list[dict[str, Any]]:
    left_out = ("append", "json", "work", "child")
    config = {key: value for key, value in vars(options).items() if key not in left_out}
    given = shlex.join(Path(word).name if "/" in word else word for word in sys.argv[1:])
    return [
        ledger.row(
            benchmark="compression",
            arm=f"{Path(options.model).name}, {figure.arm}",
            metric=figure.metric,
            value=figure.value,
            unit=figure.unit,
            command=f"python benchmarks/compression.py {given}".strip(),
            config=config | {"model": Path(options.model).name},
            spread=figure.spread,
            n=figure.n,
            seed=0,
        )
        for figure in figures
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, help="a catalog name, or a run that was trained on the summaries")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["table", "judge"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--tokens", type=int, default=32_000, help="how much of the text, save for `whole`")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="of `speed`")
    parser.add_argument("--work", default=".compression", help="where folders and figures of windows are kept")
    parser.add_argument("--append", action="store_true", help="append the figures to benchmarks/ledger.jsonl")
    parser.add_argument("--json", action="store_true", help="print the ledger rows instead of a table")
    parser.add_argument("--child", metavar="MODEL", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    # Python looks for modules beside a script first, and would take benchmarks/gguf.py for the package `gguf`.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    if options.child:
        child(options.child)
        return
    bench = Bench(options)
    work = {"table": table, "judge": judge, "llama.cpp": beside_llama_cpp, "whole": whole, "speed": speed}
    figures = [figure for part in PARTS if part in options.parts for figure in work[part](bench)]
    rows = rows_of(figures, options)
    if options.append:
        ledger.append(LEDGER, rows)
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print(f"{'arm':34} {'metric':34} {'value':>11} {'low':>11} {'high':>11}  n")
        for figure in figures:
            low, high = figure.spread or (figure.value, figure.value)
            numbers = f"{figure.value:11.5g} {low:11.5g} {high:11.5g}"
            print(f"{figure.arm:34} {figure.metric:34} {numbers}  {figure.n}  {figure.unit}")
    if FAILED:
        sys.exit(1)


if __name__ == "__main__":
    main()
