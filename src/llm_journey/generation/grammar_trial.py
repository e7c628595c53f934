"""Whether a grammar can be built within bounds of time, memory and stack, found out where nothing else can be harmed.

llguidance is fast, and bounded in most of what it does, but not in all: the intersection of forty patterns takes it 7
GB, a multiple of 123456789 24 GB and minutes, a long chain of references more stack than a thread has (then the process
ends). A client's grammar is therefore built once in a process of its own, for a vocabulary of bytes, before it is built
where answers are written. `python -m` reads lines {"grammar", "limits"}, and answers each.
"""

import hashlib
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import IO, Any

from llm_journey.core.line_process import READY, LineProcess

SECONDS, MEMORY_BYTES = 2.0, 1 << 30  # published schemas of up to 256 kB take 0.3 s and less
# Of a thread that builds a grammar: in trial less than where it counts, whatever the system gives a thread by itself.
TRIAL_STACK, STACK = 48 << 20, 64 << 20
_REMEMBERED = 1000

_process = LineProcess("llm_journey.generation.grammar_trial")
_passed: OrderedDict[bytes, None] = OrderedDict()


def passes(grammar: str, limits: Mapping[str, Any]) -> bool:
    """Whether the trial came to an end, by a grammar or by an error; remembered for the last thousand."""
    request = json.dumps({"grammar": grammar, "limits": dict(limits)}).encode()
    key = hashlib.sha256(request).digest()
    if key in _passed:
        return True
    if _process.ask(request, SECONDS) is None:
        return False
    _passed[key] = None
    while len(_passed) > _REMEMBERED:
        _passed.popitem(last=False)
    return True


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    import llguidance

    vocabulary = llguidance.LLTokenizer("byte")
    _limit_memory()
    replies.write(READY)
    replies.flush()
    for line in requests:
        request = json.loads(line)
        limits = llguidance.LLParserLimits(**request["limits"])
        matcher = llguidance.LLMatcher(vocabulary, request["grammar"], log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_logit_bias()
        del matcher
        replies.write(b"built\n")
        replies.flush()


def _limit_memory() -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    threading.stack_size(TRIAL_STACK)
    worker = threading.Thread(target=_serve, args=(sys.stdin.buffer, sys.stdout.buffer))
    worker.start()
    worker.join()
