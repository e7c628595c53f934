"""The command `journey`: its groups and verbs in one place. Each command is a screenful in the module it comes from."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from llm_journey.cli import (
    adapters,
    ask,
    bench,
    boundary,
    data,
    doctor,
    embed,
    evaluate,
    export,
    foundations,
    generate,
    inspect,
    models,
    parity,
    quantize,
    quickstart,
    runs,
    serve,
    tokenizer,
    train,
)
from llm_journey.cli.options import examples

app = typer.Typer(
    name="journey",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples("journey quickstart", 'journey generate quickstart "The city of"'),
)
for _name, _group in (
    ("data", data.app),
    ("models", models.app),
    ("tokenizer", tokenizer.app),
    ("adapters", adapters.app),
    ("runs", runs.app),
    ("eval", evaluate.app),
    ("foundations", foundations.app),
):
    app.add_typer(_group, name=_name)
for _verb, _epilog in (
    (quickstart.quickstart, quickstart.EXAMPLES),
    (train.train, train.EXAMPLES),
    (generate.generate, generate.GENERATE_EXAMPLES),
    (generate.chat, generate.CHAT_EXAMPLES),
    (embed.embed, embed.EMBED_EXAMPLES),
    (ask.index, ask.INDEX_EXAMPLES),
    (ask.ask, ask.ASK_EXAMPLES),
    (inspect.inspect, inspect.INSPECT_EXAMPLES),
    (quantize.quantize, quantize.QUANTIZE_EXAMPLES),
    (export.export, export.EXPORT_EXAMPLES),
    (serve.serve, serve.SERVE_EXAMPLES),
    (bench.bench, bench.BENCH_EXAMPLES),
    (runs.report, runs.REPORT_EXAMPLES),
    (parity.parity, parity.PARITY_EXAMPLES),
    (doctor.doctor, doctor.DOCTOR_EXAMPLES),
    (doctor.clean, doctor.CLEAN_EXAMPLES),
):
    app.command(epilog=_epilog)(_verb)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"llm-journey {version('llm-journey')}")
        raise typer.Exit


@app.callback()
def journey(
    version: Annotated[  # noqa: ARG001 - its callback has done the work
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (JOURNEY_DEBUG=1 does so too).")] = False,
) -> None:
    """From raw text to a language model that you trained, measured and put to work.

    Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 bad input,
    130 interrupted.
    """
    if debug:
        os.environ["JOURNEY_DEBUG"] = "1"


def execute(arguments: Sequence[str]) -> int:
    """Run the command line `arguments`; returns the exit code of the process."""

    def work() -> int | None:
        result = app(args=list(arguments), prog_name="journey", standalone_mode=False)
        return result if isinstance(result, int) else None

    return boundary.guarded(work)


def run() -> None:
    """The console script: run the command line of this process and exit with its code."""
    sys.exit(execute(sys.argv[1:]))
