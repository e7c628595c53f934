"""The server under 16 streams at once, beside llama.cpp's own server on the same requests; and minutes of mixed load.

    python benchmarks/serving.py                                              # ours alone
    python benchmarks/serving.py --llama-server path/to/llama-server --append
    python benchmarks/serving.py --soak 10 --append

Both servers open the same GGUF file with the same threads and as many slots as there are streams, and get the same
chats, greedy, streamed, by one small client of raw sockets. The arms alternate: one stream, all streams; ours, theirs;
what comes first changes from round to round. A round's tokens/s are all tokens of the answers over the wall clock.
Both cut a prompt's tokens alike, which is required; so are answers without a failure.

--soak: chats short and long, whole and streamed, 30% cut off by the client at a random moment, some malformed, each
with a number that its answer must repeat. Required at the end: no answer lost, none another one's, every block of the
cache free again, the process no larger than 1.05 times what it was after the first tenth, streamed = unstreamed text.
The cache is filled before, so that its memory has been touched.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from figures import Figure, add_options, ratio, report, say
from llm_journey.app.find_models import find_text_model
from llm_journey.generation.machine_code import find_compiler

SMOLLM2 = "smollm2-135m-instruct"
TOPICS = (
    "a lighthouse keeper", "how bread rises", "the rivers of Europe", "what a compiler does", "learning the piano",
    "planets with rings", "how a bill becomes law", "a walk in autumn", "why the sky is blue", "the history of paper",
    "growing tomatoes", "how bridges carry weight", "a letter to a friend", "the life of bees", "making a budget",
    "how clocks were invented", "a storm at sea", "the human heart", "what makes music sad", "a visit to the market",
)  # fmt: skip
CUT_SHARE, MALFORMED_SHARE, LARGEST_GROWTH = 0.3, 0.1, 1.05


@dataclass
class Answer:
    """What came of one request."""

    status: int = 0
    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    first_seconds: float | None = None
    done: bool = False


@dataclass
class Round:
    """One arm's answers and their wall clock."""

    answers: list[Answer]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds


@dataclass
class Arm:
    """A server that runs, and what it has shown: rounds by the number of streams."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    rounds: dict[int, list[Round]] = field(default_factory=dict)


async def ask(port: int, body: dict[str, Any] | bytes, *, leave_after: float | None = None) -> Answer:
    """One chat request over a raw socket. leave_after: close the connection after so many seconds."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer, raw = Answer(), bytearray()
    try:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        async with asyncio.timeout(leave_after):
            while part := await reader.read(1 << 16):
                raw += part
                if answer.first_seconds is None and re.search(rb'"content":"[^"]', raw):
                    answer.first_seconds = time.perf_counter() - began
    except (TimeoutError, ConnectionError):
        return answer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    _read(bytes(raw), answer)
    return answer


def _read(raw: bytes, answer: Answer) -> None:
    """A whole response: its status, and its text from one JSON document or a stream of events."""
    head, _, body = raw.partition(b"\r\n\r\n")
    answer.status = int(head.split()[1]) if head else 0
    if b"chunked" in head.lower():
        body = _unchunked(body)
    if b"text/event-stream" not in head.lower():
        found = json.loads(body or b"{}")
        _count(answer, found)
        for choice in found.get("choices", ()):
            answer.text, answer.finish_reason = choice["message"]["content"], choice["finish_reason"]
        answer.done = answer.status == 200
        return
    for line in body.decode().split("\n"):
        if line.startswith("data: [DONE]"):
            answer.done = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            _count(answer, event)
            for choice in event.get("choices", ()):
                answer.text += choice["delta"].get("content") or ""
                answer.finish_reason = choice.get("finish_reason") or answer.finish_reason


def _count(answer: Answer, found: dict[str, Any]) -> None:
    usage = found.get("usage") or {}
    answer.prompt_tokens = usage.get("prompt_tokens", answer.prompt_tokens)
    answer.tokens = usage.get("completion_tokens", answer.tokens)


def _unchunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        parts.append(rest[:length])
        body = rest[length + 2 :]
    return b"".join(parts)


def chats(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """The requests of a round; another round has others, so that no server knows them already."""
    draw = random.Random(seed)
    asked = []
    for number in range(options.requests):
        topic = f"{draw.choice(TOPICS)}, with {draw.choice(TOPICS)} (part {seed * 1000 + number})"
        message = {"role": "user", "content": f"Write a long and detailed text about {topic}."}
        asked.append(
            {
                "model": options.name,
                "messages": [message],
                "max_tokens": options.tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
    return asked


async def load(arm: Arm, asked: Sequence[dict[str, Any]], streams: int) -> Round:
    """All requests through so many streams: whoever has its answer asks the next one."""
    waiting, answers = iter(asked), []

    async def stream() -> None:
        for body in waiting:
            answers.append(await ask(arm.port, body))

    began = time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(streams)))
    return Round(answers, time.perf_counter() - began)


def compare(arms: Sequence[Arm], options: argparse.Namespace) -> list[Figure]:
    """Rounds of every arm with one stream and with all of them."""
    for arm in arms:  # warm up: templates, first allocations
        asyncio.run(load(arm, chats(options, 0)[:2], 2))
    for number in range(1, options.rounds + 1):
        order = list(arms) if number % 2 else list(reversed(arms))
        for streams in (1, options.streams):
            asked = chats(options, 2 * number + (streams > 1))
            asked = asked[: max(2, options.requests // 8)] if streams == 1 else asked
            lengths = set()
            for arm in order:
                found = asyncio.run(load(arm, asked, streams))
                failed = [answer for answer in found.answers if not answer.done or answer.status != 200]
                require(not failed, f"{arm.name}: every answer is whole ({len(failed)} are not)")
                lengths.add(sum(answer.prompt_tokens for answer in found.answers))
                arm.rounds.setdefault(streams, []).append(found)
                say(f"round {number}, {streams} streams, {arm.name}: {found.tokens_per_second:.1f} tokens/s")
            require(len(lengths) == 1, "both servers read the same prompts")
    return [figure for arm in arms for figure in _figures(arm)] + _ratios(arms, options)


def _figures(arm: Arm) -> Iterator[Figure]:
    for streams, rounds in arm.rounds.items():
        label = f"{streams} stream{'s' if streams > 1 else ''}"
        yield Figure(arm.name, f"total tokens/s, {label}", "tokens/s", [each.tokens_per_second for each in rounds])
        for share in (50, 99):
            measured = [percentile(first_seconds(each), share) for each in rounds]
            yield Figure(arm.name, f"time to first token, p{share}, {label}", "s", measured)
        pooled = [value for each in rounds for value in first_seconds(each)]
        yield Figure(arm.name, f"time to first token, p99 of all rounds, {label}", "s", [percentile(pooled, 99)])


def _ratios(arms: Sequence[Arm], options: argparse.Namespace) -> list[Figure]:
    many = [[each.tokens_per_second for each in arm.rounds[options.streams]] for arm in arms]
    one = [each.tokens_per_second for each in arms[0].rounds[1]]
    found = [ratio(f"ours, {options.streams} streams / 1 stream", "total tokens/s", many[0], one)]
    if len(arms) > 1:
        found.append(ratio(f"ours / llama.cpp, {options.streams} streams", "total tokens/s", many[0], many[1]))
    return found


def first_seconds(found: Round) -> list[float]:
    """Times to the first token of a round's answers."""
    return [answer.first_seconds for answer in found.answers if answer.first_seconds is not None]


def percentile(values: Sequence[float], share: int) -> float:
    """The value below or at which `share` percent of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, -(-share * len(ordered) // 100) - 1)]


@dataclass
class Soak:
    """What minutes of mixed load have shown."""

    kinds: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[float, int]] = field(default_factory=list)


def soak(arm: Arm, options: argparse.Namespace) -> list[Figure]:
    """Mixed load for --soak minutes, then the checks."""
    free = gauge(arm, "cache_blocks_free")
    asyncio.run(_fill_cache(arm, options))
    found = Soak()
    asyncio.run(_mixed(arm, options, found))
    time.sleep(2)
    after = gauge(arm, "cache_blocks_free")
    equal = asyncio.run(_streamed_is_whole(arm, options))
    warm = found.sizes[0][0] + 0.1 * (found.sizes[-1][0] - found.sizes[0][0])
    late = [size for when, size in found.sizes if when >= warm]
    first = statistics.median(late[: max(1, len(late) // 10)])
    growth = max(late) / first
    tenths = [size for _, size in found.sizes][:: max(1, len(found.sizes) // 10)]
    say(f"MB at each tenth: {', '.join(f'{size / 1e6:.0f}' for size in tenths)}")
    say(f"requests: {dict(found.kinds)}; wrong: {dict(found.wrong)}; blocks {free:g} -> {after:g}; growth {growth:.3f}")
    require(not found.wrong, f"no answer is lost or another one's: {dict(found.wrong)}")
    require(after == free, f"every block is free again: {after:g} of {free:g}")
    require(growth <= LARGEST_GROWTH, f"the process grew {growth:.3f} times after its first tenth")
    require(equal, "streamed = unstreamed text")
    arm_name = f"ours, {options.soak:g} minutes of mixed load"
    return [
        Figure(arm_name, "requests", "1", [sum(found.kinds.values())]),
        Figure(arm_name, "requests cut by the client", "1", [found.kinds["cut"]]),
        Figure(arm_name, "answers lost or crossed", "1", [sum(found.wrong.values())]),
        Figure(arm_name, "blocks not given back", "1", [free - after]),
        Figure(arm_name, "largest size / size after the first tenth", "ratio", [growth]),
        Figure(arm_name, "size", "MB", [size / 1e6 for size in late]),
    ]


async def _fill_cache(arm: Arm, options: argparse.Namespace) -> None:
    """Until every block has been written once: memory that a process has asked for counts when it is first touched."""
    for number in range(200):
        text = f"{number}: " + " ".join(f"{TOPICS[number % len(TOPICS)]} {item}" for item in range(160))
        message = {"role": "user", "content": text}
        found = await ask(arm.port, {"model": options.name, "messages": [message], "max_tokens": 1})
        require(found.status == 200, f"the cache can be filled (status {found.status})")
        if (number + 1) * found.prompt_tokens > 1.1 * 16 * gauge(arm, "cache_blocks"):
            return


async def _mixed(arm: Arm, options: argparse.Namespace, found: Soak) -> None:
    end = time.monotonic() + 60 * options.soak

    async def stream(number: int) -> None:
        draw = random.Random(number)
        count = 0
        while time.monotonic() < end:
            count += 1
            kind, wrong = await _one_of_many(arm, options, draw, f"{number:03}{count:06}")
            found.kinds[kind] += 1
            if wrong:
                found.wrong[f"{kind}: {wrong}"] += 1

    async def watch() -> None:
        while time.monotonic() < end:
            found.sizes.append((time.monotonic(), resident(arm.process.pid)))
            await asyncio.sleep(1)

    await asyncio.gather(watch(), *(stream(number) for number in range(options.streams + options.streams // 2)))


async def _one_of_many(
    arm: Arm, options: argparse.Namespace, draw: random.Random, number: str
) -> tuple[str, str | None]:
    """A request of the mix: what it was, and what was wrong with its answer."""
    if draw.random() < MALFORMED_SHARE:
        body = draw.choice([b"{", b'{"model": "\xff"}', b"x" * 200_000, b'{"model": "none", "messages": []}', b"[]"])
        answer = await ask(arm.port, body)
        return "malformed", None if 400 <= answer.status < 500 else f"status {answer.status}"
    long = draw.random() < 0.2
    text = f"Tell me about {draw.choice(TOPICS)}. " * (draw.randint(40, 120) if long else 1)
    streamed = draw.random() < 0.7
    body = {
        "model": options.name,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": draw.randint(30, options.tokens),
        "structured_outputs": {"regex": f"{number}: [a-zA-Z ,.]{{10,200}}"},
        "seed": draw.randrange(1 << 30),
        "stream": streamed,
        **({"stream_options": {"include_usage": True}} if streamed else {}),
    }
    if draw.random() < CUT_SHARE:
        answer = await ask(arm.port, body, leave_after=draw.expovariate(1.0))
        return "cut", None if answer.status in (0, 200, 429) else f"status {answer.status}"
    answer = await ask(arm.port, body)
    kind = ("long" if long else "short") + (", streamed" if streamed else "")
    if answer.status == 429:
        await asyncio.sleep(1)
        return "told to come again", None
    if answer.status != 200 or not answer.done or answer.finish_reason not in ("stop", "length"):
        return kind, f"status {answer.status}, {answer.finish_reason}"
    begun = f"{number}: "
    crossed = not answer.text.startswith(begun[: len(answer.text)]) or len(answer.text) < 10
    return kind, "another one's text" if crossed else None


async def _streamed_is_whole(arm: Arm, options: argparse.Namespace) -> bool:
    """Alone, so that both see the same passes."""
    for body in chats(options, 99)[:4]:
        streamed = await ask(arm.port, body)
        whole = await ask(arm.port, {key: value for key, value in body.items() if not key.startswith("stream")})
        if (streamed.text, streamed.finish_reason) != (whole.text, whole.finish_reason) or not whole.text:
            return False
    return True


def gauge(arm: Arm, name: str) -> float:
    """A figure of our server's /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{arm.port}/metrics", timeout=30) as response:
        text = response.read().decode()
    return float(re.search(rf"^journey_{name}\{{[^}}]*\}} (\S+)$", text, re.M)[1])  # type: ignore[index]


def resident(process: int) -> int:
    """Bytes of memory that a process holds."""
    fields = Path(f"/proc/{process}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def started(name: str, command: Sequence[str], port: int, environment: dict[str, str], health: str) -> Iterator[Arm]:
    """A server from its command, once it answers; ended afterwards."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        end = time.monotonic() + 120
        while not _healthy(port, health):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"{name} does not start: {' '.join(map(str, command))}")
            time.sleep(0.3)
        yield Arm(name, port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _healthy(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def ours(options: argparse.Namespace) -> contextlib.AbstractContextManager[Arm]:
    """`journey serve` on the model."""
    port = free_port()
    more = ["--set", f"max_running={options.streams}", "--set", "max_queue=64"]
    compile = [] if find_compiler() is None else ["--no-compile" if options.eager else "--compile"]
    command = [sys.executable, "-m", "llm_journey", "serve", options.model, "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    return started("ours", [*command, "--precision", options.precision, *compile, *more], port, environment, "/readyz")


def llama_cpp(options: argparse.Namespace, file: Path) -> contextlib.AbstractContextManager[Arm]:
    """llama.cpp's server on the same file, one slot a stream, a context's share each."""
    port, binary = free_port(), Path(options.llama_server).resolve()
    room = options.streams * options.slot_context
    sizes = ["-t", str(options.threads), "-np", str(options.streams), "-c", str(room)]
    command = [str(binary), "-m", str(file), *sizes, "--host", "127.0.0.1", "--port", str(port)]
    libraries = f"{binary.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    return started("llama.cpp", command, port, {**os.environ, "LD_LIBRARY_PATH": libraries}, "/health")


def require(condition: bool, what: str) -> None:
    """End with exit code 1 where a claim does not hold."""
    if not condition:
        sys.exit(f"failed: {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SMOLLM2, help="a catalog model or a GGUF file")
    parser.add_argument("--precision", default="auto", help="ours: auto, float32, bfloat16, int8, int4")
    parser.add_argument("--eager", action="store_true", help="ours: without steps compiled for this machine")
    parser.add_argument("--llama-server", help="llama.cpp's llama-server; without it, ours alone")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--requests", type=int, default=48, help="of a round with all streams; an eighth with one")
    parser.add_argument("--tokens", type=int, default=128, help="the most of an answer")
    parser.add_argument("--slot-context", type=int, default=2048, help="llama.cpp: tokens of a slot")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES", help="mixed load instead of the comparison")
    add_options(parser)
    options = parser.parse_args()
    file = find_text_model(options.model)
    options.name = Path(options.model).name
    with contextlib.ExitStack() as stack:
        arms = [stack.enter_context(ours(options))]
        if options.soak:
            figures = soak(arms[0], options)
        else:
            if options.llama_server is not None:
                arms.append(stack.enter_context(llama_cpp(options, file)))
            figures = compare(arms, options)
    report("serving-soak" if options.soak else "serving", figures, options)


if __name__ == "__main__":
    main()
