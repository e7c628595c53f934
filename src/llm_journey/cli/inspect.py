"""`journey inspect`: what a model does with a text: token probabilities, logit lens, attention maps."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_journey.cli.options import Json, Model, examples

if TYPE_CHECKING:
    from llm_journey.inspection.reading import Reading

INSPECT_EXAMPLES = examples(
    'journey inspect quickstart "The river flows through the old town" --html inside.html',
    'journey inspect dates "July 4th, 1976" --target 1976-07-04 --png pictures',
)


def inspect(
    model: Model,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the model reads.", show_default=False)],
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="TEXT", help="What an encoder-decoder writes for it (default: what it finds best)."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write one page to click through: all maps and layers."),
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="FOLDER", help="Write the pictures here.")] = None,
    layers: Annotated[
        list[int] | None,
        typer.Option("--layer", metavar="N", help="Keep the maps of this layer, from 0 (repeatable; default: all)."),
    ] = None,
    head: Annotated[
        int | None,
        typer.Option("--head", metavar="N", help="Which head the terminal's map shows (default: the sharpest)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look inside a model while it reads a text.

    Shows how probable each token was, what each layer would have predicted (logit lens), and what each head looks at;
    in an encoder-decoder also what the target's tokens look at in the source.
    """
    from llm_journey.app.inspect import inspect_model
    from llm_journey.cli.output import say
    from llm_journey.core.console import print_json

    reading = inspect_model(model, text, target=target, layers=layers or None)
    shown = _heads_to_show(reading, layers or [], head)
    if html is not None:
        say(f"written: {reading.write_html(html)}")
    if png is not None:
        say(f"written: {len(reading.write_png(png))} pictures in {png}")
    if as_json:
        print_json(reading.describe())
    else:
        _show(reading, shown)


def _heads_to_show(reading: "Reading", layers: list[int], head: int | None) -> list[tuple[int, int]]:
    """(layer, head) for each part of the model: the one asked for, else the sharpest. Raises BadInputError for a head
    that is not there."""
    found, shown = reading.inspection, []
    for part in found.parts:
        if not any(layer in part.layers for layer in found.maps):
            continue
        layer, sharpest = found.sharpest_head(part)
        if head is not None and layers:
            layer = next((part.layers[at] for at in layers if at < len(part.layers)), layer)
        shown.append((layer, sharpest if head is None else head))
        reading.attention(*shown[-1])
    return shown


def _show(reading: "Reading", heads: list[tuple[int, int]]) -> None:
    """The tables and a map for each part, for a person."""
    from llm_journey.cli.output import say, show_facts, show_table
    from llm_journey.core.console import output
    from llm_journey.inspection import terminal

    def title(text: str) -> None:
        output().print(f"\n{text}", markup=False, soft_wrap=True)

    show_facts(reading.figures())
    if reading.inspection.lens:
        title("Tokens (bits: surprisal)")
        names, rows, before = terminal.token_table(reading)
        show_table(names, rows, right=[0, 2, 3, 4, 5])
        title("Logit lens: what each layer would predict")
        names, rows, lens_before = terminal.lens_table(reading, output().width if output().is_terminal else None)
        show_table(names, rows)
        for number, what in ((before, "tokens of the table"), (lens_before, "positions of the lens")):
            if number:
                say(f"not shown: the first {number:,} {what}; --html and --json have them all")
    title("Heads, a line a layer (shares of the weight)")
    names, rows = terminal.head_table(reading)
    show_table(names, rows, right=range(1, len(names)))
    for layer, head in heads:
        title(f"{terminal.map_title(reading, layer, head)} ({terminal.legend()})")
        for line in terminal.heat_map(reading, layer, head):
            output().print(line, markup=False, no_wrap=True, overflow="ignore", crop=False)
    for note in reading.left_out:
        say(f"left out: {note}")
