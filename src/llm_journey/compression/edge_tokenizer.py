"""Text to token ids and back: byte-level BPE as Hugging Face's tokenizer.json describes it, in plain Python.

Python's own library alone: it lies as tokenizer.py beside run.py in an edge folder. Byte pairs are merged as GPT-2
does (Radford et al. 2019, section 2.2). Left out: other kinds of tokenizers, which an export refuses.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Text is cut on a copy in which each character stands for its class, since Python's `re` knows no \p{L}: other letters
# become "a" (but "ſ", which in any case is an "s"), other numbers "0", other white space a tab, all else "!".
CLASSES = {r"\p{L}": "A-Za-zſ", r"\p{N}": "0-9", r"\s": " \t\n\v\f\r"}
SPACE = "\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def class_of(character: str) -> str:
    """The character that stands for it; it is itself where it is ASCII."""
    if character < "\x80" or character == "ſ":
        return character
    kind = unicodedata.category(character)[0]
    return "\t" if character in SPACE else {"L": "a", "N": "0"}.get(kind, "!")


def python_pattern(published: str) -> re.Pattern[str]:
    r"""A published split pattern for texts of classes; \p{L} may stand by itself or within brackets."""
    parts = re.split(r"(\[[^\]]*\])", published.replace(r"\S", "[^" + CLASSES[r"\s"] + "]"))
    for name, characters in CLASSES.items():
        parts[::2] = [part.replace(name, f"[{characters}]") for part in parts[::2]]
        parts[1::2] = [part.replace(name, characters) for part in parts[1::2]]
    return re.compile("".join(parts))


class Tokenizer:
    """The tokenizer of a tokenizer.json. text: token id -> its bytes, special tokens left out."""

    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text(encoding="utf-8"))
        model, steps = data["model"], data["pre_tokenizer"].get("pretokenizers", [data["pre_tokenizer"]])
        self.vocabulary: dict[str, int] = model["vocab"]
        self.ranks = {tuple(m.split(" ") if isinstance(m, str) else m): n for n, m in enumerate(model["merges"])}
        self.special = {token["content"]: token["id"] for token in data["added_tokens"]}
        self.whole_words, self.compose = model.get("ignore_merges"), data["normalizer"] is not None
        self.digits = steps[0]["type"] == "Digits"  # each by itself
        self.pattern = python_pattern(steps[0]["pattern"]["Regex"] if steps[0]["type"] == "Split" else GPT2)
        names = sorted(self.special, key=len, reverse=True)
        self.markers = re.compile("(" + "|".join(map(re.escape, names)) + ")" if names else r"(?!)()")
        # How vocab spells bytes: those of printable Latin-1 characters as these, the others as U+0100 and on.
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = iter(range(0x100, 0x200))
        self.spelled = [chr(byte if byte in printable else next(others)) for byte in range(256)]
        byte_of = {character: byte for byte, character in enumerate(self.spelled)}
        plain = ((name, token) for name, token in self.vocabulary.items() if name not in self.special)
        self.text = {token: bytes(map(byte_of.__getitem__, name)) for name, token in plain}

    def encode(self, text: str) -> list[int]:
        """The ids of plain text: what looks like a special token is text like any other."""
        text = unicodedata.normalize("NFC", text) if self.compose else text
        return [token for word in self.words(text) for token in self.merge(word)]

    def encode_chat(self, before: str, text: str, after: str) -> list[int]:
        """The ids of a message between what a chat template writes: special tokens count around it, not in it."""
        head, tail = self.markers.split(before), self.markers.split(after)
        parts = [*head[:-1], head[-1] + text + tail[0], *tail[1:]]
        return [i for n, part in enumerate(parts) for i in ([self.special[part]] if n % 2 else self.encode(part))]

    def words(self, text: str) -> Iterator[str]:
        """`text` cut where no token may cross."""
        classes, start = "".join(map(class_of, text)), 0
        for piece in re.split("([0-9])", classes) if self.digits else [classes]:
            for match in self.pattern.finditer(piece):
                yield text[start + match.start() : start + match.end()]
            start += len(piece)

    def merge(self, word: str) -> list[int]:
        """The ids of a word: its bytes, the pair that was learnt first merged again and again."""
        spelled = map(self.spelled.__getitem__, word.encode("utf-8", "surrogatepass"))
        parts = [character for character in spelled if character in self.vocabulary]
        if self.whole_words and "".join(parts) in self.vocabulary:
            return [self.vocabulary["".join(parts)]]
        while len(parts) > 1:
            pair = min(pairwise(parts), key=lambda p: self.ranks.get(p, len(self.ranks)))
            if pair not in self.ranks:
                break
            merged, i = [], 0
            while i < len(parts):
                joined = tuple(parts[i : i + 2]) == pair
                merged.append(parts[i] + parts[i + 1] if joined else parts[i])
                i += 2 if joined else 1
            parts = merged
        return [self.vocabulary[part] for part in parts]
