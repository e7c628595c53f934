"""`journey quickstart`: the whole way once, on a small corpus."""

from typing import TYPE_CHECKING, Annotated

import typer

from llm_journey.cli.options import Json, Set, examples

if TYPE_CHECKING:
    from llm_journey.app.quickstart import Summary

EXAMPLES = examples("journey quickstart", "journey quickstart --name first --json")


def quickstart(
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the run (default: quickstart, then -2, ...).")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--no-chat", help="Also pull SmolLM2-135M-Instruct (93 MB) and ask it a question.")
    ] = True,
    settings: Set = None,
    as_json: Json = False,
) -> int:
    """Make a first model, from text to report.

    Pulls 10,033 Wikipedia summaries, trains a tokenizer and a model on them, measures the model beside compressors and
    n-grams, saves it in Hugging Face layout and writes the report; then lets a published model answer through the same
    code, by itself and from the summaries, with its sources. Under 4 minutes on 2 cores; 90 seconds are training.
    """
    from llm_journey.app.quickstart import run_quickstart
    from llm_journey.cli.live import view
    from llm_journey.core.console import print_json

    with view() as watching:
        summary = run_quickstart(name=name, overrides=settings or [], chat=chat, observer=watching)
    if as_json:
        print_json(summary.describe())
    else:
        _show(summary)
    return 130 if summary.run.status == "interrupted" else int(bool(summary.run.failures))


def _show(summary: "Summary") -> None:
    """Samples, the table of baselines, the main figures, what to do next, the total time."""
    from llm_journey.app.quickstart import CHAT_MODEL, QUESTION
    from llm_journey.cli.output import say, shortened, show_facts, show_table
    from llm_journey.core.console import output
    from llm_journey.reports.plots import baseline_label

    run = summary.run
    for prompt, text in summary.samples:
        output().print(f"{prompt}{text}\n", markup=False, soft_wrap=True)
    if summary.answer is not None:
        output().print(f"{CHAT_MODEL}\n> {QUESTION}\n{summary.answer}\n", markup=False, soft_wrap=True)
    for question, answer, sources in summary.grounded:
        output().print(f"> {question}\n{answer}", markup=False, soft_wrap=True)
        for number, text in sources.items():
            output().print(f"[{number}] {shortened(text)}\n", markup=False, soft_wrap=True)
    bits = run.figures.get("bits_per_byte")
    if run.baselines and bits is not None:
        arms = [(value, baseline_label(name)) for name, value in run.baselines.items()] + [
            (bits, f"{run.name} (yours)")
        ]
        beaten = {baseline_label(name) for name in summary.beaten()}
        rows = [[label, f"{value:.3f}", "beaten" if label in beaten else ""] for value, label in sorted(arms)]
        show_table(["on the same held-out text", "bits per byte", ""], rows, right=[1])
    show_facts(run.rows())
    say("\nNext:")
    for purpose, command in summary.next_commands:
        say(f"  {command:<66} {purpose}")
    say(f"\n{summary.seconds:7.1f} s  in all")
