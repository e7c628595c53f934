"""The report's sections on tokenizer and data, from what those stages wrote beside the run.

Entries with a known key get a name for people; others are still shown: numbers as facts, amounts by name as bars, lists
as texts. So a richer vocabulary report shows up here without a change.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_journey.reports import formatting, plots
from llm_journey.reports.page import Block, Chips, Facts, Note, Picture, Section, Table
from llm_journey.reports.run_data import Row, Run, is_number, numbers, read_mapping

_LABELS = {
    "vocab_size": "Vocabulary",
    "num_special_tokens": "Special tokens",
    "num_texts": "Texts read",
    "num_bytes": "Text read",
    "num_tokens": "Tokens in that text",
    "num_words": "Words in that text",
    "bytes_per_token": "Bytes per token",
    "fertility": "Tokens per word",
    "whole_words": "Words that are one token",
    "coverage": "Tokens in use",
    "num_unused": "Tokens not in use",
    "longest": "Longest tokens",
    "most_used": "Most used tokens",
    "unused": "Tokens not in use",
    "tokens_by_script": "Tokens of the vocabulary by script",
    "bytes_by_script": "Bytes of the text by script",
    "lengths": "Tokens of the vocabulary by length in bytes",
    "seconds": "Time taken",
    "bytes": "Text kept",
    "train_bytes": "Training text",
    "validation_bytes": "Held-out text",
}
_SHARES = {"coverage", "whole_words"}
_DOCUMENTS = (
    ("duplicates", "duplicates"),
    ("near_duplicates", "near-duplicates"),
    ("train_documents", "training documents"),
    ("validation_documents", "held-out documents"),
)
_MOST_CHIPS = 40
_MOST_BARS = 14
_MOST_CHIP_CHARACTERS = 80
_MOST_TEXTS = 8


def tokenizer_section(run: Run) -> Section | None:
    """Numbers of the vocabulary, its tokens by script, its longest and its unused tokens."""
    facts: list[tuple[str, str]] = []
    lists: list[Block] = []
    pictures: list[Block] = []
    for key, value in run.vocabulary.items():
        if is_number(value):
            facts.append((_label(key), _amount(key, float(value))))
        elif isinstance(value, str):
            facts.append((_label(key), value))
        elif isinstance(value, Mapping) and (amounts := numbers(value)):
            pictures.append(_bars(_label(key), amounts))
        elif isinstance(value, list) and value:
            lists.append(_chips(_label(key), value))
    if not (facts or lists or pictures):
        return None
    return Section("tokenizer", "Tokenizer", [Facts(facts), *lists, *pictures])


def data_section(run: Run) -> Section | None:
    """What became of the documents (kept, dropped by reason, duplicates), and the tokens made of them."""
    inner = run.preparation.get("report")
    found = inner if isinstance(inner, dict) else run.preparation  # a whole record, or its report alone
    blocks = [*_notes(found), *_documents(found), *_token_table(run)]
    shown = {"documents_in", "dropped", "num_problems", *(key for key, _ in _DOCUMENTS)}
    facts = [
        (_label(key), _amount(key, float(value)) if is_number(value) else str(value))
        for key, value in found.items()
        if key not in shown and (is_number(value) or isinstance(value, str))
    ]
    if facts:
        blocks.append(Facts(facts))
    return Section("data", "Data", blocks) if blocks else None


def _documents(found: Row) -> list[Block]:
    amounts = numbers(found)
    documents_in = amounts.get("documents_in")
    if documents_in is None:
        return []
    rows = [("documents in", documents_in)]
    rows += [(f"dropped: {reason.replace('_', ' ')}", n) for reason, n in _largest_first(numbers(found.get("dropped")))]
    rows += [(label, amounts[key]) for key, label in _DOCUMENTS if key in amounts]
    cells = [(label, f"{n:,.0f}", formatting.percent(n / documents_in) if documents_in else "–") for label, n in rows]
    return [Table(("documents", "number", "of all"), cells)]


def _notes(found: Row) -> list[Block]:
    notices = found.get("notices")
    texts = [str(notice) for notice in notices] if isinstance(notices, list) else []
    blocks: list[Block] = [Note(text[:1].upper() + text[1:] + ".") for text in texts[:_MOST_TEXTS]]
    unread = numbers(found).get("num_problems", 0)
    if unread:
        blocks.append(Note(f"{unread:,.0f} files or rows could not be read; preparation.json names them.", "warning"))
    return blocks


def _token_table(run: Run) -> list[Block]:
    """Tokens and bytes per token of each split, from the indices of the run's token shards where they still exist."""
    folder = run.section("paths").get("shards")
    if not isinstance(folder, str):
        return []
    rows = []
    for split, label in (("train", "training"), ("validation", "held out")):
        index = numbers(read_mapping(Path(folder) / f"{split}.json", []))
        if {"num_tokens", "num_bytes", "num_documents"} <= index.keys() and index["num_tokens"]:
            text_tokens = index["num_tokens"] - index["num_documents"]  # without the token that ends each document
            ratio = formatting.significant(index["num_bytes"] / text_tokens) if text_tokens else "–"
            rows.append((label, f"{index['num_tokens']:,.0f}", ratio))
    return [Table(("split", "tokens", "bytes per token"), rows)] if rows else []


def _bars(label: str, amounts: Mapping[str, float]) -> Picture:
    by_number = all(name.isdecimal() for name in amounts)
    ranked = sorted(amounts.items(), key=lambda item: int(item[0])) if by_number else _largest_first(amounts)
    if len(ranked) > _MOST_BARS:
        rest = sum(value for _, value in ranked[_MOST_BARS - 1 :])
        others = f"{ranked[_MOST_BARS - 1][0]} or more" if by_number else f"{len(ranked) - _MOST_BARS + 1} others"
        ranked = [*ranked[: _MOST_BARS - 1], (others, rest)]
    light, dark = plots.svg_pair(plots.bars_picture(ranked, label))
    spoken = "; ".join(f"{name} {value:,.0f}" for name, value in ranked)
    return Picture(light, dark, f"{label}: {spoken}")


def _chips(label: str, values: list[Any]) -> Chips:
    shown = [_chip(value) for value in values[:_MOST_CHIPS]]
    of_all = f" ({len(shown)} of {len(values):,})" if len(values) > len(shown) else ""
    return Chips(label + of_all, shown)


def _chip(value: Any) -> str:
    """A token as a reader can see it: spaces as ␣, line ends as ⏎, others escaped; a part of a character by its id."""
    if isinstance(value, Mapping):
        text, identity = value.get("text", value), value.get("id")
        value = f"\ufffd#{identity}" if text and set(str(text)) == {"\ufffd"} and is_number(identity) else text
    text = str(value).replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= _MOST_CHIP_CHARACTERS else text[:_MOST_CHIP_CHARACTERS] + "…"


def _amount(key: str, value: float) -> str:
    if key.endswith("seconds"):
        return formatting.duration(value)
    if key == "bytes" or key.endswith("_bytes"):
        return formatting.with_prefix(value, "B")
    if key in _SHARES:
        return formatting.percent(value)
    return f"{value:,.0f}" if value == int(value) else formatting.significant(value, 4)


def _label(key: str) -> str:
    text = _LABELS.get(key) or key.removeprefix("num_").replace("_", " ")
    return text[:1].upper() + text[1:]


def _largest_first(amounts: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(amounts.items(), key=lambda item: (-item[1], item[0]))
