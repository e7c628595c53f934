"""`journey index` and `journey ask`: your own texts, searched and answered from."""

import sys
from typing import Annotated

import typer

from llm_journey.cli.options import Json, examples

INDEX_EXAMPLES = examples(
    "journey index ./notes",
    "journey index wiki-summaries --embedder none",
    "journey index ./docs --name manual --set chunker=markdown --set size=600",
)
ASK_EXAMPLES = examples(
    'journey ask "Which river runs through the city?"',
    'journey ask "Who built the bridge?" --library notes --retriever hybrid-mmr --json',
)

Library = Annotated[
    str | None,
    typer.Option("--library", metavar="NAME", help="Which one.", show_default="the one indexed last"),
]


def index(
    source: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A folder, a file, a glob, or a catalog corpus.", show_default=False),
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the library.", show_default="the path's last part")
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            "--embedder",
            metavar="MODEL",
            help="What makes the vectors; none searches by words alone.",
            show_default="all-minilm-l6-v2",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="chunker (fixed, recursive, sentence, markdown), size and overlap in characters; repeatable.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make texts a library that can be searched and asked, or bring it up to date.

    Only what changed is cut and embedded again. What cannot be read is named, and the rest goes on.
    """
    from llm_journey.app.libraries import index_source
    from llm_journey.cli.live import view
    from llm_journey.cli.output import show_facts
    from llm_journey.core.console import print_json

    with view() as watching:
        report = index_source(source, name=name, embedder=embedder, settings=settings or (), observer=watching)
    if as_json:
        print_json(report.describe())
    else:
        show_facts(report.rows())


def ask(
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="In your words.", show_default=False)],
    library: Library = None,
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Who answers: a chat model.")
    ] = "smollm2-135m-instruct",
    retriever: Annotated[
        str | None,
        typer.Option(
            "--retriever",
            metavar="NAME",
            help="bm25, dense, hybrid or hybrid-mmr.",
            show_default="hybrid, or bm25 without vectors",
        ),
    ] = None,
    count: Annotated[int, typer.Option("--passages", help="Shown to the model at most.", min=1, max=50)] = 4,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="k1, b, depth, weight, candidates, trade_off; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer a question from a library, with the sources of each sentence.

    Without a passage that has to do with the question, the answer is that it is not known.
    """
    from llm_journey.app.libraries import open_library
    from llm_journey.cli.output import say, shortened
    from llm_journey.core.console import output, print_json
    from llm_journey.rag.answer import AnswerConfig

    opened = open_library(library, retriever=retriever, settings=settings or ())
    found = opened.ask(question, model, config=AnswerConfig(passages=count))
    if as_json:
        print_json(
            {
                "question": found.question,
                "answer": found.text,
                "abstained": found.abstained,
                "sentences": [vars(each) for each in found.sentences],
                "sources": [
                    {"number": number, **vars(passage)} for number, passage in enumerate(found.passages, start=1)
                ],
                "library": opened.name,
                "retriever": opened.retriever_name,
                "model": model,
            }
        )
        return
    sys.stdout.write(f"{found.marked() or found.text}\n")
    for number in found.cited:
        passage = found.passages[number - 1]
        where = f"{passage.source}, characters {passage.start:,} to {passage.stop:,}"
        output().print(f"[{number}] {where}: {shortened(passage.text)}", markup=False, soft_wrap=True)
    loose = sum(each.source is None for each in found.sentences)
    if loose:
        say(f"{loose} of {len(found.sentences)} sentences have no source among the passages; do not rely on them")
