"""What a claim of equality is, and how it is measured."""

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from llm_journey.core.errors import JourneyError

Verdict = Literal["equal", "differs", "not measured"]


@dataclass(frozen=True, kw_only=True)
class Equality:
    """A part of ours that is claimed to equal a reference.

    reference: the distribution that provides it, as pip knows it. compared: which quantities, on what. tolerance: the
    largest difference allowed, with its reason; 0 means equal bit for bit, or id for id. difference(planted) measures;
    with `planted` one thing on our side is made wrong first. needs: catalog items that must lie on this machine.
    """

    component: str
    reference: str
    compared: str
    tolerance: float
    reason: str
    difference: Callable[[bool], float]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A measured equality. difference is None where it was not measured; `note` then says why."""

    equality: Equality
    version: str
    difference: float | None
    seconds: float
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether the difference is within the tolerance."""
        if self.difference is None:
            return "not measured"
        return "equal" if self.difference <= self.equality.tolerance else "differs"

    def describe(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "component": self.equality.component,
            "reference": self.equality.reference,
            "version": self.version,
            "compared": self.equality.compared,
            "difference": self.difference,
            "tolerance": self.equality.tolerance,
            "reason": self.equality.reason,
            "verdict": self.verdict,
            "seconds": round(self.seconds, 3),
            "note": self.note,
        }


def measure(equality: Equality, *, planted: bool = False) -> Outcome:
    """The difference now, on this machine; a NaN counts as infinitely different.

    A reference that is not installed, or a catalog item that is not here, makes a row "not measured".
    """
    version, note = _version(equality.reference), _missing(equality)
    if note:
        return Outcome(equality, version, None, 0.0, note)
    started = time.perf_counter()
    found = equality.difference(planted)
    found = float("inf") if found != found else found
    return Outcome(equality, version, found, time.perf_counter() - started)


def _missing(equality: Equality) -> str:
    """What this row lacks here, with the command that brings it; "" where nothing is missing."""
    if not _version(equality.reference):
        return f"{equality.reference} is not installed"
    from llm_journey.datasets.catalog import find, locate

    for name in equality.needs:
        try:
            here = locate(find(name)) is not None
        except JourneyError as error:
            return str(error)
        if not here:
            return f"{name} is not on this machine; journey models pull {name}"
    return ""


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
