"""`journey bench`: the backends of this machine beside each other."""

from pathlib import Path
from typing import Annotated

import typer

from llm_journey.cli.options import Json, Model, examples

BENCH_EXAMPLES = examples(
    "journey bench smollm2-135m-instruct --plot speeds.png",
    'journey bench quickstart --backend "ours int8" --backend "onnxruntime int8" --prompt 64 --json',
)


def bench(
    model: Model,
    backends: Annotated[
        list[str] | None,
        typer.Option("--backend", metavar="NAME", help="Only this one (repeatable); an unknown name lists them."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="Slices of each backend.")] = 5,
    prompt: Annotated[int, typer.Option("--prompt", metavar="N", help="Tokens read.")] = 256,
    tokens: Annotated[int, typer.Option("--tokens", metavar="N", help="Tokens written.")] = 32,
    threads: Annotated[int, typer.Option("--threads", metavar="N", help="Of each backend; 0: all cores.")] = 0,
    seconds: Annotated[float, typer.Option("--seconds", metavar="S", help="No round begins after so many.")] = 600.0,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="PNG", help="Draw the speeds here.")] = None,
    as_json: Json = False,
) -> None:
    """Compare how fast this machine answers with a model: ours in each precision, PyTorch, and other runtimes.

    Prefill and decode tokens/s, time to first token, latencies, memory, and the share of what memory can deliver. Each
    backend runs in a process of its own and all take turns; what is not installed is left out, and said.
    """
    from llm_journey.app.bench import BenchTable, run_bench
    from llm_journey.cli.live import view
    from llm_journey.cli.output import say, show_table
    from llm_journey.core.console import print_json

    with view() as watching:
        table = run_bench(
            model,
            watching,
            backends=backends or (),
            rounds=rounds,
            prompt=prompt,
            tokens=tokens,
            threads=threads,
            seconds=seconds,
        )
    if plot is not None:
        table.save_plot(plot)
    for note in table.notes():
        say(f"not measured: {note}")
    if as_json:
        print_json(table.describe())
    else:
        say(table.summary())
        show_table(BenchTable.HEAD, table.rows(), right=range(1, len(BenchTable.HEAD)))
