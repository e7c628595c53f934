"""`journey foundations`: the mathematics of the package, listed and drawn."""

from pathlib import Path
from typing import Annotated

import typer

from llm_journey.cli.options import Json, examples

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The mathematics underneath: list, plot.",
    epilog=examples("journey foundations list", "journey foundations plot svd"),
)


@app.command(name="list", epilog=examples("journey foundations list", "journey foundations list --json"))
def list_foundations(as_json: Json = False) -> None:
    """List every function with its formula, and every picture."""
    from llm_journey.cli.output import show_table
    from llm_journey.core.console import print_json
    from llm_journey.foundations.index import entries
    from llm_journey.foundations.pictures import PICTURES

    functions, pictures = entries(), list(PICTURES.values())
    if as_json:
        print_json(
            {
                "functions": [entry.describe() for entry in functions],
                "pictures": [picture.describe() for picture in pictures],
            }
        )
        return
    show_table(["module", "name", "formula"], [[entry.module, entry.name, entry.formula] for entry in functions])
    rows = [[picture.name, picture.title, picture.place] for picture in pictures]
    show_table(["picture", "shows", "used in"], rows)


@app.command(epilog=examples("journey foundations plot", "journey foundations plot svd kl --out pictures"))
def plot(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="Which pictures; all of them where none is named.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the PNG files go.")] = Path("foundations"),
    as_json: Json = False,
) -> None:
    """Draw the pictures.

    Each has a caption that says where the transformer uses the idea. Prints the paths of the files.
    """
    from llm_journey.cli.output import say
    from llm_journey.core import files
    from llm_journey.core.console import output, print_json
    from llm_journey.core.errors import unknown_name
    from llm_journey.foundations.pictures import PICTURES

    for name in names or []:
        if name not in PICTURES:
            raise unknown_name("picture", name, PICTURES)
    written = []
    for name in dict.fromkeys(names or PICTURES):
        picture, path = PICTURES[name], out / f"{name}.png"
        files.write_bytes(path, picture.png())
        written.append(picture.describe() | {"path": str(path)})
        if not as_json:
            output().print(str(path), markup=False, soft_wrap=True)
            say(f"  {picture.title}. {picture.full_caption}")
    if as_json:
        print_json(written)
