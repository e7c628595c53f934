"""The process that one backend of `journey bench` runs in: JSON lines in, JSON lines out.

    {"kind", "files", "threads"}     -> {"ready": seconds, "model_bytes"}
    {"ids", "count"}                 -> {"seconds": [first token, then each gap], "ids": [...]}
    {"memory": true}                 -> {"peak_bytes", "resident_bytes", "gpu_bytes"}

An error is {"error": what}, and the end.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from llm_journey.app.bench_backends import Backend


def serve(requests: Iterator[str], replies: TextIO) -> None:
    """Answer until the end, or an error."""
    backend: Backend | None = None
    for line in requests:
        request = json.loads(line)
        try:
            if backend is None:
                began = time.perf_counter()
                backend = _open(request)
                reply: dict[str, Any] = {"ready": time.perf_counter() - began, "model_bytes": backend.num_bytes}
            elif "memory" in request:
                reply = _memory()
            else:
                reply = timed(backend, request["ids"], request["count"])
        except Exception as error:  # whatever a runtime throws is that runtime's row, not the end of the table
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        if "error" in reply:
            return


def timed(backend: "Backend", ids: Sequence[int], count: int) -> dict[str, Any]:
    """Seconds until the first token, and between each and the one before."""
    stamps, found = [time.perf_counter()], []
    for token in backend.tokens(ids, count):
        stamps.append(time.perf_counter())
        found.append(token)
    return {"seconds": [after - before for before, after in pairwise(stamps)], "ids": found}


def _open(request: dict[str, Any]) -> "Backend":
    from llm_journey.app.bench_backends import KINDS

    threads, kind = request["threads"], KINDS[request["kind"]]
    if kind.needs[-1:] not in (("onnxruntime",), ("llama_cpp",)):  # those need no torch, and pay for none
        import torch

        torch.set_num_threads(threads)
    return kind.open(request["files"], threads)


def _memory() -> dict[str, int | None]:
    """The kernel's own figures of this process (proc(5)); None where there are none."""
    found: dict[str, int] = {}
    try:
        with open("/proc/self/status", encoding="utf-8") as file:  # noqa: PTH123
            for line in file:
                key, _, value = line.partition(":")
                if key in ("VmHWM", "VmRSS"):
                    found[key] = int(value.split()[0]) * 1024
    except OSError:
        pass
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available()
    gpu = torch.cuda.max_memory_allocated() if torch is not None and on_gpu else None
    return {"peak_bytes": found.get("VmHWM"), "resident_bytes": found.get("VmRSS"), "gpu_bytes": gpu}


def main() -> None:
    """Replies go to the real standard output; what libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(iter(sys.stdin), replies)


if __name__ == "__main__":
    main()
