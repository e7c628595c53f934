"""Chats that are made rather than read, by name.

    tool-calls       requests in plain words, each with the call that does them (datasets.made_tool_calls)
    wiki-questions   "What is X?" and its like, X being what an article's first sentence says something of; the answer
                     is that sentence, of two of the chats in three, or the first two; one chat in four asks twice

What is drawn of an article follows from its own text, so that the same corpus always gives the same chats.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from llm_journey.datasets.catalog import resolve as resolve_source
from llm_journey.datasets.made_tool_calls import tool_calls
from llm_journey.text.readers import read_documents

_VERSION = 1
_PARENTHESES = regex.compile(r"\s*\([^()]*\)")
_SENTENCE = regex.compile(r"(?<![A-Z]|\b[A-Z][a-z]|\b(?:St|Dr|Mr|vs|ca|cf|etc|Inc|No))[.]\s+(?=[A-Z])")
_SUBJECT = regex.compile(
    r"(?P<subject>(?:The |An? )?\p{Lu}?[^,.;:]{1,50}?),? (?P<verb>is|was|are|were) (?=an? |the |one )"
)
_LONGEST_ANSWER = 400
_REQUESTS = 2000


@dataclass(frozen=True)
class MadeChats:
    """title: in words. corpus: the catalog name of what they are made of, None where it is nothing but a seed. rows:
    (where, row) from its texts."""

    title: str
    corpus: str | None
    rows: Callable[[Iterable[str]], Iterator[tuple[str, Any]]]


def questions(texts: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Rows {"messages"} of the texts that can be asked about."""
    before: list[dict[str, str]] = []
    for number, text in enumerate(texts, 1):
        found = _question(text)
        if found is None:
            continue
        draw, asked, answer = found
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        follows = draw % 4 == 0 and before
        yield f"article {number}", {"messages": [*before, *turns] if follows else turns}
        before = turns


def _question(text: str) -> tuple[int, str, str] | None:
    """(a number of the text's own, question, answer)."""
    sentences = _SENTENCE.split(" ".join(_PARENTHESES.sub("", text).split()))
    first = sentences[0].strip()
    found = _SUBJECT.match(first)
    if found is None or len(first) < 30:
        return None
    draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    taken = sentences[: 2 if draw % 3 == 0 else 1]
    answer = ". ".join(each.strip().rstrip(".") for each in taken) + "."
    if len(answer) > _LONGEST_ANSWER:
        return None
    subject, verb = found["subject"], found["verb"]
    if subject.startswith(("The ", "A ", "An ")):
        subject = subject[0].lower() + subject[1:]
    forms = (f"What {verb} {subject}?", f"Tell me about {subject}.", f"Can you explain what {subject} {verb}?")
    return draw, forms[draw // 12 % 3], answer


MADE_CHATS = {
    "tool-calls": MadeChats(
        "generated requests and the tool calls that do them", None, lambda _: tool_calls(_REQUESTS)
    ),
    "wiki-questions": MadeChats(
        "questions about Wikipedia articles, answered by their summaries", "wiki-summaries", questions
    ),
}


def made_rows(name: str, resolve: Callable[[str], Path] = resolve_source) -> Iterator[tuple[str, Any]]:
    """The rows of `MADE_CHATS[name]`; its corpus must be on this machine."""
    made = MADE_CHATS[name]
    documents = [] if made.corpus is None else read_documents(resolve(made.corpus))
    yield from made.rows(document.text for document in documents)


def made_version(name: str) -> dict[str, Any]:
    """What decides the rows."""
    return {"made": name, "version": _VERSION, "corpus": MADE_CHATS[name].corpus}
