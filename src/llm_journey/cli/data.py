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
        "journey data show wiki-summaries --count 3",
        'journey data show ./texts --dropped "too short" --seed 7',
        "journey data show ./chats.jsonl --mask smollm2-135m-instruct",
    )
)
def show(
    source: RecipeOrSource,
    count: Annotated[int, typer.Option("--count", metavar="N", help="Documents of each fate.")] = 5,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Which documents are drawn.")] = 0,
    reason: Annotated[
        str | None, typer.Option("--dropped", metavar="REASON", help="Only those dropped for this reason.")
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option("--mask", metavar="MODEL", help="Of chats: what this model would learn of them, in colour."),
    ] = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Read documents, kept and dropped; or chats, as a model learns them.

    Dropped documents come with the reason. With --mask, SOURCE holds chats (messages, prompt and completion, Alpaca's
    or ShareGPT's rows): what the assistant writes, and the model learns to write, is green, or within ⟦⟧ without
    colour.
    """
    if mask is not None:
        _show_masks(source, mask, count, seed, as_json, is_plain=reason is None and not settings)
        return
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


def _show_masks(source: str, model: str, count: int, seed: int, as_json: bool, *, is_plain: bool) -> None:
    from rich.text import Text

    from llm_journey.app.chats import show_masks
    from llm_journey.cli.output import show_facts
    from llm_journey.core.console import output, print_json
    from llm_journey.core.errors import BadInputError

    if not is_plain:
        raise BadInputError("--mask shows chats as they are; leave out --dropped and --set")
    found = show_masks(source, model, count=count, seed=seed)
    if as_json:
        print_json(found.describe())
        return
    coloured = output().color_system is not None
    for chat in found.shown:
        output().print(
            f"--- {chat.where}  {chat.trained:,} of {chat.tokens:,} tokens are trained",
            markup=False,
            soft_wrap=True,
            style="bold",
        )
        text = Text()
        for piece, trained in chat.pieces:
            text.append(f"⟦{piece}⟧" if trained and not coloured else piece, style="green" if trained else "dim")
        output().print(text, soft_wrap=True)
    show_facts(found.rows())
