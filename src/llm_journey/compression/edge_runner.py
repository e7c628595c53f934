"""Answer with the model in this folder. Needs Python 3.11 or newer, numpy and onnxruntime; no network.

    python run.py                                a chat, until a blank line
    python run.py "Which planets have rings?"    one answer
    python run.py --plain "The city of"          what follows a text

model.onnx: ids, keys and values so far -> the next token's logits, the keys and values of these ids. tokenizer.py:
text to ids. edge.json: how a chat is written, which tokens end an answer, how tokens are drawn.
"""

import argparse
import codecs
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_journey.compression.edge_tokenizer import Tokenizer

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy multiplies nothing here, and each thread costs it memory
try:
    import numpy as np
    import onnxruntime as ort  # type: ignore[import-untyped, unused-ignore]
except ModuleNotFoundError as missing:
    sys.exit(f"{missing.name} is missing: pip install numpy onnxruntime")

FOLDER = Path(__file__).resolve().parent


class Model:
    """The graph; the ids of what was said so far; the keys and values of those that it has read, (1, positions, K, E).

    Room for a whole context is asked for at once; the system gives it as it is filled.
    """

    def __init__(self, path: Path, facts: dict[str, Any], threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        past = [item for item in self.session.get_inputs() if item.name.startswith("past_key_values.")]
        self.past = {item.name: np.zeros((1, facts["context"], *item.shape[2:]), np.float32) for item in past}
        self.chunk = facts["chunk"]
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.ids: list[int] = []
        self.length = 0

    def read(self) -> Any:
        """Logits (V,) of the token after `ids`. What is new of them is read in pieces, so that memory is bounded."""
        while self.length < len(self.ids):
            row = np.array([self.ids[self.length : self.length + self.chunk]], np.int64)
            start, stop = self.length, self.length + row.shape[1]
            feeds = {name: kept[:, :start] for name, kept in self.past.items()} | {"input_ids": row}
            feeds |= {"attention_mask": np.ones((1, stop), np.int64), "position_ids": np.arange(start, stop)[None]}
            logits, *new = self.session.run(None, feeds)
            for kept, values in zip(self.past.values(), new, strict=True):
                kept[:, start:stop] = values
            self.length = stop
        return logits[0, -1]


def draw(logits: Any, seen: list[int], sampling: dict[str, Any], random: np.random.Generator) -> int:
    """The next token: penalty, temperature, top-k, top-p and min-p, then a draw; temperature 0 takes the likeliest."""
    old, penalty = np.unique(seen), sampling["repetition_penalty"]
    logits[old] = np.where(logits[old] < 0, logits[old] * penalty, logits[old] / penalty)
    if sampling["temperature"] == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: sampling["top_k"] or None]
    weights = np.exp((logits[order] - logits[order[0]]).astype(np.float64) / sampling["temperature"])
    weights /= weights.sum()
    weights[(np.cumsum(weights) - weights >= sampling["top_p"]) | (weights < sampling["min_p"] * weights[0])] = 0
    return int(order[random.choice(len(order), p=weights / weights.sum())])


def answer(model: Model, tokenizer: Tokenizer, facts: dict[str, Any], random: np.random.Generator) -> Iterator[str]:
    """The text that follows, piece by piece; a character comes when all its bytes are there."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for _ in range(min(facts["sampling"]["max_new_tokens"], facts["context"] - len(model.ids))):
        token = draw(model.read(), model.ids, facts["sampling"], random)
        if token in facts["stop"]:
            break
        model.ids.append(token)
        yield decoder.decode(tokenizer.text.get(token, b""))
    yield decoder.decode(b"", final=True)


def lines() -> Iterator[str]:
    """Standard input, up to a blank line."""
    with suppress(EOFError):
        while (text := input("> " if sys.stdin.isatty() else "")).strip():
            yield text


def main() -> int:
    """Answer each message. Returns 2 where one does not fit."""
    facts = json.loads((FOLDER / "edge.json").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", help="the message; without it, each line of standard input is one")
    parser.add_argument("--plain", action="store_true", help="go on from the text, rather than answer it")
    for name, default in facts["sampling"].items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"here {default}")
    parser.add_argument("--greedy", dest="temperature", action="store_const", const=0.0, help="the likeliest token")
    parser.add_argument("--seed", type=int, help="the same draws each time")
    parser.add_argument("--threads", type=int, default=0, help="processor threads; 0: all")
    given = parser.parse_args()
    facts["sampling"] = sampling = {name: getattr(given, name) for name in facts["sampling"]}
    shares, numbers = (sampling["top_p"], sampling["min_p"]), [*sampling.values(), given.seed or 0]
    fit = all(0 <= value < float("inf") for value in numbers) and max(shares) <= 1
    if not fit or 0 in (sampling["top_p"], sampling["repetition_penalty"]):
        parser.error("settings are 0 or more, top-p and the repetition penalty above 0, top-p and min-p at most 1")
    frame = facts["plain" if given.plain else "chat"]
    tokenizer, random = Tokenizer(FOLDER / "tokenizer.json"), np.random.default_rng(given.seed)
    try:
        model = Model(FOLDER / "model.onnx", facts, given.threads)
    except Exception as error:  # onnxruntime's have no type in common
        sys.exit(f"model.onnx cannot be opened, is the folder whole? {error}")
    for text in lines() if given.text is None else [given.text]:
        if frame["between"] is None:  # each text stands by itself
            model.forget()
        said = text.strip() if frame["strip"] else text
        ids = tokenizer.encode_chat(frame["between"] if model.ids else frame["before"], said, frame["after"])
        if model.ids and not 0 < len(ids) < facts["context"] - len(model.ids):
            sys.stderr.write("(the context is full: what was said before is forgotten)\n")
            model.forget()
            ids = tokenizer.encode_chat(frame["before"], said, frame["after"])
        if not 0 < len(ids) < facts["context"]:
            sys.stderr.write(f"the prompt has {len(ids)} tokens, the model's context holds {facts['context']}\n")
            return 2
        model.ids += ids
        for piece in answer(model, tokenizer, facts, random):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: copy the whole folder")
