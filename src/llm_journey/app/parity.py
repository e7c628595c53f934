"""The parity table: every equality measured now, for a person, a script and the documents."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llm_journey.core import files
from llm_journey.core.errors import BadInputError
from llm_journey.training.observer import Observer

if TYPE_CHECKING:
    from llm_journey.parity import Outcome


@dataclass(frozen=True)
class ParityTable:
    """Measured rows, in the order in which the project claims them."""

    HEAD: ClassVar[tuple[str, ...]] = ("component", "reference", "version", "compared", "difference", "tolerance", "")

    outcomes: tuple["Outcome", ...]

    @property
    def num_differing(self) -> int:
        """Rows over their tolerance."""
        return sum(outcome.verdict == "differs" for outcome in self.outcomes)

    def rows(self) -> list[list[str]]:
        """The table's cells; a row that was not measured says why in the last one."""
        return [
            [
                outcome.equality.component,
                outcome.equality.reference,
                outcome.version or "-",
                outcome.equality.compared,
                "-" if outcome.difference is None else f"{outcome.difference:.2g}",
                f"{outcome.equality.tolerance:.2g}",
                outcome.verdict + (f": {outcome.note}" if outcome.note else ""),
            ]
            for outcome in self.outcomes
        ]

    def summary(self) -> str:
        """One line: how many are equal, differ, were not measured."""
        verdicts = [outcome.verdict for outcome in self.outcomes]
        seconds = sum(outcome.seconds for outcome in self.outcomes)
        counts = ", ".join(f"{verdicts.count(name)} {name}" for name in ("equal", "differs", "not measured"))
        return f"{len(verdicts)} rows: {counts}; {seconds:.0f} s"

    def describe(self) -> dict[str, Any]:
        """The rows as JSON values."""
        return {
            "ok": self.num_differing == 0,
            "not_measured": sum(outcome.difference is None for outcome in self.outcomes),
            "rows": [outcome.describe() for outcome in self.outcomes],
        }

    def write_markdown(self, path: Path) -> None:
        """The table as a Markdown document."""
        lines = [
            "# Parity",
            "",
            "Every equality that the project claims, as `journey parity --markdown` measured it. A tolerance has its",
            "reason in `src/llm_journey/parity/`; `tests/parity` plants an error into every row that can be measured,",
            "and sees it fail.",
            "",
            "| " + " | ".join(self.HEAD[:-1]) + " | verdict |",
            "| --- | --- | --- | --- | ---: | ---: | --- |",
            *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows()),
        ]
        files.write_text(path, "\n".join(lines) + "\n")


def run_parity(words: Sequence[str], observer: Observer) -> ParityTable:
    """Measure the rows that hold every one of `words`. Raises BadInputError where none does."""
    # Before transformers is loaded: its GGUF loader asks the hub about local files too, and may hang without a network.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from llm_journey.parity import EQUALITIES, measure, select

    chosen = select(words)
    if not chosen:
        known = ", ".join(equality.component for equality in EQUALITIES)
        raise BadInputError(f"no row holds {' '.join(words)!r}; there are: {known}")
    outcomes = []
    for number, equality in enumerate(chosen):
        observer.stage(f"{equality.component} ({number + 1} of {len(chosen)})")
        outcomes.append(measure(equality))
    return ParityTable(tuple(outcomes))
