"""What every benchmark does with its figures: ledger rows, a table, and the options that ask for them."""

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_journey.core import ledger

LEDGER = Path(__file__).with_name("ledger.jsonl")
# Python looks for modules beside a script first, and would take benchmarks/gguf.py for the package `gguf`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]


@dataclass(frozen=True)
class Figure:
    """One figure of one arm: the median of what was measured again and again, and all of that."""

    arm: str
    metric: str
    unit: str
    measured: Sequence[float]

    @property
    def value(self) -> float:
        return statistics.median(self.measured)


def ratio(arm: str, metric: str, ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """Ours over theirs, round by round: pairs were measured one after the other."""
    return Figure(arm, metric, "ratio", [mine / other for mine, other in zip(ours, theirs, strict=True)])


def add_options(parser: argparse.ArgumentParser) -> None:
    """--append and --json."""
    parser.add_argument("--append", action="store_true", help="append the figures to benchmarks/ledger.jsonl")
    parser.add_argument("--json", action="store_true", help="print the ledger rows instead of a table")


def report(name: str, figures: Sequence[Figure], options: argparse.Namespace) -> None:
    """Print the figures, and append them where that was asked for. Paths are named by their last part alone."""
    given = shlex.join(Path(word).name if "/" in word else word for word in sys.argv[1:])
    config = {key: _named(value) for key, value in vars(options).items() if key not in ("append", "json")}
    rows = [
        ledger.row(
            benchmark=name,
            arm=figure.arm,
            metric=figure.metric,
            value=figure.value,
            unit=figure.unit,
            command=f"python benchmarks/{name}.py {given}".strip(),
            config=config,
            spread=(min(figure.measured), max(figure.measured)),
            n=len(figure.measured),
            seed=config.get("seed"),
        )
        for figure in figures
    ]
    if options.append:
        ledger.append(LEDGER, rows)
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    print(f"{'arm':36} {'metric':40} {'median':>10} {'least':>10} {'most':>10}  n")
    for figure in figures:
        least, most = min(figure.measured), max(figure.measured)
        print(
            f"{figure.arm:36} {figure.metric:40} {figure.value:10.5g} {least:10.5g} {most:10.5g}  "
            f"{len(figure.measured)}  {figure.unit}"
        )


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _named(item) for key, item in value.items()}
    return Path(value).name if isinstance(value, str) and "/" in value else value
