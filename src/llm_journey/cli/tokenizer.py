"""`journey tokenizer`: train one by itself, look at one."""

from pathlib import Path
from typing import Annotated

import typer

from llm_journey.cli.options import Json, Model, RecipeOrSource, Set, examples

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Tokenizers: train, show.",
    epilog=examples("journey tokenizer train ./texts --to tokenizer", "journey tokenizer show quickstart"),
)


@app.command(
    epilog=examples(
        "journey tokenizer train wiki-summaries --to tokenizer",
        "journey tokenizer train ./texts --to tokenizer --set tokenizer.vocab_size=8192",
    )
)
def train(
    source: RecipeOrSource,
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where the tokenizer goes.", show_default=False)],
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Train a byte-level BPE tokenizer.

    It is saved in Hugging Face layout and as tiktoken ranks, with a report on its vocabulary.
    """
    from llm_journey.app.corpora import train_tokenizer
    from llm_journey.cli.live import view
    from llm_journey.cli.output import show_facts
    from llm_journey.core.console import print_json

    with view() as watching:
        trained = train_tokenizer(source, settings or [], watching, to)
    if as_json:
        print_json(trained.describe())
    else:
        show_facts(trained.rows())


@app.command(
    epilog=examples("journey tokenizer show quickstart", 'journey tokenizer show quickstart "Every word has a price"')
)
def show(
    model: Model,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Text to cut into tokens.")] = None,
    as_json: Json = False,
) -> None:
    """Show a vocabulary, or how it cuts a text."""
    from llm_journey.app.corpora import view_tokenizer
    from llm_journey.cli.output import show_facts, show_table
    from llm_journey.core.console import print_json

    found = view_tokenizer(model)
    tokens = found.tokens(text) if text is not None else []
    if as_json:
        shown = [{"id": token, "text": piece} for token, piece in tokens]
        print_json(found.describe() | ({"tokens": shown} if text is not None else {}))
    elif text is not None:
        show_table(["id", "token"], [[str(token), repr(piece)] for token, piece in tokens], right=[0])
    else:
        show_facts(found.rows())
