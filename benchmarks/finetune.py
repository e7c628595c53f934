"""LoRA on chats side by side with peft in transformers' Trainer: tokens a second, peak memory, and the losses.

    python benchmarks/finetune.py --rounds 3 --append

Both sides train SmolLM2-135M-Instruct in float32 from the same folder, on the same examples in the same batches
(chats of `wiki-questions`): an adapter of rank 8 beside every linear layer of the blocks, AdamW, gradients clipped at
1.
They take turns, each in a process of its own; a round counts tokens over the seconds of its steps, those of the
chats, padding left out. The first losses must agree: both begin as the same model.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from llm_journey.app.exports import export_model
from llm_journey.app.processes import run_measured
from llm_journey.checkpoint.decoders import read_decoder
from llm_journey.core import ledger
from llm_journey.datasets.chat import ChatCounts, read_chats
from llm_journey.datasets.made_chats import made_rows
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.chat_training import chat_examples

MODEL = "smollm2-135m-instruct"
PEERS = Path(__file__).with_name("peers")
SIDES = {"ours": PEERS / "our_trainer.py", "peft": PEERS / "peft_trainer.py"}
SETTINGS = {"rank": 8, "alpha": 16, "learning_rate": 2e-4, "warm": 2}


def main() -> None:
    """Run the rounds, print their figures, append ledger rows when asked to. Exit code 1 below 1.3 times peft's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="of a round, for each side")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--append", action="store_true", help="append rows to benchmarks/ledger.jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        rows, ratio = measure(Path(scratch), options.rounds, options.steps, options.batch)
    if options.append:
        ledger.append(Path(__file__).with_name("ledger.jsonl"), rows)
    for row in rows:
        print(f"{row['arm']:12} {row['metric']:28} {row['value']:.4g} {row['unit']}  {row['spread'] or ''}")
    if ratio < 1.3:
        sys.exit(f"{ratio:.2f} times peft's throughput; 1.3 are wanted")


def measure(folder: Path, rounds: int, steps: int, batch: int) -> tuple[list[dict[str, Any]], float]:
    """Ledger rows, and the median ratio of throughputs."""
    export_model(MODEL, "hf", folder / "model")
    batches = make_batches(read_decoder(folder / "model").tokenizer, steps + int(SETTINGS["warm"]), batch)
    (folder / "examples.json").write_text(json.dumps({"batches": batches, **SETTINGS}), encoding="utf-8")
    tokens = [sum(len(each["ids"]) for each in one) for one in batches][int(SETTINGS["warm"]) :]
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    peaks: dict[str, list[float]] = {side: [] for side in SIDES}
    losses: dict[str, list[float]] = {}
    for number in range(rounds):
        for side in list(SIDES)[:: 1 if number % 2 else -1]:
            arguments = [str(folder / "model"), str(folder / "examples.json"), str(folder / f"{side}.json")]
            done = run_measured([str(SIDES[side]), *arguments], seconds=1200)
            if done.code:
                sys.exit(f"{side} failed: {done.err[-2000:]}")
            found = json.loads((folder / f"{side}.json").read_text(encoding="utf-8"))
            rates[side].append(sum(tokens) / sum(found["seconds"]))
            peaks[side].append(float(done.peak_bytes or 0))
            losses[side] = found["losses"]
    gap = abs(losses["ours"][0] - losses["peft"][0])
    if gap > 1e-3:
        sys.exit(f"the first losses differ by {gap:.1e}: the two sides do not train the same")
    ratios = [ours / theirs for ours, theirs in zip(rates["ours"], rates["peft"], strict=True)]
    memory = [ours / theirs for ours, theirs in zip(peaks["ours"], peaks["peft"], strict=True)]
    measured = [(side, "tokens per second", rates[side], "tokens/s") for side in SIDES]
    measured += [(side, "peak memory", peaks[side], "bytes") for side in SIDES]
    measured += [("ours / peft", "tokens per second, ratio", ratios, "ratio")]
    measured += [("ours / peft", "peak memory, ratio", memory, "ratio")]
    rows = [
        ledger.row(
            benchmark="finetune-throughput",
            arm=arm,
            metric=metric,
            value=statistics.median(values),
            unit=unit,
            n=len(values),
            spread=[min(values), max(values)],
            seed=0,
            command=f"python benchmarks/finetune.py --rounds {rounds} --append",
            config={**SETTINGS, "steps": steps, "batch": batch, "model": MODEL},
        )
        for arm, metric, values, unit in measured
    ]
    return rows, statistics.median(ratios)


def make_batches(tokenizer: Tokenizer, count: int, size: int) -> list[list[dict[str, Any]]]:
    """Batches of the first chats."""
    found = []
    for chat in read_chats(made_rows("wiki-questions"), ChatCounts()):
        (example,) = chat_examples(tokenizer, chat.messages)
        found.append({"ids": example.ids, "trained": [int(each) for each in example.trained]})
        if len(found) == count * size:
            break
    return [found[start : start + size] for start in range(0, len(found), size)]


if __name__ == "__main__":
    main()
