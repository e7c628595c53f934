"""Answer with the model in this folder. Needs Python 3.11, numpy and onnxruntime; nothing else, and no network.

    python run.py "Which planets have rings?"
    python run.py --plain --greedy "The city of"

model.onnx: token ids, keys and values so far -> the next token's logits, keys and values. tokenizer.json: byte-level
BPE. edge.json: how a chat is written, which tokens end it, how tokens are drawn.
"""

import argparse
import codecs
import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped, unused-ignore]

FOLDER = Path(__file__).resolve().parent
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Text is cut on a copy in which each character stands for its class, since Python's `re` knows no \p{L}: other letters
# become "a" (but "ſ", which in any case is an "s"), other numbers "0", other white space a tab, all else "!".
CLASSES = {r"\p{L}": "A-Za-zſ", r"\p{N}": "0-9", r"\s": " \t\n\v\f\r"}
SPACE = "\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


def class_of(character: str) -> str:
    if character < "\x80" or character == "ſ":
        return character
    kind = unicodedata.category(character)[0]
    return "\t" if character in SPACE else {"L": "a", "N": "0"}.get(kind, "!")


def python_pattern(published: str) -> re.Pattern[str]:
    inside = published.replace(r"\S", "[^" + CLASSES[r"\s"] + "]")
    parts = re.split(r"(\[[^\]]*\])", inside)
    for number, part in enumerate(parts):
        for name, characters in CLASSES.items():
            part = part.replace(name, characters if number % 2 else f"[{characters}]")
        parts[number] = part
    return re.compile("".join(parts))


class Tokenizer:
    """Byte-level BPE, as Hugging Face's tokenizer.json describes it."""

    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text(encoding="utf-8"))
        self.vocabulary: dict[str, int] = data["model"]["vocab"]
        merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in data["model"]["merges"]]
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.special = {token["content"]: token["id"] for token in data["added_tokens"]}
        self.whole_words, self.compose = data["model"].get("ignore_merges"), data["normalizer"] is not None
        steps = data["pre_tokenizer"].get("pretokenizers", [data["pre_tokenizer"]])
        self.digits = steps[0]["type"] == "Digits"
        self.pattern = python_pattern(steps[0]["pattern"]["Regex"] if steps[0]["type"] == "Split" else GPT2)
        names = sorted(self.special, key=len, reverse=True)
        self.markers = re.compile("(" + "|".join(map(re.escape, names)) + ")" if names else r"(?!)()")
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        spelled = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
        self.spelled = [spelled[byte] for byte in range(256)]
        byte_of = {character: byte for byte, character in spelled.items()}
        self.text = {
            i: bytes(byte_of[c] for c in name) for name, i in self.vocabulary.items() if name not in self.special
        }

    def encode(self, text: str) -> list[int]:
        """The ids of plain text: what looks like a special token is text like any other."""
        text = unicodedata.normalize("NFC", text) if self.compose else text
        return [token for word in self.words(text) for token in self.merge(word)]

    def encode_chat(self, before: str, text: str, after: str) -> list[int]:
        """The ids of a rendered chat: special tokens count around the text, not in it."""
        head, tail = self.markers.split(before), self.markers.split(after)
        parts = [*head[:-1], head[-1] + text + tail[0], *tail[1:]]
        return [i for n, part in enumerate(parts) for i in ([self.special[part]] if n % 2 else self.encode(part))]

    def words(self, text: str) -> Iterator[str]:
        classes, start = "".join(map(class_of, text)), 0
        for piece in re.split("([0-9])", classes) if self.digits else [classes]:
            for match in self.pattern.finditer(piece):
                yield text[start + match.start() : start + match.end()]
            start += len(piece)

    def merge(self, word: str) -> list[int]:
        data = word.encode("utf-8", "surrogatepass")
        parts = [c for c in map(self.spelled.__getitem__, data) if c in self.vocabulary]
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


class Model:
    """The graph, with the keys and values of what it has read."""

    def __init__(self, folder: Path, facts: dict[str, Any], threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.enable_cpu_mem_arena = threads, False
        self.session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        names = [item.name for item in self.session.get_inputs() if item.name.startswith("past_key_values.")]
        empty = np.zeros((1, facts["kv_heads"], 0, facts["head_width"]), np.float32)
        self.past, self.length, self.chunk = dict.fromkeys(names, empty), 0, facts["chunk"]

    def read(self, ids: list[int]) -> Any:
        """The logits of the token after `ids`, which follow what was read before."""
        for start in range(0, len(ids), self.chunk):  # piece by piece: memory is bounded however long the prompt is
            row = np.array([ids[start : start + self.chunk]], np.int64)
            stop = self.length + row.shape[1]
            feeds = {
                "input_ids": row,
                "attention_mask": np.ones((1, stop), np.int64),
                "position_ids": np.arange(self.length, stop)[None],
            }
            logits, *present = self.session.run(None, feeds | self.past)
            self.past, self.length = dict(zip(self.past, present, strict=True)), stop
        return logits[0, -1]


def draw(logits: Any, seen: list[int], sampling: dict[str, Any], random: np.random.Generator) -> int:
    """The next token: penalty, temperature, top-k, top-p and min-p, then a draw; temperature 0 takes the likeliest."""
    seen_ids, penalty = np.unique(seen), sampling.get("repetition_penalty", 1.0)
    logits[seen_ids] = np.where(logits[seen_ids] < 0, logits[seen_ids] * penalty, logits[seen_ids] / penalty)
    if sampling.get("temperature", 0.8) == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: sampling.get("top_k") or None]
    weights = np.exp((logits[order] - logits[order[0]]).astype(np.float64) / sampling.get("temperature", 0.8))
    weights /= weights.sum()
    before = np.cumsum(weights) - weights
    kept = (before < sampling.get("top_p", 1.0)) & (weights >= sampling.get("min_p", 0.0) * weights[0])
    return int(order[random.choice(len(order), p=weights * kept / (weights * kept).sum())])


def answer(
    model: Model, tokenizer: Tokenizer, ids: list[int], facts: dict[str, Any], seed: int | None
) -> Iterator[str]:
    """The text that follows, piece by piece; a character comes when all its bytes are there."""
    decoder, random, sampling = (
        codecs.getincrementaldecoder("utf-8")("replace"),
        np.random.default_rng(seed),
        facts["sampling"],
    )
    room = min(sampling.get("max_new_tokens", 256), facts["context"] - len(ids))
    seen, logits = list(ids), model.read(ids)
    for left in range(room, 0, -1):
        token = draw(logits, seen, sampling, random)
        if token in facts["stop"]:
            break
        seen.append(token)
        yield decoder.decode(tokenizer.text.get(token, b""))
        logits = model.read([token]) if left > 1 else logits
    yield decoder.decode(b"", final=True)


def main() -> int:
    facts = json.loads((FOLDER / "edge.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--plain", action="store_true", help="go on from the text, rather than answer it")
    parser.add_argument("--greedy", action="store_true", help="the likeliest token each time")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="temperature=0.5, top_k=40 ...")
    parser.add_argument("--seed", type=int, help="the same draws each time")
    parser.add_argument("--threads", type=int, default=0, help="processor threads; 0: all")
    given = parser.parse_args()
    facts["sampling"] |= {key: json.loads(value) for key, _, value in (item.partition("=") for item in given.set)}
    facts["sampling"] |= {"temperature": 0} if given.greedy else {}
    tokenizer, chat = Tokenizer(FOLDER / "tokenizer.json"), facts["chat"]
    if chat is None or given.plain:
        ids = [*facts["begin"], *tokenizer.encode(given.text), *facts["end"]] or facts["empty"]
    else:
        text = given.text.strip() if chat["strip"] else given.text
        ids = tokenizer.encode_chat(chat["before"], text, chat["after"])
    if not 0 < len(ids) < facts["context"]:
        sys.stderr.write(f"the prompt has {len(ids)} tokens, the model's context holds {facts['context']}\n")
        return 2
    for piece in answer(Model(FOLDER, facts, given.threads), tokenizer, ids, facts, given.seed):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
