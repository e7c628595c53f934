"""Before and after: what a run that goes on from a model changed in it, in figures and in what it writes."""

import re
from collections.abc import Mapping
from typing import Any

from llm_journey.reports import formatting
from llm_journey.reports.page import Block, Facts, Note, Section, Table
from llm_journey.reports.run_data import SHARES, Run, is_number

_FIGURES = {
    "validation_loss": "validation loss, nats a token",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "general_perplexity": "perplexity of general text (forgetting)",
    "general_bits_per_byte": "bits per byte of general text (forgetting)",
}
_MOST_CHARACTERS = 600
# Methods whose first step finds another model than the base.
_BEGAN = {
    "qlora": "Before: the base with its matrices in NF4, as the adapter found it; the base itself is a little better.",
    "prompt": "Before: the base behind its new, untrained tokens, which cost it something; the base itself is better.",
    "prefix": "Before: the base behind its new, untrained tokens, which cost it something; the base itself is better.",
}


def change_section(run: Run) -> Section | None:
    """None where the run began from nothing, or was not validated before its first step and after."""
    if len(run.validation) < 2 or run.validation[0].get("step") != 0:
        return None
    before, after = run.validation[0], run.validation[-1]
    rows = [
        (label, _with_interval(key, before), _with_interval(key, after), _change(key, before[key], after[key]))
        for key, label in (_FIGURES | SHARES).items()
        if is_number(before.get(key)) and is_number(after.get(key))
    ]
    blocks: list[Block] = [Table(("held out", "before", "after", "change"), rows)]
    method = re.search(r"^method: (\w+)$", run.recipe, re.MULTILINE)
    if method is not None and method[1] in _BEGAN:
        blocks.append(Note(_BEGAN[method[1]]))
    blocks.append(Facts(_cost(run)))
    written = list(_written(run))
    if written:
        blocks.append(Table(("asked", "before", "after"), written, is_text=True))
    else:
        blocks.append(Note("No text was sampled before and after; training.sample_prompts asks for some."))
    return Section("change", "Before and after", blocks)


def _shown(key: str, value: float) -> str:
    return formatting.percent(value) if key in SHARES else f"{value:.4g}"


def _with_interval(key: str, row: Mapping[str, Any]) -> str:
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    interval = f" ({low:.1%} to {high:.1%})" if is_number(low) and is_number(high) else ""
    return f"{_shown(key, row[key])}{interval}"


def _change(key: str, before: float, after: float) -> str:
    if key in SHARES:
        return f"{100 * (after - before):+.1f} points"
    return f"{100 * (after / before - 1):+.1f}%" if before else "–"


def _cost(run: Run) -> list[tuple[str, str]]:
    figures = run.figures
    rows = []
    trained, whole = figures.get("trained_parameters"), figures.get("parameters")
    if trained is not None and whole:
        rows.append(
            ("Trained parameters", f"{trained:,.0f} beside {whole:,.0f} ({formatting.percent(trained / whole)})")
        )
    if "peak_memory_bytes" in figures:
        rows.append(
            ("Peak memory", f"{formatting.with_prefix(figures['peak_memory_bytes'], 'B')} of the whole process")
        )
    if run.seconds is not None:
        rows.append(("Training time", formatting.duration(run.seconds)))
    return rows


def _written(run: Run) -> list[tuple[str, str, str]]:
    """(prompt, what the base wrote, what the model writes) of each prompt that was sampled at both ends."""
    texts: dict[str, dict[int, str]] = {}
    for row in run.samples:
        if isinstance(row.get("prompt"), str) and isinstance(row.get("text"), str):
            texts.setdefault(row["prompt"], {})[int(row["step"])] = _own(row)
    return [(prompt, found[0], found[max(found)]) for prompt, found in texts.items() if 0 in found and len(found) > 1]


def _own(row: Mapping[str, Any]) -> str:
    text = str(row["text"]).removeprefix(row["prompt"]).strip()
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} …"
