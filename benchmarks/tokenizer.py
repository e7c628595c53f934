"""Our tokenizer beside its peers, alternated in one run on one machine: a ratio is what counts, not a lone figure.

    python benchmarks/tokenizer.py                         # everything, on the catalog's English summaries
    python benchmarks/tokenizer.py --parts training encoding --repeats 9 --append

Parts
  training  BPE on about 5 MB of English to 8,192 tokens: ours, and Hugging Face tokenizers' BpeTrainer. The merges are
            compared: all of them with the trainer's, the first ones with our oracle's.
  encoding  the same text: ours, raw tiktoken on the same ranks, tokenizers' encode_batch and encode_batch_fast.
  oracle    10 MB (the text repeated with mutations): our ids and the oracle's, which must be equal.
  memory    100 MB (likewise), trained in a process of its own: its peak memory and its children's.
"""

import argparse
import functools
import json
import os
import random
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_journey.core import ledger
from llm_journey.core.lineage import usable_cores
from llm_journey.tokenizer import Tokenizer, TokenizerConfig, bpe, io
from llm_journey.tokenizer.pretokenize import split
from llm_journey.tokenizer.train import train_tokenizer

PARTS = ("training", "encoding", "oracle", "memory")
LEDGER = Path(__file__).with_name("ledger.jsonl")
MEGABYTE = 1_000_000
# tiktoken's own spelling of GPT-2's pattern: what a user of raw tiktoken would pass.
TIKTOKEN_GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


@dataclass(frozen=True)
class Figure:
    """One measured figure: the median of its values, with their range."""

    arm: str
    metric: str
    unit: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def read_texts(path: Path, max_bytes: int) -> list[str]:
    """Documents of a .jsonl file (key "text"), or the paragraphs of any other, up to `max_bytes` of UTF-8."""
    content = path.read_text(encoding="utf-8")
    lines = content.splitlines()
    documents = [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else content.split("\n\n")
    texts: list[str] = []
    for text in documents:
        max_bytes -= len(text.encode())
        if max_bytes < 0:
            break
        texts.append(text)
    return texts


def mutated(texts: Sequence[str], max_bytes: int, seed: int) -> Iterator[str]:
    """`texts` over and over until `max_bytes`; from the second time on, one word in a hundred has a letter changed."""
    draw = random.Random(seed)
    rounds = 0
    while True:
        for text in texts:
            words = text.split(" ")
            for _ in range(rounds and max(1, len(words) // 100)):
                index = draw.randrange(len(words))
                if words[index]:
                    place = draw.randrange(len(words[index]))
                    letter = draw.choice("abcdefghijklmnopqrstuvwxyz")
                    words[index] = words[index][:place] + letter + words[index][place + 1 :]
            changed = " ".join(words)
            max_bytes -= len(changed.encode())
            if max_bytes < 0:
                return
            yield changed
        rounds += 1


def alternate(arms: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds and results of each arm, run in turns: whatever else the machine does falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    results: dict[str, Any] = {}
    for repeat in range(repeats):
        # Forwards, then backwards: no arm always has the caches that the same other one left.
        for name in list(arms)[:: 1 if repeat % 2 == 0 else -1]:
            started = time.perf_counter()
            results[name] = arms[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds, results


def figures_of(metric: str, seconds: dict[str, list[float]], num_bytes: int) -> list[Figure]:
    """Seconds of each arm, its speed, and our time over each peer's, repeat by repeat."""
    figures = [Figure(name, f"{metric} time", "s", values) for name, values in seconds.items()]
    figures += [
        Figure(name, f"{metric} speed", "MB/s", [num_bytes / MEGABYTE / value for value in values])
        for name, values in seconds.items()
    ]
    ours = seconds["ours"]
    for name, values in seconds.items():
        if name != "ours":
            ratios = [mine / theirs for mine, theirs in zip(ours, values, strict=True)]
            figures.append(Figure(f"ours / {name}", f"{metric} time ratio", "ratio", ratios))
    return figures


def training(texts: list[str], config: TokenizerConfig, options: argparse.Namespace) -> list[Figure]:
    from tokenizers import Tokenizer as Peer
    from tokenizers import models, pre_tokenizers, trainers

    def peer() -> Peer:
        made = Peer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=list(config.special_tokens),
            show_progress=False,
        )
        made.train_from_iterator(texts, trainer)
        return made

    arms = {"ours": lambda: train_tokenizer(texts, config, processes=options.processes), "tokenizers": peer}
    seconds, results = alternate(arms, options.repeats)
    model = json.loads(results["tokenizers"].to_str())["model"]
    ids, shift = model["vocab"], len(config.special_tokens)
    theirs = [(ids[left] - shift, ids[right] - shift) for left, right in model["merges"]]
    ours = results["ours"].merges
    require(ours == theirs, "our merges equal tokenizers' merges")
    first = bpe.train(bpe.count_words(texts, config.pattern), min(options.oracle_merges, len(ours)))
    require(ours[: len(first)] == first, f"our first {len(first)} merges equal the oracle's")
    return figures_of("training", seconds, count_bytes(texts))


def encoding(texts: list[str], config: TokenizerConfig, options: argparse.Namespace) -> list[Figure]:
    import tiktoken
    from tokenizers import Tokenizer as Peer

    tokenizer = train_tokenizer(texts, config)
    raw = tiktoken.Encoding(
        "raw", pat_str=TIKTOKEN_GPT2, mergeable_ranks=tokenizer.vocabulary, special_tokens=tokenizer.special_tokens
    )
    with tempfile.TemporaryDirectory() as directory:
        io.save(tokenizer, Path(directory))
        peer = Peer.from_file(str(Path(directory) / "tokenizer.json"))
    cores = usable_cores()
    arms: dict[str, Callable[[], Any]] = {
        "ours": lambda: tokenizer.encode_batch(texts),
        "tiktoken": lambda: raw.encode_ordinary_batch(texts, num_threads=cores),
        "tokenizers": lambda: peer.encode_batch(texts, add_special_tokens=False),
        "tokenizers, fast": lambda: peer.encode_batch_fast(texts, add_special_tokens=False),
    }
    seconds, results = alternate(arms, options.repeats)
    for name in ("tokenizers", "tokenizers, fast"):
        results[name] = [item.ids for item in results[name]]
    require(all(result == results["ours"] for result in results.values()), "all batches have equal ids")
    figures = figures_of("batch encoding", seconds, count_bytes(texts))
    whole = "\n\n".join(texts)
    arms = {"ours": lambda: tokenizer.encode(whole), "tiktoken": lambda: raw.encode_ordinary(whole)}
    seconds, results = alternate(arms, options.repeats)
    require(results["ours"] == results["tiktoken"], "one long text has equal ids")
    return figures + figures_of("one-text encoding", seconds, len(whole.encode()))


def oracle(texts: list[str], config: TokenizerConfig, options: argparse.Namespace) -> list[Figure]:
    tokenizer = train_tokenizer(texts, config)
    merge_ids = {pair: 256 + index for index, pair in enumerate(tokenizer.merges)}
    # Each word is encoded by the oracle once; it would otherwise take minutes.
    encode_word = functools.cache(lambda word: bpe.encode_word(bpe.word_bytes(word), merge_ids))
    long_text = list(mutated(texts, options.oracle_megabytes * MEGABYTE, options.seed))
    ours = tokenizer.encode_batch(long_text)
    for text, ids in zip(long_text, ours, strict=True):
        if ids != [token for word in split(text, config.pattern) for token in encode_word(word)]:
            require(False, f"our ids equal the oracle's: {text[:60]!r}")
    num_bytes = count_bytes(long_text)
    require(True, f"our ids equal the oracle's on {num_bytes / MEGABYTE:.1f} MB ({sum(map(len, ours))} ids)")
    return [Figure("ours", "ids equal to the oracle's", "MB", [num_bytes / MEGABYTE])]


def memory(texts: list[str], config: TokenizerConfig, options: argparse.Namespace) -> list[Figure]:
    del texts, config  # the child reads them itself, so that its memory is its own
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-child"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    size = f"training on {options.memory_megabytes} MB"
    return [
        Figure("ours", f"{size}, peak memory with children", "MB", [report["bytes"] / MEGABYTE]),
        Figure("ours", f"{size}, time", "s", [report["seconds"]]),
        Figure("ours", f"{size}, vocabulary", "tokens", [report["vocab_size"]]),
    ]


def memory_child(options: argparse.Namespace) -> None:
    """Train on the long text and print the peak of this process's memory and its children's together."""
    config = TokenizerConfig(vocab_size=options.vocab_size)
    stream = mutated(read_texts(source(options), options.megabytes * MEGABYTE), options.memory_megabytes * MEGABYTE, 0)
    peak = 0
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.01):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    tokenizer: Tokenizer = train_tokenizer(stream, config, processes=options.processes)
    seconds = time.perf_counter() - started
    finished.set()
    watcher.join()
    print(json.dumps({"bytes": peak, "seconds": seconds, "vocab_size": tokenizer.vocab_size}))


def resident_bytes() -> int:
    """Memory held now by this process and its children (Linux's /proc; getrusage would count the parent's peak too)."""
    children = [Path(task, "children").read_text().split() for task in Path("/proc/self/task").iterdir()]
    total = 0
    for process in ["self", *(child for found in children for child in found)]:
        try:
            total += int(Path("/proc", process, "statm").read_text().split()[1])
        except OSError:  # it has just ended
            continue
    return total * resource.getpagesize()


def count_bytes(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def require(holds: bool, claim: str) -> None:
    """Say that a claim holds, or end the benchmark: figures of unequal work compare nothing."""
    print(f"{'ok' if holds else 'FAILED'}: {claim}", file=sys.stderr)
    if not holds:
        sys.exit(1)


def source(options: argparse.Namespace) -> Path:
    if options.text:
        return Path(options.text)
    from llm_journey.datasets.catalog import resolve

    return resolve("wiki-summaries")


def rows_of(figures: Sequence[Figure], options: argparse.Namespace) -> list[dict[str, Any]]:
    config = {key: value for key, value in vars(options).items() if key not in ("append", "json", "memory_child")}
    return [
        ledger.row(
            benchmark="tokenizer",
            arm=figure.arm,
            metric=figure.metric,
            value=figure.median,
            unit=figure.unit,
            command=shlex.join(["python", "benchmarks/tokenizer.py", *sys.argv[1:]]),
            config=config,
            spread=(min(figure.values), max(figure.values)),
            n=len(figure.values),
            seed=options.seed,
        )
        for figure in figures
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help='.jsonl with a key "text", or a text file (default: the catalog\'s summaries)')
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--megabytes", type=int, default=5, help="how much of the text to use")
    parser.add_argument("--processes", type=int, help="processes that count words (default: one a core)")
    parser.add_argument("--oracle-merges", type=int, default=32, help="merges to compare with the slow oracle's")
    parser.add_argument("--oracle-megabytes", type=int, default=10)
    parser.add_argument("--memory-megabytes", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--append", action="store_true", help="append the figures to benchmarks/ledger.jsonl")
    parser.add_argument("--json", action="store_true", help="print the ledger rows instead of a table")
    parser.add_argument("--memory-child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if options.memory_child:
        memory_child(options)
        return
    texts = read_texts(source(options), options.megabytes * MEGABYTE)
    config = TokenizerConfig(vocab_size=options.vocab_size)
    parts = {"training": training, "encoding": encoding, "oracle": oracle, "memory": memory}
    figures = [figure for name in options.parts for figure in parts[name](texts, config, options)]
    rows = rows_of(figures, options)
    if options.append:
        ledger.append(LEDGER, rows)
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    print(f"{'arm':24} {'metric':48} {'median':>10} {'least':>10} {'most':>10}  unit")
    for figure in figures:
        values = f"{figure.median:10.3f} {min(figure.values):10.3f} {max(figure.values):10.3f}"
        print(f"{figure.arm:24} {figure.metric:48} {values}  {figure.unit}")


if __name__ == "__main__":
    main()
