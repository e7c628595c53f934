"""What a teacher's distributions add to the tokens themselves: small students, with a teacher and without, three seeds.

    journey quickstart
    python benchmarks/distillation.py --append

The teacher is the quickstart's run; every arm is the recipe `distill` with as many steps on the same data, in the same
order. "new" students have a third of the teacher's parameters and begin with random weights; those of "two layers" are
the teacher without its middle block. Finished runs are used as they are. Exit code 1 where a teacher does not help.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from llm_journey.app.runs import TrainedRun, find_run, has_run
from llm_journey.core import ledger
from llm_journey.core.config import dump
from llm_journey.training.recipe import load_recipe
from llm_journey.training.run_folder import RunFolder

_LAYERS = ["base=quickstart", "model={}", "distill.layers=2", "training.optimizer.muon_learning_rate=0.006"]
# Without the teacher's term the order of the data, the tokens and the steps stay what they are with it.
ARMS: dict[str, list[str]] = {
    "new, tokens alone": ["distill.weight=0.000001"],
    "new, with the teacher": [],
    "two layers, tokens alone": [*_LAYERS, "distill.weight=0.000001"],
    "two layers, with the teacher": _LAYERS,
}


def main() -> None:
    """Train or find the students, print their figures, append ledger rows when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--append", action="store_true", help="append rows to benchmarks/ledger.jsonl")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    means: dict[str, float] = {}
    for arm in options.arms:
        runs = [train(arm, seed) for seed in options.seeds]
        bits = [float(run.figures["bits_per_byte"]) for run in runs]
        means[arm] = statistics.mean(bits)
        print(f"{arm:30} {means[arm]:.4f} bits/byte ({min(bits):.4f} to {max(bits):.4f})")
        rows += arm_rows(arm, runs, bits)
    if options.append:
        ledger.append(Path(__file__).with_name("ledger.jsonl"), rows)
    for student in ("new", "two layers"):
        pair = [means.get(f"{student}, {kind}") for kind in ("with the teacher", "tokens alone")]
        if None not in pair and pair[0] >= pair[1]:  # type: ignore[operator]
            sys.exit(f"{student}: the teacher does not help ({pair[0]:.4f} with it, {pair[1]:.4f} without)")


def train(arm: str, seed: int) -> TrainedRun:
    """The finished run of an arm and a seed; trained where it is not there."""
    name = f"distill-{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
    if not has_run(name) or find_run(name).status != "finished":
        settings = [f"--set={each}" for each in (*ARMS[arm], f"seed={seed}")]
        arguments = [name, "--resume"] if has_run(name) else ["distill", "--name", name, *settings]
        subprocess.run(
            [sys.executable, "-m", "llm_journey", "train", *arguments], check=True, stdout=subprocess.DEVNULL
        )
    return find_run(name)


def arm_rows(arm: str, runs: list[TrainedRun], bits: list[float]) -> list[dict[str, Any]]:
    """Ledger rows: the mean over the seeds with the least and the largest, and the size of the student."""
    recipe, made_by = load_recipe(runs[0].directory), RunFolder.open(runs[0].directory).information["lineage"]
    measured = [
        ("bits per byte", statistics.mean(bits), "bits/byte", [min(bits), max(bits)]),
        ("parameters", float(runs[0].figures["parameters"]), "parameters", None),
    ]
    rows = [
        ledger.row(
            benchmark="distillation",
            arm=arm,
            metric=metric,
            value=value,
            unit=unit,
            n=len(runs),
            spread=spread,
            seed=recipe.seed,
            command="python benchmarks/distillation.py --append",
            config=dump(recipe),
        )
        for metric, value, unit, spread in measured
    ]
    return [{**row, **{key: made_by[key] for key in ("commit", "hardware", "versions")}} for row in rows]


if __name__ == "__main__":
    main()
