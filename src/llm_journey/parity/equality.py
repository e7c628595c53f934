"""What a claim of equality is, and how it is measured."""

import importlib.metadata
import importlib.util
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from llm_journey.core.errors import JourneyError

Verdict = Literal["equal", "differs", "not measured"]
# References that may lie here without pip's knowledge (built by hand) -> the module that says its version.
_MODULES = {"llama-cpp-python": "llama_cpp"}


@dataclass(frozen=True, kw_only=True)
class Equality:
    """A part of ours that is claimed to equal a reference.

    reference: the distribution that provides it, as pip knows it. compared: which quantities, on what. tolerance: the
    largest difference allowed, with its reason; 0 means equal bit for bit, or id for id. difference(planted) measures;
    with `planted` one thing on our side is made wrong first. needs: catalog items that must lie on this machine. also:
    further distributions that the reference needs for this.
    """

    component: str
    reference: str
    compared: str
    tolerance: float
    reason: str
    difference: Callable[[bool], float]
    needs: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


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
        """The row as JSON values; a difference without a number (NaN, infinite) is null, and its verdict "differs"."""
        finite = self.difference is not None and math.isfinite(self.difference)
        return {
            "component": self.equality.component,
            "reference": self.equality.reference,
            "version": self.version,
            "compared": self.equality.compared,
            "difference": self.difference if finite else None,
            "tolerance": self.equality.tolerance,
            "reason": self.equality.reason,
            "verdict": self.verdict,
            "seconds": round(self.seconds, 3),
            "note": self.note,
        }


def measure(equality: Equality, *, planted: bool = False) -> Outcome:
    """The difference now, on this machine; a NaN counts as infinitely different, and so does a comparison that fails.

    A reference that is not installed, or a catalog item that is not here, makes a row "not measured".
    """
    version, note = _version(equality.reference), _missing(equality)
    if note:
        return Outcome(equality, version, None, 0.0, note)
    started = time.perf_counter()
    try:
        found = equality.difference(planted)
    except Exception as error:  # another version of a reference may fail anyhow; the other rows still count
        found, note = math.inf, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    found = math.inf if math.isnan(found) else found
    return Outcome(equality, version, found, time.perf_counter() - started, note)


def missing_items(equality: Equality) -> list[str]:
    """The catalog items that a row needs and that are not on this machine. Raises what the catalog raises."""
    from llm_journey.datasets.catalog import find, locate

    return [name for name in equality.needs if locate(find(name)) is None]


def _missing(equality: Equality) -> str:
    """What this row lacks here, with the command that brings it; "" where nothing is missing."""
    for distribution in (equality.reference, *equality.also):
        if not _version(distribution):
            return f"{distribution} is not installed; pip install {distribution}"
    try:
        missing = missing_items(equality)
    except JourneyError as error:
        return str(error)
    return f"{missing[0]} is not on this machine; journey parity --pull" if missing else ""


def _version(distribution: str) -> str:
    """The installed version, "" for none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        module = _MODULES.get(distribution)
    if module is None or importlib.util.find_spec(module) is None:
        return ""
    return str(getattr(importlib.import_module(module), "__version__", "")) or "unknown"
