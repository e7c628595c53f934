"""Chats as a model will learn them: each token, and whether it is trained. Nothing is prepared or stored for it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llm_journey.core.errors import BadInputError

if TYPE_CHECKING:
    from llm_journey.datasets.chat import ChatCounts
    from llm_journey.tokenizer import Tokenizer
    from llm_journey.tokenizer.chat_training import ChatExample

_ROWS_READ = 10_000  # of a larger source the first so many are drawn from, which is said


@dataclass(frozen=True)
class MaskedChat:
    """One example. pieces: stretches of its text in turn, and whether the model learns to write them."""

    where: str
    pieces: list[tuple[str, bool]]
    tokens: int
    trained: int

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        pieces = [{"text": text, "trained": trained} for text, trained in self.pieces]
        return {"where": self.where, "tokens": self.tokens, "trained": self.trained, "pieces": pieces}


@dataclass
class MaskedChats:
    """Some examples of a source, and what the rows that were read amount to."""

    shown: list[MaskedChat] = field(default_factory=list)
    chats: int = 0
    examples: int = 0
    tokens: int = 0
    trained: int = 0
    too_long: int = 0
    context: int = 0
    is_whole: bool = True
    bad: list[tuple[str, int, str]] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        """(what, amount) rows for a person."""
        share = self.trained / self.tokens if self.tokens else 0.0
        read = "" if self.is_whole else f" of the first {_ROWS_READ:,} rows"
        return [
            ("chats", f"{self.chats:,}{read}"),
            ("examples", f"{self.examples:,}"),
            ("tokens", f"{self.tokens:,}"),
            ("trained", f"{self.trained:,} ({share:.1%})"),
            (f"longer than the context of {self.context:,}", f"{self.too_long:,}"),
            *((f"left out: {reason}", f"{count:,} (first: {first})") for reason, count, first in self.bad),
        ]

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        bad = [{"reason": reason, "rows": count, "first": first} for reason, count, first in self.bad]
        numbers = {key: value for key, value in vars(self).items() if isinstance(value, int)}
        return numbers | {"left_out": bad, "shown": [each.describe() for each in self.shown]}


def show_masks(source: str, model: str, *, count: int, seed: int) -> MaskedChats:
    """`count` examples of a source, drawn by `seed`, as `model` would learn them; and the totals.

    source: a file, a folder, a glob, a catalog name, or a hub data set. Raises BadInputError where the model has no
    chat template, and where no row is a chat.
    """
    from llm_journey.datasets.catalog import CATALOG, resolve
    from llm_journey.datasets.chat import ChatCounts, read_chats
    from llm_journey.datasets.chat_files import chat_rows
    from llm_journey.datasets.made_chats import MADE_CHATS, made_rows
    from llm_journey.tokenizer.chat_training import chat_examples

    if count < 1:
        raise BadInputError(f"cannot show {count} examples; ask for at least 1")
    tokenizer, context = _tokenizer(model)
    found, counts, generator = MaskedChats(context=context), ChatCounts(), random.Random(seed)
    if source in MADE_CHATS:
        rows = made_rows(source)
    else:
        rows = chat_rows(str(resolve(source)) if source in CATALOG else source)
    for chat in read_chats(_first(rows, found), counts):
        try:
            examples = chat_examples(tokenizer, chat.messages, tools=chat.tools)
        except BadInputError as error:
            counts.note(str(error), chat.where)
            continue
        found.chats += 1
        for example in examples:
            _add(found, tokenizer, chat.where, example, count, generator)
    found.bad = counts.rows()
    if not found.chats:
        raise BadInputError(_nothing(source, counts))
    return found


def _first(rows: Iterator[tuple[str, Any]], found: MaskedChats) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(rows):
        if number == _ROWS_READ:
            found.is_whole = False
            return
        yield row


def _add(
    found: MaskedChats, tokenizer: "Tokenizer", where: str, example: "ChatExample", count: int, generator: random.Random
) -> None:
    """Count an example, and perhaps keep it: each is kept with the same chance (Vitter 1985, algorithm R)."""
    place = found.examples if found.examples < count else generator.randint(0, found.examples)
    found.examples += 1
    found.tokens += len(example.ids)
    found.trained += sum(example.trained)
    found.too_long += len(example.ids) > found.context
    if place < count:
        masked = MaskedChat(where, list(_pieces(tokenizer, example)), len(example.ids), sum(example.trained))
        found.shown[place : place + 1] = [masked]


def _pieces(tokenizer: "Tokenizer", example: "ChatExample") -> Iterator[tuple[str, bool]]:
    start = 0
    for index in range(1, len(example.ids) + 1):
        if index == len(example.ids) or example.trained[index] != example.trained[start]:
            yield tokenizer.decode(example.ids[start:index]), example.trained[start]
            start = index


def _tokenizer(model: str) -> "tuple[Tokenizer, int]":
    from llm_journey.app.find_models import find_text_model
    from llm_journey.app.language_model import open_model
    from llm_journey.checkpoint.model_folder import load_config, load_fitting_tokenizer
    from llm_journey.tokenizer import Tokenizer

    path = find_text_model(model)
    if path.is_dir():  # of a folder the tokenizer alone is read
        config = load_config(path)
        loaded = load_fitting_tokenizer(path, config)
        if not isinstance(loaded, Tokenizer):
            raise BadInputError(f"{model}: has no tokenizer for chats; choose a chat model")
        tokenizer, context = loaded, config.context
    else:
        opened = open_model(model)
        tokenizer, context = opened.tokenizer, opened.config.context
    if tokenizer.chat_template is None:
        raise BadInputError(f"{model}: has no chat template; choose a chat model")
    return tokenizer, context


def _nothing(source: str, counts: "ChatCounts") -> str:
    rows = counts.rows()
    if not rows:
        return f"{source}: holds no rows"
    reason, number, first = rows[0]
    return f"{source}: no row is a chat; most ({number:,}) have: {reason} (first: {first})"
