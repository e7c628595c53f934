"""The report's sections on tokenizer and data, from what those stages wrote beside the run.

Known entries get their names for people; unknown ones are still shown: numbers as facts, amounts by name as bars,
lists as texts. So a richer vocabulary report shows up here without a change.
"""

from collections.abc import Mapping
from typing import Any

from llm_journey.reports import formatting, plots
from llm_journey.reports.page import Block, Chips, Facts, Note, Picture, Section, Table
from llm_journey.reports.run_data import Run, is_number, numbers

_LABELS = {"seconds": "Time taken", "vocab_size": "Vocabulary size", "bytes": "Text"}
_MOST_CHIPS = 40
_MOST_BARS = 14
_MOST_CHIP_CHARACTERS = 80


def tokenizer_section(run: Run) -> Section | None:
    """Numbers of the vocabulary, its tokens by script, its longest and its unused tokens."""
    if not run.vocabulary:
        return None
    facts: list[tuple[str, str]] = []
    blocks: list[Block] = []
    for key, value in run.vocabulary.items():
        label = _label(key)
        if is_number(value):
            facts.append((label, _amount(key, float(value))))
        elif isinstance(value, str):
            facts.append((label, value))
        elif isinstance(value, Mapping) and (amounts := numbers(value)):
            blocks.append(_bars(label, amounts))
        elif isinstance(value, list) and value:
            blocks.append(_chips(label, value))
    return Section("tokenizer", "Tokenizer", [Facts(facts), *blocks] if facts else blocks)


def data_section(run: Run) -> Section | None:
    """What happened to the documents: kept, dropped by reason, duplicates; and what became of them."""
    found = run.preparation
    if not found:
        return None
    amounts = numbers(found)
    documents_in = amounts.get("documents_in")

    def row(label: str, value: float) -> tuple[str, str, str]:
        return label, f"{value:,.0f}", formatting.percent(value / documents_in) if documents_in else "–"

    dropped = numbers(found.get("dropped"))
    rows = [row("documents in", documents_in)] if documents_in is not None else []
    rows += [row(f"dropped: {reason.replace('_', ' ')}", number) for reason, number in _largest_first(dropped)]
    named = (
        ("duplicates", "duplicates"),
        ("train_documents", "training documents"),
        ("validation_documents", "held-out documents"),
    )
    rows += [row(label, amounts[key]) for key, label in named if key in amounts]
    blocks: list[Block] = [Table(("documents", "number", "of all"), rows)] if rows else []
    shown = {"documents_in", "dropped", *(key for key, _ in named)}
    facts = [(_label(key), _amount(key, value)) for key, value in amounts.items() if key not in shown]
    facts += [(_label(key), value) for key, value in found.items() if isinstance(value, str) and key not in shown]
    if facts:
        blocks.append(Facts(facts))
    return Section("data", "Data", blocks or [Note("The preparation report is empty.")])


def _bars(label: str, amounts: Mapping[str, float]) -> Picture:
    ranked = _largest_first(amounts)
    if len(ranked) > _MOST_BARS:
        rest = sum(value for _, value in ranked[_MOST_BARS - 1 :])
        ranked = [*ranked[: _MOST_BARS - 1], (f"{len(ranked) - _MOST_BARS + 1} others", rest)]
    light, dark = plots.svg_pair(plots.bars_picture(ranked, label))
    spoken = "; ".join(f"{name} {value:,.0f}" for name, value in ranked)
    return Picture(light, dark, f"{label}: {spoken}")


def _chips(label: str, values: list[Any]) -> Chips:
    shown = [_chip(value) for value in values[:_MOST_CHIPS]]
    of_all = f" ({len(shown)} of {len(values):,})" if len(values) > len(shown) else ""
    return Chips(label + of_all, shown)


def _chip(value: Any) -> str:
    """A token as a reader can see it: spaces as ␣, line ends as ⏎, other unprintable characters escaped."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("text", "token", "name") if key in value), value)
    elif isinstance(value, list) and value:
        value = next((item for item in value if isinstance(item, str)), value[0])
    text = str(value).replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= _MOST_CHIP_CHARACTERS else text[:_MOST_CHIP_CHARACTERS] + "…"


def _amount(key: str, value: float) -> str:
    if key.endswith("seconds"):
        return formatting.duration(value)
    if key in {"bytes", "num_bytes"} or key.endswith("_bytes"):
        return formatting.with_prefix(value, "B")
    if key.endswith(("coverage", "fraction", "share")) and 0 <= value <= 1:
        return formatting.percent(value)
    return f"{value:,.0f}" if value == int(value) else formatting.significant(value, 4)


def _label(key: str) -> str:
    text = _LABELS.get(key) or key.removeprefix("num_").replace("_", " ")
    return text[:1].upper() + text[1:]


def _largest_first(amounts: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(amounts.items(), key=lambda item: (-item[1], item[0]))
