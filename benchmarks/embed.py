"""Our embedder beside sentence-transformers, alternated in slices of a few seconds in one run: a ratio is what counts.

    python benchmarks/embed.py                       # all 10,033 article summaries, two threads
    python benchmarks/embed.py --count 2000 --append

Both embed the same texts with the same all-MiniLM-L6-v2, in float32, from text to vectors. The texts are laid in the
order in which sentence-transformers itself embeds them (by characters, the longest first) and cut into slices of whole
batches of its default size, so that each slice is the same work for it as in one call over all of them. The slices come
in random order; in each the two arms run one after the other, and which is first changes. Ours sees a slice at a time
too. Every pair of vectors is compared: below a cosine of 0.99999 the benchmark fails.

Arms
  ours                  as a user gets it: batches by length in tokens, one thread a batch, packed linear layers
  ours, plain layers    the same without packed layers
  sentence-transformers `encode` with its defaults
  --batch-sizes         sentence-transformers with other batch sizes too
"""

import argparse
import json
import os
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LEDGER = Path(__file__).with_name("ledger.jsonl")
MODEL, CORPUS = "all-minilm-l6-v2", "wiki-summaries"
PEER_BATCH = 32  # sentence-transformers' default
LEAST_COSINE = 0.99999


@dataclass(frozen=True)
class Figure:
    """One figure: over the whole run, and its least and largest value slice by slice."""

    arm: str
    metric: str
    unit: str
    value: float
    by_slice: Sequence[float]


def make_arms(options: argparse.Namespace) -> dict[str, Callable[[list[str]], Any]]:
    """Texts to vectors, by the name of the arm."""
    import torch

    from llm_journey.app.embedder import open_embedder
    from llm_journey.generation.packed_linear import unpack_linears

    torch.set_num_threads(options.threads)
    ours, plain = open_embedder(MODEL), open_embedder(MODEL)
    unpack_linears(plain.encoder)
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(ours.directory), device="cpu")
    arms: dict[str, Callable[[list[str]], Any]] = {
        "ours": lambda texts: ours.embed_counted(texts).vectors,
        "ours, plain layers": lambda texts: plain.embed_counted(texts).vectors,
        "sentence-transformers": lambda texts: peer.encode(texts, batch_size=PEER_BATCH),
    }
    for size in options.batch_sizes:
        arms[f"sentence-transformers, batches of {size}"] = lambda texts, size=size: peer.encode(texts, batch_size=size)
    return {name: arm for name, arm in arms.items() if name != "ours, plain layers" or not options.without_plain}


def make_slices(options: argparse.Namespace) -> list[list[str]]:
    """Slices of whole batches in sentence-transformers' order, shuffled; of all texts, or evenly spread over them."""
    from llm_journey.datasets.catalog import resolve

    path = Path(options.text) if options.text else resolve(CORPUS)
    rows = path.read_text(encoding="utf-8").splitlines()
    texts = sorted((json.loads(row)["text"] for row in rows), key=len, reverse=True)
    size = options.slice_batches * PEER_BATCH
    slices = [texts[start : start + size] for start in range(0, len(texts), size)]
    if options.count < len(texts):
        wanted = max(1, round(options.count / size))
        slices = [slices[round((index + 0.5) * len(slices) / wanted - 0.5)] for index in range(wanted)]
    random.Random(options.seed).shuffle(slices)
    return slices


def measure(
    arms: dict[str, Callable[[list[str]], Any]], slices: list[list[str]]
) -> tuple[dict[str, list[float]], dict[str, list[float]], float]:
    """Seconds on the clock and of the processors, of each arm by slice, and the least cosine of ours and theirs."""
    for arm in arms.values():
        arm(slices[0][:PEER_BATCH])
    wall: dict[str, list[float]] = {name: [] for name in arms}
    busy: dict[str, list[float]] = {name: [] for name in arms}
    least = 1.0
    for number, texts in enumerate(slices):
        vectors: dict[str, Any] = {}
        for name in list(arms)[:: 1 if number % 2 == 0 else -1]:
            clock, processors = time.perf_counter(), time.process_time()
            vectors[name] = arms[name](texts)
            wall[name].append(time.perf_counter() - clock)
            busy[name].append(time.process_time() - processors)
        expected = vectors["sentence-transformers"]
        least = min([least, *(float((found * expected).sum(1).min()) for found in vectors.values())])
        line = ", ".join(f"{name} {len(texts) / values[-1]:.1f}" for name, values in wall.items())
        print(f"slice {number + 1}/{len(slices)}: docs/s {line}", file=sys.stderr)
        if least < LEAST_COSINE:
            sys.exit(
                f"FAILED: a cosine of {least} between two arms' vectors of one text; at least {LEAST_COSINE} is due"
            )
    return wall, busy, least


def figures_of(
    wall: dict[str, list[float]], busy: dict[str, list[float]], least: float, slices: list[list[str]]
) -> list[Figure]:
    """Docs/s of each arm, ours over each other's slice by slice (the median), and the cosine."""
    counts = [len(texts) for texts in slices]
    figures = []
    for name, values in wall.items():
        speeds = [count / seconds for count, seconds in zip(counts, values, strict=True)]
        figures.append(Figure(name, "documents per second", "docs/s", sum(counts) / sum(values), speeds))
    for metric, seconds in (("documents per second", wall), ("documents per processor second", busy)):
        for name, values in seconds.items():
            if name != "ours":
                ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], values, strict=True)]
                figures.append(Figure(f"ours / {name}", metric, "ratio", statistics.median(ratios), ratios))
    return [*figures, Figure("ours / sentence-transformers", "least cosine", "cosine", least, [least])]


def rows_of(figures: Sequence[Figure], options: argparse.Namespace, num_texts: int) -> list[dict[str, Any]]:
    from llm_journey.core import ledger

    config = {key: value for key, value in vars(options).items() if key not in ("append", "json")}
    return [
        ledger.row(
            benchmark="embed",
            arm=figure.arm,
            metric=figure.metric,
            value=figure.value,
            unit=figure.unit,
            command=shlex.join(["python", "benchmarks/embed.py", *sys.argv[1:]]),
            config=config | {"texts": num_texts},
            spread=(min(figure.by_slice), max(figure.by_slice)),
            n=len(figure.by_slice),
            seed=options.seed,
        )
        for figure in figures
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help='.jsonl with a key "text" (default: the catalog\'s summaries)')
    parser.add_argument("--count", type=int, default=10_033, help="how many texts, in whole slices spread over all")
    parser.add_argument("--slice-batches", type=int, default=4, help="batches of 32 in a slice")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[], help="further batch sizes for the peer")
    parser.add_argument("--without-plain", action="store_true", help="leave out ours with plain layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--append", action="store_true", help="append the figures to benchmarks/ledger.jsonl")
    parser.add_argument("--json", action="store_true", help="print the ledger rows instead of a table")
    return parser.parse_args()


def main() -> None:
    options = parse()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    arms, slices = make_arms(options), make_slices(options)
    wall, busy, least = measure(arms, slices)
    figures = figures_of(wall, busy, least, slices)
    rows = rows_of(figures, options, sum(map(len, slices)))
    if options.append:
        from llm_journey.core import ledger

        ledger.append(LEDGER, rows)
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    print(f"{'arm':48} {'metric':30} {'value':>10} {'least':>10} {'most':>10}  unit")
    for figure in figures:
        values = f"{figure.value:10.5g} {min(figure.by_slice):10.5g} {max(figure.by_slice):10.5g}"
        print(f"{figure.arm:48} {figure.metric:30} {values}  {figure.unit}")


if __name__ == "__main__":
    main()
