"""Continued pretraining on Cranfield's abstracts, with general text among them and without: what is learned, what lost.

    python benchmarks/adaptation.py --append

Each arm is the recipe `cranfield` (60,000 tokens of SmolLM2-135M-Instruct, 4 minutes on two cores, and 4 more to
validate); a finished run of an arm's name is used as it is. Held-out: a fifth of the abstracts; general text: the first
32,000 tokens of wikitext-2's test part, of which neither arm sees anything. Exit code 1 where the arm with replay does
not lower held-out perplexity by 10%, or raises that of general text by 3%.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import llm_journey
from llm_journey.app.runs import TrainedRun, find_run, has_run
from llm_journey.core import ledger
from llm_journey.core.config import dump
from llm_journey.reports.run_data import read_run
from llm_journey.training.recipe import load_recipe
from llm_journey.training.run_folder import RunFolder

ARMS = {"with replay": ("cranfield-replay", []), "without replay": ("cranfield-alone", ["replay=null"])}
FIGURES = {"perplexity": "held-out abstracts", "general_perplexity": "wikitext-2 test"}


def main() -> None:
    """Train or find both arms, print their figures, append ledger rows when asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--append", action="store_true", help="append rows to benchmarks/ledger.jsonl")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows, changes = [], {}
    for arm, (name, overrides) in ARMS.items():
        if not has_run(name) or find_run(name).status != "finished":
            llm_journey.train("cranfield", overrides=overrides, name=name, resume=has_run(name))
        found = arm_rows(arm, find_run(name))
        changes |= {(arm, row["metric"]): row["value"] for row in found}
        rows += found
    if options.append:
        ledger.append(Path(__file__).with_name("ledger.jsonl"), rows)
    for row in rows:
        print(
            json.dumps(row) if options.json else f"{row['arm']:16} {row['metric']:36} {row['value']:+.4g} {row['unit']}"
        )
    learned = changes["with replay", "perplexity of held-out abstracts, change"]
    lost = changes["with replay", "perplexity of wikitext-2 test, change"]
    if learned > -10 or lost >= 3:
        sys.exit(f"with replay: held-out {learned:+.1f}% (at most -10), general {lost:+.1f}% (below +3)")


def arm_rows(arm: str, run: TrainedRun) -> list[dict[str, Any]]:
    """Ledger rows of one arm: perplexities before and after, and their change in percent."""
    recipe, information = load_recipe(run.directory), RunFolder.open(run.directory).information
    validation = read_run(run.directory).validation
    before, after = validation[0], validation[-1]
    measured = []
    for key, text in FIGURES.items():
        measured += [
            (f"perplexity of {text}, before", before[key], "perplexity"),
            (f"perplexity of {text}, after", after[key], "perplexity"),
            (f"perplexity of {text}, change", 100 * (after[key] / before[key] - 1), "%"),
        ]
    measured += [
        ("tokens", run.figures["tokens"], "tokens"),
        ("peak memory", run.figures["peak_memory_bytes"], "bytes"),
    ]
    rows = [
        ledger.row(
            benchmark="domain-adaptation",
            arm=arm,
            metric=metric,
            value=value,
            unit=unit,
            seed=recipe.seed,
            command="python benchmarks/adaptation.py --append",
            config=dump(recipe),
        )
        for metric, value, unit in measured
    ]
    kept = {key: information["lineage"][key] for key in ("commit", "hardware", "versions")}
    return [{**row, **kept} for row in rows]


if __name__ == "__main__":
    main()
