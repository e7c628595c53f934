"""Files changed at random, and a process of its own that opens them under watch.

As a program (`python fuzzing.py SEED COUNT FOLDER KIND ...`) it opens COUNT changed folders of each kind that
fuzzed_kinds has, and prints what came of it. A case has 1 s by the clock: one that takes longer is tried again, since
the machine may have been busy, and counts with its best time. One that does not end within 20 s is ended by the alarm's
signal, whatever code it hangs in, and `opened_under_watch` says which it was.
"""

import gc
import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS, HANGS_AFTER, TRIES = 1.0, 20, 3
MEMORY_KIB = 64 << 10

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 1 << 20, (1 << 20) + 1, 1 << 31, 1 << 62, -(1 << 70), 0.5, 1e-300, 1e308),
    *(-0.0, "", "gelu", "none", "rope", "encoder", "decoder", "../../etc/passwd", "\0", "é" * 1000, "NaN", [], [1], {}),
    *({"rope_type": "default"}, ["BertForMaskedLM"], ["BertForPreTraining"], [[]] * 3, "bert", "marian", "llm_journey"),
    *("BPE", "WordPiece", "NFC", "{% for x in y %}", "{{ 10 ** 10 ** 10 }}", "\ud800", "[CLS]", "<|endoftext|>"),
]

Change = Callable[[bytes, random.Random], bytes]
# Opens what a folder holds: anything else than a BadInputError is a failure.
Open = Callable[[Path], object]


@dataclass(frozen=True)
class Kind:
    """Folders of one kind: made once, then changed at `places` (a file's name and how) and opened, again and again."""

    make: Callable[[Path], list[Path]]
    places: list[tuple[str, Change]]
    open: Open


def changed_values(data: bytes, generator: random.Random) -> bytes:
    """A JSON file with up to three values exchanged, left out or under another key, at any depth."""
    value = json.loads(data)
    for _ in range(generator.randint(1, 3)):
        found = inner = value
        while isinstance(inner, dict | list) and inner and (inner is value or generator.random() < 0.7):
            found, key = inner, generator.choice([*inner] if isinstance(inner, dict) else range(len(inner)))
            inner = found[key]
        if not found or not isinstance(found, dict | list):
            return data
        match generator.randrange(4):
            case 0:
                del found[key]
            case 1 if isinstance(found, dict):
                found[f"{key}_"] = found[key]
            case 1:
                found.append(found[key])
            case _:
                found[key] = generator.choice(ODD_VALUES)
    return json.dumps(value).encode()


def changed_bytes(data: bytes, generator: random.Random) -> bytes:
    """Cut, spread, doubled, flipped: mostly near the beginning, where a header is."""
    place = generator.randrange(min(len(data), 300)) if generator.random() < 0.7 else generator.randrange(len(data))
    match generator.randrange(5):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + data[place + generator.randint(1, 9) :]
        case 2:
            return data[:place] + data[: generator.randint(1, 99)] + data[place:]
        case _:
            return data[:place] + bytes([data[place] ^ 1 << generator.randrange(8)]) + data[place + 1 :]


def opened_under_watch(*kinds: str, seed: int, count: int, directory: Path) -> list[int]:
    """For each kind how many of `count` changed folders were refused; every other one was opened.

    Fails with the case that broke, took too long or too much memory.
    """
    command = [sys.executable, "-X", "faulthandler", __file__, str(seed), str(count), str(directory), *kinds]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"{done.stdout[-500:]}{done.stderr[-3000:]}\n(ended with {done.returncode}; -14: it hung)"
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for found in results:
        assert found["slowest"] < SECONDS, found
        assert found["grown_kib"] < MEMORY_KIB + found["largest_file_kib"], found
    return [found["refused"] for found in results]


def _open(kind: Kind, folder: Path) -> tuple[bool, float]:
    """(refused, seconds)."""
    from llm_journey.core.errors import BadInputError

    signal.alarm(HANGS_AFTER)
    began = time.perf_counter()
    refused = False
    try:
        kind.open(folder)
    except BadInputError as error:
        refused = True
        assert "\n" not in str(error) and len(str(error)) < 3000, error
    seconds = time.perf_counter() - began
    signal.alarm(0)
    return refused, seconds


def _run(kind: Kind, generator: random.Random, count: int, directory: Path) -> dict[str, Any]:
    folders = kind.make(directory)
    for folder in folders:
        kind.open(folder)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refusals, slowest, largest = 0, (0.0, ""), 0
    for number in range(count):
        folder = generator.choice(folders)
        name, change = generator.choice([place for place in kind.places if (folder / place[0]).exists()])
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(change(whole, generator))
        largest = max(largest, *(path.stat().st_size for path in folder.rglob("*")))
        print(f"case {number}: {folder.name}/{name}", file=sys.stderr)
        refused, seconds = _open(kind, folder)
        for _ in range(TRIES - 1):
            if seconds > SECONDS:
                seconds = min(seconds, _open(kind, folder)[1])
        refusals += refused
        slowest = max(slowest, (seconds, f"case {number}: {name}"))
        (folder / name).write_bytes(whole)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found = {"refused": refusals, "grown_kib": grown, "largest_file_kib": largest >> 10}
    return found | {"slowest": slowest[0], "slowest_case": slowest[1]}


def _main(seed: str, count: str, directory: str, *names: str) -> None:
    from fuzzed_kinds import KINDS

    for name in names:
        found = _run(KINDS[name], random.Random(int(seed)), int(count), Path(directory, name))
        print(json.dumps({"kind": name} | found))


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parents[1]))
    _main(*sys.argv[1:])
