"""`journey eval`: parts judged on a test set."""

from pathlib import Path
from typing import Annotated

import typer

from llm_journey.cli.options import Json, examples

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Judge on a test set: retrieval.",
    epilog=examples("journey eval retrieval --beir cranfield", "journey eval retrieval --help"),
)


@app.callback()
def evaluate() -> None:
    """Judge on a test set: retrieval."""


@app.command(
    epilog=examples(
        "journey eval retrieval --beir cranfield",
        "journey eval retrieval --beir ./scifact --retriever hybrid --set weight=0.6 --json",
    )
)
def retrieval(
    beir: Annotated[
        str,
        typer.Option(
            "--beir", metavar="FOLDER", help="A folder in BEIR's layout, or a catalog name.", show_default=False
        ),
    ],
    retriever: Annotated[
        list[str] | None,
        typer.Option(
            "--retriever",
            metavar="NAME",
            help="bm25, dense, hybrid or hybrid-mmr; repeatable.",
            show_default="all four",
        ),
    ] = None,
    embedder: Annotated[
        str, typer.Option("--embedder", metavar="MODEL", help="What makes the vectors of dense and hybrid.")
    ] = "all-minilm-l6-v2",
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="Which file of qrels/.")] = "test",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="k1, b; depth, weight, candidates, trade_off of hybrids; repeatable."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Search a test set's documents for its questions, and say how good the orders are.

    Every figure has its interval of 95% over the questions; each retriever is compared with those before it, question
    by question.
    """
    from llm_journey.app.retrieval import evaluate_retrieval
    from llm_journey.cli.live import view
    from llm_journey.cli.output import say, show_table
    from llm_journey.core.console import print_json
    from llm_journey.datasets.catalog import resolve

    names = retriever or ["bm25", "dense", "hybrid", "hybrid-mmr"]
    with view() as watching:
        report = evaluate_retrieval(
            Path(resolve(beir)), names, split=split, embedder=embedder, settings=settings or (), observer=watching
        )
    if as_json:
        print_json(report.describe())
        return
    head = ["retriever", *report.results[0].metrics, "similarity@10", "p50"]
    rows = [
        [
            each.retriever,
            *(f"{mean:.4f} ({low:.3f} to {high:.3f})" for mean, low, high in each.metrics.values()),
            "–" if each.similarity is None else f"{each.similarity:.3f}",
            f"{each.latency['p50']:.1f} ms",
        ]
        for each in report.results
    ]
    show_table(head, rows)
    say(f"{report.documents:,} documents, {report.queries:,} questions; in brackets the interval of 95%")
    for each in report.results:
        for first, found in each.against.items():
            ndcg = found["ndcg@10"]
            said = f"{each.retriever} over {first}, ndcg@10: {ndcg['difference']:+.4f}"
            say(f"{said} ({ndcg['low']:+.4f} to {ndcg['high']:+.4f}; p = {ndcg['p']:.4f})")
