"""Pairs of texts from a person's own file: JSON Lines or tab-separated, each row with a source and a target.

    {"source": "colour", "target": "color"}        *.jsonl, a JSON object a line; other keys are left alone
    source<TAB>target                              *.tsv, the first line names the columns; other columns likewise

Texts are taken as they stand: no cleaning, no quality rules. A target may not hold a line end in a .tsv. Rows that lack
a text are an error and no notice: in a task every row is meant. Quoting as in .csv files is left out.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from llm_journey.core.errors import BadInputError

Pairs = list[tuple[str, str]]  # (source, target)
PAIR_SUFFIXES = (".jsonl", ".tsv")
SOURCE, TARGET = "source", "target"
_LINE_BYTES = 1 << 20
_FILE_BYTES = 1 << 30


def is_pair_file(name: str) -> bool:
    """Whether a data source is a file of pairs, by its name."""
    return Path(name).suffix.lower() in PAIR_SUFFIXES


def read_pair_file(path: Path, most: int | None = None) -> Pairs:
    """The first `most` pairs of a file, each once, in its order. Raises BadInputError naming the line."""
    try:
        if not path.is_file():
            raise BadInputError(f"{path}: no such file")
        if path.stat().st_size > _FILE_BYTES:
            raise BadInputError(f"{path}: larger than {_FILE_BYTES >> 30} GiB; give fewer pairs")
        rows = _tab_separated(path) if path.suffix.lower() == ".tsv" else _json_lines(path)
        found: dict[tuple[str, str], None] = {}
        for pair in rows:
            found.setdefault(pair)
            if most is not None and len(found) == most:
                break
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    if len({source for source, _ in found}) < 2:
        raise BadInputError(f"{path}: holds {len(found)} pairs; at least two with different sources are needed")
    return list(found)


def split_pairs(pairs: Pairs, held_out: float, seed: int) -> dict[str, Pairs]:
    """ "train" and "validation": a pair is held out by the hash of its source, so the same source never stands in both.

    Which side a source falls on depends on it and the seed alone: pairs that are added later move no old ones. Where
    all fall on one side, the source with the smallest (largest) hash goes to the other.
    """
    keys = {source: _key(source, seed) for source, _ in pairs}
    limit = int(held_out * 2**64)
    chosen = {source for source, key in keys.items() if key < limit}
    if not chosen:
        chosen = {min(keys, key=keys.__getitem__)}
    elif len(chosen) == len(keys):
        chosen.discard(max(keys, key=keys.__getitem__))
    return {
        "train": [pair for pair in pairs if pair[0] not in chosen],
        "validation": [pair for pair in pairs if pair[0] in chosen],
    }


def _key(source: str, seed: int) -> int:
    digest = hashlib.sha256(b"%d:" % seed + source.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def _json_lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise BadInputError(f"{path}:{number}: no JSON object; each line is one, with {SOURCE!r} and {TARGET!r}")
        texts = [row.get(key) for key in (SOURCE, TARGET)]
        for key, text in zip((SOURCE, TARGET), texts, strict=True):
            if not isinstance(text, str) or not text:
                keys = ", ".join(str(name)[:40] for name in list(row)[:8]) or "none"
                raise BadInputError(f"{path}:{number}: no text under {key!r}; its keys are: {keys}")
        yield str(texts[0]), str(texts[1])


def _tab_separated(path: Path) -> Iterator[tuple[str, str]]:
    columns: list[str] = []
    for number, line in _lines(path):
        cells = line.split("\t")
        if not columns:
            if SOURCE not in cells or TARGET not in cells:
                raise BadInputError(
                    f"{path}:{number}: the first line must name the columns, {SOURCE!r} and {TARGET!r} among them"
                )
            columns = cells
            continue
        if len(cells) != len(columns):
            raise BadInputError(f"{path}:{number}: {len(cells)} columns, the first line names {len(columns)}")
        texts = dict(zip(columns, cells, strict=True))
        if not texts[SOURCE] or not texts[TARGET]:
            empty = SOURCE if not texts[SOURCE] else TARGET
            raise BadInputError(f"{path}:{number}: the column {empty!r} is empty")
        yield texts[SOURCE], texts[TARGET]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of each line that is not blank, as UTF-8."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LINE_BYTES + 1):
            number += 1
            if len(line) > _LINE_BYTES:
                raise BadInputError(f"{path}:{number}: longer than {_LINE_BYTES >> 20} MiB; a pair is short")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise BadInputError(f"{path}:{number}: not UTF-8; save the file as UTF-8") from None
            text = text.removesuffix("\n").removesuffix("\r")
            if text.strip():
                yield number, text
