"""`journey embed`: texts to vectors, as JSON lines or a NumPy file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_journey.cli.options import Json, Model, examples

if TYPE_CHECKING:
    from llm_journey.app.embedder import Embedder, Embeddings

EMBED_EXAMPLES = examples(
    'journey embed all-minilm-l6-v2 "The river flows" "A stream runs"',
    "journey embed all-minilm-l6-v2 --file texts.jsonl --out vectors.npy",
)


def embed(
    model: Model,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts, each in quotes.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help='Texts from a file: .jsonl (key "text"), or .txt with one a line.'),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the vectors here: .npy (texts x width), or .jsonl."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn texts into vectors that are near each other where the texts mean alike.

    One JSON object a line and text: index, tokens read, whether it was cut at the model's limit, vector.
    """
    from llm_journey.app.embedder import open_embedder
    from llm_journey.app.embedding_texts import FORMATS, read_texts, write_vectors
    from llm_journey.cli.output import say
    from llm_journey.core.errors import BadInputError

    if (file is None) == (not texts):
        raise BadInputError("give texts, or a file of them by --file (one of the two)")
    if out is not None and out.suffix not in FORMATS:
        raise BadInputError(f"--out {out}: must end in {' or '.join(FORMATS)}")
    wanted = list(texts or []) if file is None else read_texts(file)
    opened = open_embedder(model)
    found = _embed(opened, wanted)
    if found.cut:
        say(opened.cut_message(found))
    if out is not None:
        write_vectors(found, out)
        say(f"written: {out} ({len(found.tokens):,} x {opened.width})")
    _print(opened, found, out, as_json)


def _embed(opened: "Embedder", texts: list[str]) -> "Embeddings":
    """The vectors; where somebody watches and it takes a while, a bar shows how far it is."""
    from rich.progress import Progress

    from llm_journey.core.console import messages

    with Progress(console=messages(), transient=True, disable=not messages().is_terminal) as progress:
        bar = progress.add_task("embedding", total=len(texts))
        return opened.embed_counted(texts, on_batch=lambda count: progress.advance(bar, count))


def _print(opened: "Embedder", found: "Embeddings", out: Path | None, as_json: bool) -> None:
    """What goes to standard output: one document, or a line a text; the vectors only where they went to no file."""
    import json
    import sys

    from llm_journey.app.embedding_texts import vector_rows
    from llm_journey.core.console import print_json

    if as_json:
        facts = {"model": opened.name, "width": opened.width, "max_tokens": opened.max_tokens}
        counts = {"texts": len(found.tokens), "tokens": sum(found.tokens), "cut": len(found.cut)}
        more = {"embeddings": list(vector_rows(found))} if out is None else {"out": str(out)}
        print_json(facts | counts | more)
    elif out is None:
        for row in vector_rows(found):
            sys.stdout.write(json.dumps(row, allow_nan=False) + "\n")
