"""`journey parity`: measure every equality that the project claims."""

from pathlib import Path
from typing import Annotated

import typer

from llm_journey.cli.options import Json, examples

PARITY_EXAMPLES = examples("journey parity", "journey parity gguf --json", "journey parity --pull --strict")


def parity(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]...", help="Only rows whose component or reference holds every word."),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write the table to this file, too.")
    ] = None,
    pull: Annotated[
        bool, typer.Option("--pull", help="First fetch the published models that rows need (180 MB in all).")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail, with exit code 1, where a row could not be measured.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Compare every part with its reference library.

    Each row gives the largest difference beside its tolerance. The exit code is 1 where one differs; what is not
    installed, or not on this machine, is left unmeasured and said.
    """
    from llm_journey.app.parity import run_parity
    from llm_journey.cli.live import view
    from llm_journey.cli.output import say, show_table
    from llm_journey.core.console import print_json

    with view() as watching:
        result = run_parity(words or [], watching, pull_missing=pull, strict=strict)
    if markdown is not None:
        result.write_markdown(markdown)
    if as_json:
        print_json(result.describe())
    else:
        show_table(result.HEAD, result.rows(), right=[4, 5])
        say(result.summary())
    if advice := result.advice():
        say(advice)
    return 0 if result.passed else 1
