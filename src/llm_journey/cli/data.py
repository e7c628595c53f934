"""`journey data`: corpora and test sets by name, a person's own text prepared, samples to read."""

from typing import Annotated

import typer

from llm_journey.cli import completion
from llm_journey.cli.options import Json, RecipeOrSource, Set, examples

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Corpora: list, pull, prepare, show.",
    epilog=examples("journey data list", "journey data prepare ./texts"),
)


@app.command(name="list", epilog=examples("journey data list", "journey data list --json"))
def list_data(as_json: Json = False) -> None:
    """List the corpora and test sets known by name."""
    from llm_journey.cli.catalog import show_items

    show_items(["corpus", "testset"], as_json)


@app.command(epilog=examples("journey data pull wiki-summaries", "journey data pull tinyshakespeare --json"))
def pull(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A name of `journey data list`.",
            show_default=False,
            autocompletion=completion.catalog_data,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Bring a corpus to this machine.

    It is checked by sha256, and a download that was cut off goes on where it stopped.
    """
    from llm_journey.cli.catalog import pull_item

    pull_item(name, ["corpus", "testset"], as_json)


@app.command(
    epilog=examples("journey data prepare wiki-summaries", "journey data prepare 'notes/*.md' --set data.held_out=0.1")
)
def prepare(source: RecipeOrSource, settings: Set = None, as_json: Json = False) -> None:
    """Turn text into clean token shards.

    Reads, cleans, filters, deduplicates, splits and tokenizes, then prints what became of the documents.
    """
    from llm_journey.app.corpora import prepare as prepare_corpus
    from llm_journey.cli.live import view
    from llm_journey.cli.output import say, show_facts
    from llm_journey.core.console import print_json

    with view() as watching:
        prepared = prepare_corpus(source, settings or [], watching)
    if as_json:
        print_json(prepared.describe())
        return
    show_facts(prepared.rows())
    for problem in prepared.inputs.preparation.problems:
        say(f"{problem.path}: {problem.reason}")


@app.command(
    epilog=examples(
        "journey data show wiki-summaries --count 3", 'journey data show ./texts --dropped "too short" --seed 7'
    )
)
def show(
    source: RecipeOrSource,
    count: Annotated[int, typer.Option("--count", metavar="N", help="Documents of each fate.")] = 5,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Which documents are drawn.")] = 0,
    reason: Annotated[
        str | None, typer.Option("--dropped", metavar="REASON", help="Only those dropped for this reason.")
    ] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Read documents, kept and dropped.

    Dropped documents come with the reason.
    """
    from dataclasses import asdict

    from llm_journey.app.corpora import show as draw_samples
    from llm_journey.cli.live import view
    from llm_journey.core.console import output, print_json

    with view() as watching:
        samples = draw_samples(source, settings or [], watching, count=count, seed=seed, reason=reason)
    if as_json:
        print_json({"kept": [asdict(item) for item in samples.kept], "dropped": [asdict(i) for i in samples.dropped]})
        return
    for item in [*([] if reason else samples.kept), *samples.dropped]:
        fate = f"dropped: {item.reason}" if item.reason else f"kept ({item.split})"
        output().print(f"--- {item.identifier}  {fate}", markup=False, soft_wrap=True, style="bold")
        output().print(item.text, markup=False, soft_wrap=True)
