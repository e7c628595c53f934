"""What the shipped recipes reach: trains each and notes its figures beside the baselines on the same held-out text.

    python benchmarks/recipes.py quickstart small --append
    python benchmarks/recipes.py --run quickstart-2 --append     # note a run that is there already

The time of a recipe is the whole command's: preparing (or finding) the data, training, saving, measuring, reporting.
Exit code 1 where a recipe does not reach what it promises (PROMISES).
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import llm_journey
from llm_journey.app.runs import TrainedRun, find_run
from llm_journey.core import ledger
from llm_journey.core.config import dump
from llm_journey.training.recipe import load_recipe
from llm_journey.training.run_folder import RunFolder

FIGURES = {
    "bits_per_byte": "bits/byte",
    "exact_match": "share of held-out pairs",
    "masked_accuracy": "share of masked tokens",
    "span_accuracy": "share of tokens cut out",
    "unigram_accuracy": "share of these tokens",
    "bigram_accuracy": "share of these tokens",
    "tokens": "tokens",
    "tokens_per_second": "tokens/s",
    "mfu": "share of the peak in its precision",
    "logit_difference": "largest difference to transformers",
}


# What a finished run of a recipe must reach: (figure, times what; None: 1, at least).
PROMISES = {
    "dates": ("exact_match", None, 0.95),
    "mlm": ("masked_accuracy", "unigram_accuracy", 3.0),
    "mlm-bert": ("masked_accuracy", "unigram_accuracy", 2.0),
    "span": ("span_accuracy", "unigram_accuracy", 1.0),
}


def main() -> None:
    """Train or find the runs, print their figures, append ledger rows when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="recipes to train by, such as quickstart")
    parser.add_argument("--run", action="append", default=[], help="the name of a finished run")
    parser.add_argument("--append", action="store_true", help="append rows to benchmarks/ledger.jsonl")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row for name in options.run for row in run_rows(find_run(name), None)]
    broken = [message for name in options.run for message in broken_promise(find_run(name))]
    for recipe in options.recipes:
        started = time.monotonic()
        run = llm_journey.train(recipe)
        rows += run_rows(run, time.monotonic() - started)
        broken += broken_promise(run)
    if options.append:
        ledger.append(Path(__file__).with_name("ledger.jsonl"), rows)
    for row in rows:
        print(
            json.dumps(row) if options.json else f"{row['arm']:28} {row['metric']:24} {row['value']:.4g} {row['unit']}"
        )
    if broken:
        sys.exit("; ".join(broken))


def broken_promise(run: TrainedRun) -> list[str]:
    """What a run of a recipe with a promise did not reach, in words."""
    promise = PROMISES.get(load_recipe(run.directory).name)
    if promise is None:
        return []
    key, baseline, least = promise
    reached = run.figures.get(key, 0.0) / (run.figures[baseline] if baseline else 1.0)
    if reached >= least:
        return []
    return [f"{run.name}: {key.replace('_', ' ')}{f' / {baseline}' if baseline else ''} is {reached:.3g}, not {least}"]


def run_rows(run: TrainedRun, seconds: float | None) -> list[dict[str, Any]]:
    """Ledger rows of a finished run; `seconds` of the whole command, where it was timed."""
    if run.status != "finished":
        sys.exit(f"{run.name} is {run.status}; only a finished run has figures")
    recipe = load_recipe(run.directory)
    information = RunFolder.open(run.directory).information
    made_by, precision = information["lineage"], information["precision"]
    measured = [("bits per byte", value, "bits/byte", name) for name, value in run.baselines.items()]
    measured += [
        (key.replace("_", " "), run.figures[key], unit, "model") for key, unit in FIGURES.items() if key in run.figures
    ]
    if seconds is not None:
        measured.append(("whole command", seconds, "s", "model"))
    rows = [
        ledger.row(
            benchmark=f"recipe-{recipe.name}",
            arm=arm,
            metric=metric,
            value=value,
            unit=unit,
            seed=recipe.seed,
            command=made_by["command"],
            config=dump(replace(recipe, training=replace(recipe.training, precision=precision))),
        )
        for metric, value, unit, arm in measured
    ]
    kept = {key: made_by[key] for key in ("commit", "hardware", "versions")}  # of the run, not of this script
    return [{**row, **kept} for row in rows]


if __name__ == "__main__":
    main()
