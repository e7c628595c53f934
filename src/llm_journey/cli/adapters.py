"""`journey adapters`: low-rank adapters, ours and PEFT's, looked at and merged."""

from pathlib import Path
from typing import Annotated

import typer

from llm_journey.cli.options import Json, Model, examples

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Low-rank adapters: list, merge.",
    epilog=examples("journey adapters list", "journey adapters merge smollm2-135m-instruct ./adapter --out merged"),
)


@app.command(name="list", epilog=examples("journey adapters list", "journey adapters list ./outputs --json"))
def list_folder(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]", help="Where to look, with the folders below it.", show_default="the runs' adapters"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the adapters in a folder, or those that runs have trained.

    Each in PEFT's layout: adapter_config.json and adapter_model.safetensors.
    """
    from llm_journey.app.adapters import list_adapters
    from llm_journey.cli.output import say, show_table
    from llm_journey.core.console import print_json
    from llm_journey.core.paths import runs_dir

    if folder is None:
        folder = runs_dir()
        folder.mkdir(parents=True, exist_ok=True)

    found = list_adapters(folder)
    if as_json:
        print_json([adapter.describe() for adapter in found])
    elif not found:
        say(f"{folder}: no adapter there")
    else:
        head = ("adapter", "of", "kind", "rank", "matrices", "parameters")
        rows = [
            [
                str(each.folder),
                each.base,
                each.kind,
                str(each.rank or "–"),
                str(each.modules or "–"),
                f"{each.parameters:,}",
            ]
            for each in found
        ]
        show_table(head, rows, right=(3, 4, 5))


@app.command(
    epilog=examples(
        "journey adapters merge quickstart ./adapter --out merged",
        "journey adapters merge small ./adapter --out new --json",
    )
)
def merge(
    model: Model,
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="Its folder, ours or PEFT's; or a run.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new folder.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Write a model with an adapter in its weights.

    The folder is one that every other command takes. What was written is opened again and compared with the model and
    the adapter side by side; the result lies in certificate.json. Where they differ, nothing is written.
    """
    from llm_journey.app.adapters import find_adapter, merge_adapter
    from llm_journey.cli.output import show_facts
    from llm_journey.core.console import print_json

    found = merge_adapter(model, find_adapter(adapter), out)
    if as_json:
        print_json(found.describe())
    else:
        show_facts(found.rows())
