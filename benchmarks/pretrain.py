"""Pretraining side by side with nanoGPT's CPU recipe on its own data, in one run.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/pretrain.py --nanogpt nanoGPT --text tinyshakespeare/input.txt

Two questions. "quality": in how much of nanoGPT's training time does our recipe, with no more parameters, reach the
validation loss that nanoGPT ends with? "speed": at the very same architecture and batch, how do tokens per second
compare? Both models are scored alike: the whole validation split (the last 10% of the text) in consecutive windows of
the model's own context, every character a target once. Our settings were chosen by looking at this same loss, as
nanoGPT's were. nanoGPT's clock counts its iterations only, an iteration that also evaluates at the median of the
others; ours counts steps only. nanoGPT computes in float32 on a CPU, whatever its dtype. Ours takes what
training.precision=auto takes: bf16 where the processor multiplies in it, else float32; "speed" measures float32 too.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_journey.core import ledger
from llm_journey.core.config import dump
from llm_journey.datasets.shards import TokenShards, write_shards
from llm_journey.model.cost import count_parameters
from llm_journey.model.decoder import Decoder
from llm_journey.training.loaders import make_loader
from llm_journey.training.precision import Precision, pick_precision
from llm_journey.training.recipe import Recipe, recipe_from
from llm_journey.training.trainer import Trainer

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
RESULT = "nanogpt.json"
SPEED_ROUNDS, SPEED_SLICE = 30, 1.5
ITERATION = re.compile(r"^iter (\d+): loss [\d.naninf]+, time ([\d.]+)ms", re.MULTILINE)
# The CPU recipe of nanoGPT's README, save that every iteration is timed.
NANOGPT_ARGUMENTS = [
    *("config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1"),
    *("--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128"),
    *("--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"),
]
TOKENS_A_STEP = 12 * 64
OURS: dict[str, Any] = {
    "model": {
        "width": 128,
        "num_layers": 4,
        "num_heads": 4,
        "context": 64,
        "qk_norm": True,
        "tied_embeddings": False,
        "mlp_width": 320,
    },
    "training": {
        "batch_size": 12,
        "tokens": 200_000,
        "order": "windows",
        "optimizer": {
            "learning_rate": 3e-3,
            "embedding_learning_rate": 0.03,
            "muon_learning_rate": 0.02,
            "betas": [0.8, 0.98],
        },
        "schedule": {"name": "wsd", "warmup": 0.02, "decay": 0.8},
    },
}
SAME: dict[str, Any] = {
    "model": {
        "width": 128,
        "num_layers": 4,
        "num_heads": 4,
        "context": 64,
        "norm": "layernorm",
        "norm_epsilon": 1e-5,
        "positions": "learned",
        "mlp": "gelu",
        "tied_embeddings": True,
    },
    "training": {
        "batch_size": 12,
        "steps": 2000,
        "order": "windows",
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.1, "betas": [0.9, 0.99]},
        "schedule": {"name": "cosine", "warmup": 0.05, "decay": 0.0, "final": 0.1},
    },
}


def main() -> None:
    """Run both parts, print the ratios, append ledger rows when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare's input.txt")
    parser.add_argument("--part", choices=("quality", "speed", "all"), default="all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--append", action="store_true", help="append rows to benchmarks/ledger.jsonl")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    command = f"python benchmarks/pretrain.py --nanogpt nanoGPT --text {options.text.parent.name}/{options.text.name}"
    command += f" --part {options.part} --repeats {options.repeats}"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        shards, validation, vocab_size = character_data(options.text, Path(temporary) / "shards")
        if options.part in ("quality", "all"):
            rows += quality(options, Path(temporary), shards, validation, vocab_size, command)
        if options.part in ("speed", "all"):
            rows += speed(options, Path(temporary), shards, vocab_size, command)
    if options.append:
        ledger.append(HERE / "ledger.jsonl", rows)
    for row in rows:
        if options.json:
            print(json.dumps(row))
        else:
            spread = f"  ({row['spread'][0]:.4g} to {row['spread'][1]:.4g}, n={row['n']})" if row["spread"] else ""
            print(f"{row['arm']:32} {row['metric']:28} {row['value']:.4f} {row['unit']}{spread}")


def quality(
    options: argparse.Namespace,
    temporary: Path,
    shards: TokenShards,
    validation: np.ndarray,
    vocab_size: int,
    command: str,
) -> list[dict[str, Any]]:
    """Final losses and training seconds, alternated."""
    recipe = make_recipe(OURS, vocab_size)
    results: dict[str, list[tuple[float, float]]] = {"nanogpt": [], "ours": []}
    parameters = 0
    for number in range(options.repeats):
        peer = run_nanogpt(options.nanogpt, options.text, temporary, NANOGPT_ARGUMENTS)
        parameters = peer["parameters"]
        results["nanogpt"].append((peer["validation_loss"], peer["training_seconds"]))
        results["ours"].append(train_ours(recipe, shards, validation, seed=number))
        say(f"quality {number + 1}/{options.repeats}: nanoGPT {results['nanogpt'][-1]}, ours {results['ours'][-1]}")
    assert count_parameters(recipe.model).total <= parameters, "our recipe must not have more parameters"
    make = row_maker("pretrain-quality", with_precision(recipe, automatic_precision()), command)
    ratios = [ours[1] / peer[1] for ours, peer in zip(results["ours"], results["nanogpt"], strict=True)]
    margins = [ours[0] - peer[0] for ours, peer in zip(results["ours"], results["nanogpt"], strict=True)]
    return [
        *(make(arm, "validation loss", [loss for loss, _ in found], "nats/char") for arm, found in results.items()),
        *(make(arm, "training time", [seconds for _, seconds in found], "s") for arm, found in results.items()),
        make("ours / nanogpt", "training time", ratios, "ratio"),
        make("ours - nanogpt", "validation loss", margins, "nats/char (0 or less: reached)"),
        make("ours", "parameters / nanogpt's", [count_parameters(recipe.model).total / parameters], "ratio"),
    ]


def speed(
    options: argparse.Namespace, temporary: Path, shards: TokenShards, vocab_size: int, command: str
) -> list[dict[str, Any]]:
    """Tokens per second at nanoGPT's own architecture and batch.

    The arms alternate second by second, since a shared host's speed changes within seconds: nanoGPT's process stands
    still while ours steps. Our package shortens OpenMP's spinning at barriers; the peer is measured without that and
    with it.
    """
    recipe = make_recipe(SAME, vocab_size)
    measured = run_nanogpt(options.nanogpt, options.text, temporary, [*NANOGPT_ARGUMENTS, "--max_iters=60"])
    assert measured["parameters"] == count_parameters(recipe.model).total, "the two architectures differ"
    arms = {f"ours, {name}": name for name in dict.fromkeys((automatic_precision(), "fp32"))}
    trainers = {}
    for arm, precision in arms.items():
        torch.manual_seed(0)
        trainers[arm] = make_trainer(recipe, shards, precision)
    settings = {"nanogpt": peer_environment(), "nanogpt, our GOMP_SPINCOUNT": dict(os.environ)}
    found: dict[str, list[float]] = {arm: [] for arm in (*settings, *arms)}
    with ExitStack() as stack:
        peers = {
            arm: stack.enter_context(PausedNanoGpt(options.nanogpt, options.text, temporary / arm, environment))
            for arm, environment in settings.items()
        }
        for number in range(SPEED_ROUNDS + 1):
            rates = {arm: peer.tokens_per_second(SPEED_SLICE) for arm, peer in peers.items()}
            rates |= {arm: tokens_per_second(trainer, SPEED_SLICE) for arm, trainer in trainers.items()}
            if number:  # the first round warms up
                for arm, rate in rates.items():
                    found[arm].append(rate)
                say(f"speed {number}/{SPEED_ROUNDS}: {', '.join(f'{arm} {rate:.0f}' for arm, rate in rates.items())}")
    rows = []
    for arm, values in found.items():
        make = row_maker("pretrain-speed", with_precision(recipe, arms.get(arm, "fp32")), command)
        rows.append(make(arm, "tokens per second", values, "tokens/s"))
        for peer in settings if arm in arms else ():
            ratios = [ours / theirs for ours, theirs in zip(values, found[peer], strict=True)]
            rows.append(make(f"{arm} / {peer}", "tokens per second", ratios, "ratio"))
    return rows


def with_precision(recipe: Recipe, precision: str) -> Recipe:
    """The recipe with what "auto" stands for here, so that a ledger row says what was run."""
    return replace(recipe, training=replace(recipe.training, precision=precision))


def row_maker(benchmark: str, recipe: Recipe, command: str) -> Any:
    """A function that makes a ledger row of (arm, metric, values, unit): the median, and the extremes as spread."""

    def make(arm: str, metric: str, values: list[float], unit: str) -> dict[str, Any]:
        return ledger.row(
            benchmark=benchmark,
            arm=arm,
            metric=metric,
            value=statistics.median(values),
            unit=unit,
            spread=(min(values), max(values)),
            n=len(values),
            command=command,
            config=dump(recipe),
        )

    return make


def character_data(text: Path, directory: Path) -> tuple[TokenShards, np.ndarray, int]:
    """Shards of the first 90% of the characters, the ids of the last 10%, and the number of different characters."""
    characters = text.read_text(encoding="utf-8")
    alphabet = {character: number for number, character in enumerate(sorted(set(characters)))}
    cut = int(len(characters) * 0.9)

    def encode(texts: list[str]) -> list[list[int]]:
        return [[alphabet[character] for character in one] for one in texts]

    vocab_size, end_id = len(alphabet), alphabet["\n"]
    write_shards([characters[:cut]], encode, directory, split="train", vocab_size=vocab_size, end_id=end_id)
    return TokenShards.open(directory, "train"), np.array(encode([characters[cut:]])[0]), vocab_size


def make_recipe(choices: dict[str, Any], vocab_size: int) -> Recipe:
    """A recipe whose data and tokenizer stand for the characters made above."""
    return recipe_from(
        {"name": "pretrain-benchmark", "data": {"source": "tinyshakespeare"}, **choices}, "benchmark"
    ).with_vocabulary(vocab_size)


def train_ours(recipe: Recipe, shards: TokenShards, validation: np.ndarray, seed: int) -> tuple[float, float]:
    """(validation loss, training seconds) of our recipe."""
    torch.manual_seed(seed)
    trainer = make_trainer(recipe, shards, automatic_precision())
    while trainer.progress < 1.0:
        trainer.step()
    trainer.model.eval()
    return evaluate(trainer.model, validation, recipe.model.context), trainer.position.seconds


def tokens_per_second(trainer: Trainer, seconds: float) -> float:
    """Tokens a second of the median step among those of the next `seconds`."""
    steps, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        steps.append(trainer.step())
    return steps[0].tokens / statistics.median(step.seconds for step in steps)


def make_trainer(recipe: Recipe, shards: TokenShards, precision: str) -> Trainer:
    """A trainer on the CPU."""
    return Trainer(recipe, Decoder(recipe.model).train(), make_loader(recipe, shards), Precision(precision, CPU))


def automatic_precision() -> str:
    """What training.precision=auto takes on this processor."""
    return pick_precision("auto", CPU)


def evaluate(model: Any, ids: np.ndarray, context: int) -> float:
    """Mean loss in nats over all of `ids` but the first, in consecutive windows of `context`."""
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, context * 64):
            stop = min(start + context * 64, len(ids) - 1)
            for inputs, targets in windows(ids, start, stop, context):
                logits = model(inputs)
                total += float(
                    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
                )
    return total / (len(ids) - 1)


def windows(ids: np.ndarray, start: int, stop: int, context: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and targets of positions `start` to `stop`: full windows as one batch, the rest as another."""
    full = (stop - start) // context * context
    parts = [(start, start + full, context), (start + full, stop, stop - start - full)]
    return [
        (torch.tensor(ids[a:b]).view(-1, width), torch.tensor(ids[a + 1 : b + 1]).view(-1, width))
        for a, b, width in parts
        if b > a
    ]


class PausedNanoGpt:
    """nanoGPT's own train.py in a process that runs only inside `tokens_per_second`."""

    def __init__(self, checkout: Path, text: Path, temporary: Path, environment: dict[str, str]) -> None:
        temporary.mkdir()
        arguments = [*NANOGPT_ARGUMENTS, "--max_iters=1000000", "--eval_interval=1000000"]
        self._process = subprocess.Popen(
            nanogpt_command(checkout, text, temporary, arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "PausedNanoGpt":
        self._reader.start()
        while not any(ITERATION.match(line) for line in self._lines):
            if self._process.poll() is not None:
                sys.exit("nanoGPT ended before its first iteration")
            time.sleep(0.1)
        self._process.send_signal(signal.SIGSTOP)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)

    def tokens_per_second(self, seconds: float) -> float:
        """Let it run for `seconds`; tokens a second of its median iteration, the one that was interrupted left out."""
        before = len(self._lines)
        self._process.send_signal(signal.SIGCONT)
        time.sleep(seconds)
        self._process.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
        matches = map(ITERATION.match, self._lines[before:])
        milliseconds = [float(match.group(2)) for match in matches if match]
        return TOKENS_A_STEP / statistics.median(milliseconds[1:]) * 1000


def run_nanogpt(checkout: Path, text: Path, temporary: Path, arguments: list[str]) -> dict[str, Any]:
    """nanoGPT's own train.py to its end: validation loss, parameters, training seconds."""
    command = nanogpt_command(checkout, text, temporary, arguments)
    completed = subprocess.run(command, capture_output=True, text=True, check=False, env=peer_environment())
    if completed.returncode:
        sys.exit(f"nanoGPT failed:\n{completed.stderr[-2000:]}")
    times = {int(number): float(milliseconds) for number, milliseconds in ITERATION.findall(completed.stdout)}
    settings = dict(argument[2:].split("=") for argument in arguments if argument.startswith("--"))
    typical = statistics.median(list(times.values())[50:])
    interval = int(settings.get("eval_interval", 250))
    counted = [typical if number % interval == 0 else value for number, value in times.items()]
    result = json.loads((temporary / RESULT).read_text(encoding="utf-8"))
    return {**result, "training_seconds": sum(counted) / 1000}


def nanogpt_command(checkout: Path, text: Path, temporary: Path, arguments: list[str]) -> list[str]:
    """The command line of the driver in peers/nanogpt.py."""
    driver = [sys.executable, "-u", str(HERE / "peers" / "nanogpt.py"), str(checkout.resolve()), str(text.resolve())]
    return [*driver, str(temporary / "work"), str(temporary / RESULT), *arguments]


def peer_environment() -> dict[str, str]:
    """Importing our package set an OpenMP default for this process; the peer keeps the library's own."""
    return {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
