"""Chats prepared for training: read, rendered, masked, split; whatever cannot be used is counted by reason.

    train, train-trained, validation, validation-trained    token shards (datasets.chat_loader)
    validation-chats.jsonl                                   the held-out chats themselves, for samples and scores
    chats.json                                               what became of the rows

The split depends on nothing but what is asked (all that the assistant did not write) and the seed: adding chats moves
none of the old ones, and no chat is held out that asks the same as one that is trained. An equal chat counts once.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from llm_journey.core import files
from llm_journey.core.config import STRICT
from llm_journey.core.errors import BadInputError
from llm_journey.datasets.chat import Chat, ChatCounts, read_chats
from llm_journey.datasets.chat_loader import write_chats
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.chat_training import ChatExample, chat_examples

# Of what chats are made into; to be raised with each change of it, so that no cache of an older form is taken.
CHATS_VERSION = 2
CHATS_FILE, HELD_OUT_CHATS = "chats.json", "validation-chats.jsonl"
_TOO_LONG, _EQUAL = "longer than the context", "a duplicate"
_MANY = 5_000_000  # examples, which are held in memory while they are written


@dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """What to do with chats that cannot be used as they are.

    bad_rows: rows that are no chat (broken JSON, missing fields, empty answers, wrong roles) are left out and counted
    ("skip"), or end the preparation, by line ("refuse"). too_long: chats that do not fit the context are left out and
    counted, "cut" at its end, or refused. scored: each validation also lets the model answer so many held-out chats,
    and counts the answers that are right.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    bad_rows: Literal["skip", "refuse"] = "skip"
    too_long: Literal["skip", "cut", "refuse"] = "skip"
    scored: int = 0

    def __post_init__(self) -> None:
        if self.scored < 0:
            raise ValueError(f"scored must not be negative, not {self.scored}")


@dataclass
class PreparedChats:
    """Counts of a preparation. left_out: (reason, rows, the first of them)."""

    rows: int = 0
    chats: dict[str, int] = field(default_factory=lambda: {"train": 0, "validation": 0})
    examples: dict[str, int] = field(default_factory=lambda: {"train": 0, "validation": 0})
    tokens: int = 0
    trained: int = 0
    cut: int = 0
    left_out: list[tuple[str, int, str]] = field(default_factory=list)

    @classmethod
    def open(cls, directory: Path) -> "PreparedChats":
        """What `prepare_chats` noted in a folder."""
        values = files.read_json(directory / CHATS_FILE)
        return cls(**values | {"left_out": [(str(a), int(b), str(c)) for a, b, c in values["left_out"]]})


def prepare_chats(
    rows: Iterable[tuple[str, Any]],
    tokenizer: Tokenizer,
    directory: Path,
    *,
    config: ChatConfig,
    context: int,
    held_out: float,
    split_seed: int,
    max_chats: int | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> PreparedChats:
    """Write the chats of some rows (where, row) into a directory that exists.

    Raises BadInputError where no chat can be used, where only one is there (none could be held out), and, by line, for
    what the config refuses.
    """
    reader = _Reader(tokenizer, config, context, held_out, split_seed)
    for number, chat in enumerate(read_chats(reader.counted(rows), reader.counts, strict=config.bad_rows == "refuse")):
        if number == max_chats:
            break
        reader.add(chat)
        on_progress(reader.prepared.rows)
    reader.give_validation_one()
    prepared = reader.prepared
    prepared.left_out = reader.counts.rows()
    if not prepared.chats["train"] or not prepared.chats["validation"]:
        reasons = "; ".join(f"{reason}: {count:,} (first: {first})" for reason, count, first in prepared.left_out[:3])
        used = sum(prepared.chats.values())
        raise BadInputError(
            f"{used} chats can be used, of {prepared.rows:,} rows, and at least 2 are needed: one is held out"
            + (f" ({reasons})" if reasons else "")
        )
    for split, examples in reader.kept.items():
        pairs = ((each.ids, each.trained) for _, each in examples)
        write_chats(
            pairs,
            directory,
            split=split,
            vocab_size=tokenizer.vocab_size,
            end_id=tokenizer.end_id,
            num_bytes=lambda ids: len(tokenizer.decode_bytes(ids)),
        )
    files.write_text(directory / HELD_OUT_CHATS, "".join(f"{line}\n" for _, line in reader.held_out))
    files.write_json(directory / CHATS_FILE, vars(prepared))
    return prepared


def held_out_chats(directory: Path) -> Iterator[dict[str, Any]]:
    """{"messages", "tools"} of each held-out chat of a prepared directory."""
    with (directory / HELD_OUT_CHATS).open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


class _Reader:
    """The examples of the chats read so far, by split."""

    def __init__(self, tokenizer: Tokenizer, config: ChatConfig, context: int, held_out: float, seed: int) -> None:
        self.counts, self.prepared = ChatCounts(), PreparedChats()
        self.kept: dict[str, list[tuple[int, ChatExample]]] = {"train": [], "validation": []}  # (split key, example)
        self.held_out: list[tuple[int, str]] = []
        self._tokenizer, self._config, self._context = tokenizer, config, context
        self._threshold, self._seed = int(held_out * 2**64), seed
        self._seen: set[bytes] = set()
        self._lowest: tuple[int, str] = (1 << 64, "")  # of the training chats, with the chat

    def counted(self, rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for row in rows:
            self.prepared.rows += 1
            yield row

    def add(self, chat: Chat) -> None:
        line = json.dumps({"messages": chat.messages, "tools": chat.tools}, ensure_ascii=False, sort_keys=True)
        digest = hashlib.sha256(line.encode("utf-8", "surrogatepass")).digest()
        if digest in self._seen:
            self.counts.note(_EQUAL, chat.where)
            return
        examples = self._examples(chat)
        if not examples:
            return
        self._seen.add(digest)
        key = _key(chat, self._seed)
        split = "validation" if key < self._threshold else "train"
        if split == "train":
            self._lowest = min(self._lowest, (key, line))
        else:
            self.held_out.append((key, line))
        self.kept[split] += [(key, example) for example in examples]
        self._note(split, examples)
        if sum(map(len, self.kept.values())) > _MANY:
            raise BadInputError(f"more than {_MANY:,} chats; set data.max_documents")

    def _examples(self, chat: Chat) -> list[ChatExample]:
        """What the chat teaches and the context holds."""
        try:
            whole = chat_examples(self._tokenizer, chat.messages, tools=chat.tools)
        except BadInputError as error:
            self._refuse(chat, str(error), self._config.bad_rows)
            return []
        fitting = [example for example in whole if len(example.ids) <= self._context + 1]
        if len(fitting) < len(whole):
            self._refuse(chat, f"{_TOO_LONG} of {self._context}", self._config.too_long)
        if self._config.too_long == "cut":
            end = self._context + 1
            cut = [ChatExample(example.ids[:end], example.trained[:end]) for example in whole]
            fitting = [example for example in cut if any(example.trained[1:])]
            self.prepared.cut += sum(len(example.ids) > end for example in whole)
            if not fitting:
                self.counts.note(f"{_TOO_LONG} of {self._context}, before the assistant speaks", chat.where)
        return fitting

    def _refuse(self, chat: Chat, reason: str, setting: str) -> None:
        if setting == "refuse":
            raise BadInputError(f"{chat.where}: {reason}")
        if setting == "skip":
            self.counts.note(reason, chat.where)

    def _note(self, split: str, examples: list[ChatExample], sign: int = 1) -> None:
        self.prepared.chats[split] += sign
        self.prepared.examples[split] += sign * len(examples)
        if sign > 0:
            self.prepared.tokens += sum(len(example.ids) for example in examples)
            self.prepared.trained += sum(sum(example.trained) for example in examples)

    def give_validation_one(self) -> None:
        """Of so few chats that none was held out, the one whose key is lowest is."""
        if self.kept["validation"] or self.prepared.chats["train"] < 2:
            return
        key, line = self._lowest
        moved = [pair for pair in self.kept["train"] if pair[0] == key]
        self.kept["train"] = [pair for pair in self.kept["train"] if pair[0] != key]
        self.kept["validation"] = moved
        self.held_out.append((key, line))
        examples = [example for _, example in moved]
        self._note("train", examples, -1)
        self.prepared.chats["validation"] += 1
        self.prepared.examples["validation"] += len(examples)


def _key(chat: Chat, seed: int) -> int:
    """In [0, 2^64), of what is asked."""
    digest = hashlib.sha256(b"%d:" % seed)
    for message in chat.messages:
        if message["role"] != "assistant":
            digest.update(json.dumps([message["role"], message["content"]]).encode())
    return int.from_bytes(digest.digest()[:8], "big")
