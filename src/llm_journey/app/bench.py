"""`journey bench`: one model answered by each runtime on this machine, side by side in one run.

Each backend runs in a process of its own (its memory is then its own) and all of them take turns: a round gives each
one slice, a prompt read and some tokens written greedily, in an order that turns about. Figures are medians over
rounds, with the spread from the lower to the upper quartile. The share of the bandwidth limit is tokens/s times the
bytes of weights that each reads, over what a pass over a large array reads in a second on the same threads.

The time is bounded: a backend that is not ready in time is left out, and said so; no round begins after the budget.
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_journey.app.bench_backends import KINDS, Files, Kind, lacking, prepare_file
from llm_journey.app.certificates import TEXTS
from llm_journey.core import lineage
from llm_journey.core.errors import BadInputError, JourneyError, unknown_name
from llm_journey.training.observer import Observer

if TYPE_CHECKING:
    from llm_journey.app.language_model import LanguageModel

READY_SECONDS = 180.0
_WARM_TOKENS = 4


@dataclass
class Figures:
    """What was measured of a backend, slice by slice; `note` says why there is nothing."""

    name: str
    note: str = ""
    ready_seconds: float = 0.0
    model_bytes: int = 0
    first_token: list[float] = field(default_factory=list)  # seconds, the prompt read
    gaps: list[list[float]] = field(default_factory=list)  # seconds between tokens
    ids: list[int] = field(default_factory=list)
    peak_bytes: int | None = None
    resident_bytes: int | None = None
    gpu_bytes: int | None = None

    def describe(self, prompt: int, bandwidth: float, reference: Sequence[int]) -> dict[str, Any]:
        """The row as JSON values; a backend that was not measured has its note alone."""
        if not self.gaps:
            return {"backend": self.name, "note": self.note}
        decode = [len(gaps) / sum(gaps) for gaps in self.gaps]
        latencies = sorted(gap for gaps in self.gaps for gap in gaps)
        share = median(decode) * self.model_bytes / bandwidth if not self.name.endswith("cuda") else None
        return {
            "backend": self.name,
            "rounds": len(self.gaps),
            "prefill_tokens_per_second": _spread([prompt / seconds for seconds in self.first_token]),
            "decode_tokens_per_second": _spread(decode),
            "first_token_ms": _spread([1e3 * seconds for seconds in self.first_token]),
            "token_ms": {f"p{share}": round(1e3 * quantile(latencies, share / 100), 3) for share in (50, 95, 99)},
            "model_bytes": self.model_bytes,
            "peak_bytes": self.peak_bytes,
            "resident_bytes": self.resident_bytes,
            "gpu_bytes": self.gpu_bytes,
            "bandwidth_share": None if share is None else round(share, 4),
            "ready_seconds": round(self.ready_seconds, 2),
            "same_tokens": _leading(self.ids, reference),
        }


@dataclass(frozen=True)
class BenchTable:
    """The finished table."""

    model: str
    figures: tuple[Figures, ...]
    prompt: int
    tokens: int
    threads: int
    bandwidth: float

    HEAD = (
        "backend",
        "prefill tok/s",
        "decode tok/s",
        "quartiles",
        "first token ms",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "weights MB",
        "peak MB",
        "of bandwidth",
        "same tokens",
    )

    def describe(self) -> dict[str, Any]:
        """The table as JSON values."""
        return {
            "model": self.model,
            "prompt_tokens": self.prompt,
            "new_tokens": self.tokens,
            "threads": self.threads,
            "bandwidth_bytes_per_second": round(self.bandwidth),
            "hardware": lineage.hardware(),
            "versions": lineage.versions(),
            "backends": [item.describe(self.prompt, self.bandwidth, self._reference) for item in self.figures],
        }

    def rows(self) -> list[list[str]]:
        """The table's cells, the fastest first; what was not measured is in `notes`."""
        measured = [row for row in self.describe()["backends"] if "rounds" in row]
        measured.sort(key=lambda row: -row["decode_tokens_per_second"]["median"])
        return [_cells(row, self.tokens) for row in measured]

    def notes(self) -> list[str]:
        """One line for each reason why backends were not measured."""
        reasons: dict[str, list[str]] = {}
        for item in self.figures:
            if not item.gaps:
                reasons.setdefault(item.note, []).append(item.name)
        return [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]

    def summary(self) -> str:
        """What was measured, in a line."""
        return (
            f"{self.model}: {self.prompt} tokens read, {self.tokens} written, {self.threads} threads; "
            f"memory is read at {self.bandwidth / 1e9:.1f} GB/s"
        )

    def save_plot(self, path: Path) -> None:
        """Decode and prefill speeds as bars, with their quartiles."""
        from llm_journey.reports.speed_picture import save_speeds

        measured = [row for row in self.describe()["backends"] if "rounds" in row]
        measured.sort(key=lambda row: row["decode_tokens_per_second"]["median"])
        save_speeds(measured, self.summary(), path)

    @property
    def _reference(self) -> list[int]:
        """The tokens of float32: ours, else the first that was measured."""
        measured = [item for item in self.figures if item.ids]
        exact = [item for item in measured if "float32" in item.name]
        return [*exact, *measured][0].ids if measured else []


def run_bench(
    name_or_path: str,
    observer: Observer,
    *,
    backends: Sequence[str] = (),
    rounds: int = 5,
    prompt: int = 256,
    tokens: int = 32,
    threads: int = 0,
    seconds: float = 600.0,
) -> BenchTable:
    """Measure a decoder's backends in turns. backends: names, all that this machine has if empty. threads: 0 is all.

    Raises BadInputError for an unknown backend, a number that is out of range, and a model that is no decoder,
    JourneyError where no backend could be measured.
    """
    from llm_journey.app.language_model import open_model

    for name in backends:
        if name not in KINDS:
            raise unknown_name("backend", name, KINDS)
    if min(rounds, prompt) < 1 or tokens < 2 or threads < 0 or seconds <= 0:
        raise BadInputError("rounds, prompt and seconds must be at least 1, tokens at least 2, threads at least 0")
    deadline = time.monotonic() + seconds
    model = open_model(name_or_path)
    context = model.decoder.config.context
    if prompt + tokens > context:
        raise BadInputError(f"{prompt} tokens read and {tokens} written do not fit the model's context of {context}")
    ids = prompt_ids(model, prompt)
    threads = threads or lineage.usable_cores()
    chosen = [KINDS[name] for name in dict.fromkeys(backends)] or list(KINDS.values())
    with tempfile.TemporaryDirectory() as temporary:
        files = {"model": str(Path(name_or_path).expanduser()) if Path(name_or_path).exists() else name_or_path}
        found, workers = _start(chosen, model, files, Path(temporary), threads, observer)
        label = model.name
        del model
        try:
            _take_turns(found, workers, ids, rounds, tokens, deadline, observer)
        finally:
            for worker in workers.values():
                worker.close()
    if not any(item.gaps for item in found):
        raise JourneyError("no backend could be measured: " + "; ".join(f"{i.name}: {i.note}" for i in found))
    observer.stage("measuring how fast memory is read")
    return BenchTable(label, tuple(found), prompt, tokens, threads, read_bandwidth(threads))


def prompt_ids(model: "LanguageModel", count: int) -> list[int]:
    """`count` ids of ordinary text."""
    ids: list[int] = []
    while len(ids) < count:
        ids += model.tokenizer.encode(" ".join(TEXTS))
    return ids[:count]


def read_bandwidth(threads: int) -> float:
    """Bytes/s of one pass over an array that no cache holds: the median of nine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        large, times = torch.ones(64_000_000), []
        for _ in range(9):
            began = time.perf_counter()
            large.sum()
            times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return large.nbytes / median(times)


def _start(
    chosen: Sequence[Kind], model: "LanguageModel", files: Files, folder: Path, threads: int, observer: Observer
) -> tuple[list[Figures], dict[str, "_Worker"]]:
    """A process for each backend that this machine can run, ready to answer."""
    found, workers = [], {}
    for number, kind in enumerate(chosen):
        observer.stage(f"opening {kind.name} ({number + 1} of {len(chosen)})")
        item = Figures(kind.name, lacking(kind))
        found.append(item)
        if item.note:
            continue
        if kind.file not in files:
            try:
                files[kind.file] = str(prepare_file(model, kind.file, folder))
            except JourneyError as error:
                item.note = str(error)
                continue
        worker = _Worker(threads)
        try:
            ready = worker.ask({"kind": kind.name, "files": files, "threads": threads}, READY_SECONDS)
        except JourneyError as error:
            item.note = str(error)
            worker.close()
            continue
        item.ready_seconds, item.model_bytes = ready["ready"], ready["model_bytes"]
        workers[kind.name] = worker
    return found, workers


def _take_turns(
    found: Sequence[Figures],
    workers: dict[str, "_Worker"],
    ids: Sequence[int],
    rounds: int,
    tokens: int,
    deadline: float,
    observer: Observer,
) -> None:
    """Rounds of slices, the first of them to warm up; then each process's memory, and its end."""
    running = [item for item in found if item.name in workers]
    observer.stage("measuring")
    total, done = rounds * len(running), 0
    for round_number in range(-1, rounds):
        if round_number > 0 and time.monotonic() > deadline:
            observer.message(f"the time is used up after {round_number} of {rounds} rounds")
            break
        turned = round_number % len(running) if running else 0
        for item in [*running[turned:], *running[:turned]]:
            if item.name not in workers:
                continue
            count = _WARM_TOKENS if round_number < 0 else tokens
            left = max(deadline - time.monotonic(), 0) + READY_SECONDS
            try:
                reply = workers[item.name].ask({"ids": list(ids), "count": count}, left)
            except JourneyError as error:
                item.note = str(error)
                item.gaps.clear()
                workers.pop(item.name).close()
                continue
            if round_number >= 0:
                item.first_token.append(reply["seconds"][0])
                item.gaps.append(reply["seconds"][1:])
                item.ids = reply["ids"]
                done += 1
                observer.progress(done, total, "slices")
    for item in running:
        if item.name in workers:
            memory = workers[item.name].ask({"memory": True}, READY_SECONDS)
            item.peak_bytes, item.resident_bytes = memory["peak_bytes"], memory["resident_bytes"]
            item.gpu_bytes = memory["gpu_bytes"]


class _Worker:
    """A process of app.bench_worker. `ask` raises JourneyError where it fails, ends or takes too long."""

    def __init__(self, threads: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"HF_HUB_OFFLINE": "1"}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "llm_journey.app.bench_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            env=environment,
        )
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The reply to a request."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._replies.get(timeout=seconds)
        except queue.Empty:
            raise JourneyError(f"took more than {seconds:.0f} seconds") from None
        except OSError:
            line = None
        reply: dict[str, Any] = {"error": self._last_words()} if line is None else json.loads(line)
        if "error" in reply:
            raise JourneyError(reply["error"])
        return reply

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.wait()
        self._reader.join(10)
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put(None)

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return f"its process ended: {lines[-1][:200]}" if lines else "its process ended without a word"


def median(values: Sequence[float]) -> float:
    return quantile(sorted(values), 0.5)


def quantile(ascending: Sequence[float], share: float) -> float:
    """The value below which that share lies, between two values in proportion (Hyndman and Fan 1996, type 7)."""
    place = share * (len(ascending) - 1)
    low = int(place)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (place - low) * (ascending[high] - ascending[low])


def _spread(values: Sequence[float]) -> dict[str, float]:
    ascending = sorted(values)
    quartiles = {"lower": 0.25, "median": 0.5, "upper": 0.75}
    return {name: round(quantile(ascending, share), 2) for name, share in quartiles.items()}


def _leading(ids: Sequence[int], reference: Sequence[int]) -> int:
    """How many tokens are the reference's, up to the first other one."""
    pairs = zip(ids, reference, strict=False)
    return next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), min(len(ids), len(reference)))


def _cells(row: dict[str, Any], tokens: int) -> list[str]:
    decode, share = row["decode_tokens_per_second"], row["bandwidth_share"]
    return [
        row["backend"],
        f"{row['prefill_tokens_per_second']['median']:,.0f}",
        f"{decode['median']:,.1f}",
        f"{decode['lower']:,.1f} to {decode['upper']:,.1f}",
        f"{row['first_token_ms']['median']:,.0f}",
        *(f"{row['token_ms'][name]:,.1f}" for name in ("p50", "p95", "p99")),
        f"{row['model_bytes'] / 1e6:,.0f}",
        _megabytes(row["peak_bytes"]) + (f" + {_megabytes(row['gpu_bytes'])} GPU" if row["gpu_bytes"] else ""),
        "" if share is None else f"{share:.0%}",
        f"{row['same_tokens']} of {tokens}",
    ]


def _megabytes(size: int | None) -> str:
    return "?" if size is None else f"{size / 1e6:,.0f}"
