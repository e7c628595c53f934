"""Options that many commands share, so that they read alike everywhere."""

from typing import Annotated

import typer

from llm_journey.cli import completion

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe (training.seconds=30); repeatable."),
]
SetSampling = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="temperature, top_k, top_p, min_p, typical_p, repetition_penalty, frequency_penalty, presence_penalty, "
        "stop, logprobs, seed, max_new_tokens, speculate=lookup; or num_beams, length_penalty (generate); repeatable.",
    ),
]
RecipeOrSource = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A catalog name, a folder, a file or a glob; or a recipe or a run, for its data.",
        show_default=False,
        autocompletion=completion.recipes,
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run's name, a catalog name, or a folder.",
        show_default=False,
        autocompletion=completion.models,
    ),
]
RunName = Annotated[
    str,
    typer.Argument(metavar="RUN", help="A run's name or folder.", show_default=False, autocompletion=completion.runs),
]


def examples(*lines: str) -> str:
    """The end of a help page: examples, one a line, kept as they are."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
