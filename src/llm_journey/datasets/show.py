"""Samples of a prepared corpus, kept and dropped, for a person to read."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.datasets.prepare import SPLITS, PreparationReport, iterate_rows, read_report
from llm_journey.text.quality import rule_of


@dataclass(frozen=True)
class Sample:
    """One document: the split that it went to ("train", "validation" or "dropped"), and why it was dropped."""

    identifier: str
    split: str
    reason: str
    text: str


@dataclass(frozen=True)
class Samples:
    """The preparation's report, with documents that were kept and documents that were dropped."""

    report: PreparationReport
    kept: tuple[Sample, ...]
    dropped: tuple[Sample, ...]


def show_samples(directory: Path, *, count: int = 5, seed: int = 0, reason: str | None = None) -> Samples:
    """`count` documents of each fate from a prepared folder, drawn by `seed`; `reason` picks one rule's drops.

    Kept documents are drawn evenly from the whole corpus, dropped ones from the samples that the preparation wrote
    (their first 2,000 characters). Raises BadInputError where nothing was prepared or no document has that reason.
    """
    if count < 1:
        raise BadInputError(f"cannot show {count} samples; ask for at least 1")
    report = read_report(directory)
    generator = random.Random(seed)
    kept = _draw_kept(directory, count, generator)
    dropped = _read_dropped(directory / "dropped.jsonl")
    if reason is not None:
        known = {rule_of(sample.reason) for sample in dropped}
        dropped = [sample for sample in dropped if rule_of(sample.reason) == reason]
        if not dropped:
            listed = ", ".join(sorted(known)) or "nothing"
            raise BadInputError(f"nothing was dropped for {reason!r}; what was dropped was for: {listed}")
    drawn = sorted(generator.sample(range(len(dropped)), min(count, len(dropped))))
    return Samples(report, tuple(kept), tuple(dropped[number] for number in drawn))


def _draw_kept(directory: Path, count: int, generator: random.Random) -> list[Sample]:
    """Reservoir sampling (Vitter 1985, algorithm R): each document equally likely, in one pass."""
    drawn: list[tuple[int, Sample]] = []
    number = 0
    for split in SPLITS:
        for identifier, text in iterate_rows(directory, split):
            place = number if number < count else generator.randint(0, number)
            if place < count:
                drawn[place : place + 1] = [(number, Sample(identifier, split, "", text))]
            number += 1
    return [sample for _, sample in sorted(drawn, key=lambda item: item[0])]


def _read_dropped(path: Path) -> list[Sample]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return [Sample(row["id"], "dropped", row["reason"], row["text"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        raise JourneyError(f"{path} is damaged or missing; delete the folder and prepare the data again") from None
