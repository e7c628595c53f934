"""Model FLOPs utilisation of training, against this machine's own matrix-product peak measured in the same run.

    python benchmarks/mfu.py

512 wide, 8 layers, context 512, 4,096 tokens of vocabulary. A step is everything that training does: loading, forward,
backward, clipping, the optimizer. The peak is the best of several products of 2,048 x 2,048 matrices, taken again
before and after each arm, in the arm's precision; an arm is judged by the larger of the two. FLOPs are those of
model.cost, which leaves out norms, activations and the optimizer's own arithmetic.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_journey.core import ledger
from llm_journey.core.config import dump
from llm_journey.datasets.shards import TokenShards, write_shards
from llm_journey.model.cost import training_flops_per_token
from llm_journey.model.decoder import Decoder
from llm_journey.training.loaders import make_loader
from llm_journey.training.precision import Precision
from llm_journey.training.recipe import Recipe, recipe_from
from llm_journey.training.throughput import peak_flops
from llm_journey.training.trainer import Trainer

RECIPE: dict[str, Any] = {
    "name": "mfu",
    "data": {"source": "random-tokens"},
    "model": {
        "vocab_size": 4096,
        "width": 512,
        "num_layers": 8,
        "num_heads": 8,
        "context": 512,
        "qk_norm": True,
        "tied_embeddings": False,
    },
    "training": {"batch_size": 4, "steps": 6, "order": "windows"},
}
ARMS = ("eager, adamw, fp32", "compiled, adamw, fp32", "eager, muon, fp32", "eager, muon, bf16")


def main() -> None:
    """Measure every arm in turn, `--repeats` times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS, action="append", help="only this arm (may be given again)")
    parser.add_argument("--append", action="store_true", help="append rows to benchmarks/ledger.jsonl")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    command = shlex.join(["python", "benchmarks/mfu.py", *sys.argv[1:]])
    native = Precision("bf16", torch.device("cpu")).native
    arms = tuple(options.arm or (arm for arm in ARMS if native or not arm.endswith("bf16")))
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(options.repeats):
        for arm in arms:
            found[arm].append(measure(arm_recipe(arm)))
            print(f"{arm}: {found[arm][-1]:.3f}", file=sys.stderr, flush=True)
    rows = [
        ledger.row(
            benchmark="mfu",
            arm=arm,
            metric="MFU, 512 wide, 8 layers, context 512",
            value=statistics.median(values),
            unit="share of the peak in its precision",
            spread=(min(values), max(values)),
            n=len(values),
            command=command,
            config=dump(arm_recipe(arm)),
        )
        for arm, values in found.items()
    ]
    if options.append:
        ledger.append(Path(__file__).with_name("ledger.jsonl"), rows)
    for row in rows:
        low, high = row["spread"]
        print(json.dumps(row) if options.json else f"{row['arm']:20} {row['value']:.3f}  ({low:.3f} to {high:.3f})")


def arm_recipe(arm: str) -> Recipe:
    """The recipe of an arm such as "compiled, muon, fp32"."""
    mode, optimizer, precision = arm.split(", ")
    choices = {"compile": mode == "compiled", "optimizer": {"name": optimizer}, "precision": precision}
    training = {**RECIPE["training"], **choices}
    return recipe_from({**RECIPE, "training": training}, "benchmark")


def measure(recipe: Recipe) -> float:
    """FLOPs of the median step after the first (which compiles), as a share of the peak."""
    device = torch.device("cpu")
    precision = Precision(recipe.training.precision, device)
    before = peak_flops(device, precision.name)
    with tempfile.TemporaryDirectory() as temporary:
        loader = make_loader(recipe, random_shards(Path(temporary)))
        trainer = Trainer(recipe, Decoder(recipe.model).train(), loader, precision)
        steps = [trainer.step() for _ in range(recipe.training.steps or 0)]
    torch.compiler.reset()
    rate = steps[0].tokens / statistics.median(step.seconds for step in steps[1:])
    return (
        rate
        * training_flops_per_token(recipe.model, recipe.model.context)
        / max(before, peak_flops(device, precision.name))
    )


def random_shards(directory: Path) -> TokenShards:
    """Random tokens; speed does not depend on what they are."""
    ids = np.random.default_rng(0).integers(1, 4096, size=200_000).tolist()
    write_shards(["x"], lambda _: [ids], directory, split="train", vocab_size=4096, end_id=0)
    return TokenShards.open(directory, "train")


if __name__ == "__main__":
    main()
