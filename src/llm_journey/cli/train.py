"""`journey train`: a run from recipe to report."""

from typing import Annotated

import typer

from llm_journey.cli import completion
from llm_journey.cli.options import Json, Set, examples

EXAMPLES = examples(
    "journey train small --set training.seconds=600",
    "journey train quickstart --set data.source=./texts --name mine",
    "journey train dates --set data.source=pairs.tsv --name mine",
    "journey train mine --resume",
)


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A shipped recipe's name, a YAML file, or a run (its recipe).",
            show_default=False,
            autocompletion=completion.recipes,
        ),
    ],
    settings: Set = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the run (default: the recipe's).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run of that name.")] = False,
    as_json: Json = False,
) -> int:
    """Train a model by a recipe and measure it.

    The tokenizer is trained too, unless the same text had one before. A recipe of pairs (dates) also takes a .tsv or
    .jsonl file with a source and a target in each row. At the end stand the baselines, the comparison
    with transformers, the model card and the report. Ctrl-C saves the run and says how to go on.
    """
    from llm_journey.app.training import train_and_measure
    from llm_journey.cli.live import view
    from llm_journey.cli.output import show_facts
    from llm_journey.core.console import print_json

    with view() as watching:
        run = train_and_measure(recipe, overrides=settings or [], name=name, resume=resume, observer=watching)
    if as_json:
        print_json(run.describe() | {"failures": run.failures})
    else:
        show_facts(run.rows())
    return 130 if run.status == "interrupted" else int(bool(run.failures))
