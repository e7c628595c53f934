"""The parity table: every equality measured now, for a person, a script and the documents.

A row that cannot be measured here is said, and is no failure by itself: "equal" is claimed of measured rows alone. Who
wants the whole table measured asks for it (`strict`), and gets the models that are missing (`pull_missing`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llm_journey.core import files
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.training.observer import Observer

if TYPE_CHECKING:
    from llm_journey.parity import Equality, Outcome


@dataclass(frozen=True)
class ParityTable:
    """Measured rows, in the order in which the project claims them.

    strict: whether a row that could not be measured is a failure.
    """

    HEAD: ClassVar[tuple[str, ...]] = ("component", "reference", "version", "compared", "difference", "tolerance", "")

    outcomes: tuple["Outcome", ...]
    strict: bool = False

    @property
    def num_differing(self) -> int:
        """Rows over their tolerance."""
        return sum(outcome.verdict == "differs" for outcome in self.outcomes)

    @property
    def num_unmeasured(self) -> int:
        """Rows whose reference or model is not on this machine."""
        return sum(outcome.verdict == "not measured" for outcome in self.outcomes)

    @property
    def passed(self) -> bool:
        """Whether every measured row is equal and, where that was asked for, every row was measured."""
        return self.num_differing == 0 and not (self.strict and self.num_unmeasured)

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

    def advice(self) -> str:
        """What to do about rows that were not measured; "" where all were."""
        notes = sorted({outcome.note for outcome in self.outcomes if outcome.verdict == "not measured"})
        return f"not measured, so not claimed here: {'; '.join(notes)}" if notes else ""

    def describe(self) -> dict[str, Any]:
        """The rows as JSON values. ok: as the exit code says; complete: no row was left unmeasured."""
        return {
            "ok": self.passed,
            "complete": self.num_unmeasured == 0,
            "strict": self.strict,
            "differs": self.num_differing,
            "not_measured": self.num_unmeasured,
            "rows": [outcome.describe() for outcome in self.outcomes],
        }

    def write_markdown(self, path: Path) -> None:
        """The table as a Markdown document."""
        lines = [
            "# Parity",
            "",
            "Every equality that the project claims, as `journey parity --markdown` measured it. A tolerance has its",
            "reason in `src/llm_journey/parity/`; `tests/parity` plants an error into every row, and sees it fail.",
            "",
            self.summary() + ".",
            "",
            "| " + " | ".join(self.HEAD[:-1]) + " | verdict |",
            "| --- | --- | --- | --- | ---: | ---: | --- |",
            *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows()),
        ]
        files.write_text(path, "\n".join(lines) + "\n")


def run_parity(
    words: Sequence[str], observer: Observer, *, pull_missing: bool = False, strict: bool = False
) -> ParityTable:
    """Measure the rows that hold every one of `words`. Raises BadInputError where none does.

    pull_missing: fetch the catalog's models that these rows need and that are not here (some 180 MB). The hub is
    switched off for the measuring itself: transformers' GGUF loader asks it about local files too, and may hang.
    """
    from llm_journey.datasets.hub import hub_switched_off
    from llm_journey.parity import EQUALITIES, measure, select

    chosen = select(words)
    if not chosen:
        known = ", ".join(equality.component for equality in EQUALITIES)
        raise BadInputError(f"no row holds {' '.join(words)!r}; there are: {known}")
    if pull_missing:
        _pull(chosen, observer)
    outcomes = []
    with hub_switched_off():
        for number, equality in enumerate(chosen):
            observer.stage(f"{equality.component} ({number + 1} of {len(chosen)})")
            outcomes.append(measure(equality))
    return ParityTable(tuple(outcomes), strict)


def _pull(chosen: Sequence["Equality"], observer: Observer) -> None:
    """Fetch what rows need; what cannot be had is said, and its rows stay unmeasured."""
    from llm_journey.app.training import pull_source

    for name in dict.fromkeys(name for equality in chosen for name in equality.needs):
        try:
            pull_source(name, observer)
        except JourneyError as error:
            observer.message(str(error))
