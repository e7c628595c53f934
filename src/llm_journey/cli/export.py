"""`journey export`: a model for other programs, with its certificate."""

from pathlib import Path
from typing import Annotated

import typer

from llm_journey.cli.options import Json, Model, examples

EXPORT_EXAMPLES = examples(
    "journey export quickstart --to gguf --type q8_0 --out quickstart-gguf",
    "journey export smollm2-135m-instruct --to hf --out smollm2",
    "journey export smollm2-135m-instruct --to edge --out smollm2-edge",
)


def export(
    model: Model,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="hf (transformers), gguf (llama.cpp, ollama), onnx, torch-export, torchscript, or edge: a folder that "
            "answers with numpy and onnxruntime alone.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new folder.", show_default=False)],
    type_: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Of the matrices. gguf: f16 (the default), q8_0, q4_1, q4_0. onnx: float32 (the default), int8, int4, "
            "int8-dynamic. edge: int4 (the default), int8 (larger; rounds activations too), float32.",
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="TEXT", help="Of the weights, where the source names none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model for other programs: transformers, llama.cpp and ollama, onnxruntime, PyTorch alone, the edge.

    What was written is opened again and compared with the model; the result lies beside it in certificate.json. Over
    its bound, nothing is written.
    """
    from llm_journey.app.exports import export_model
    from llm_journey.cli.live import view
    from llm_journey.cli.output import show_facts
    from llm_journey.core.console import print_json

    with view() as watching:
        exported = export_model(model, to, out, type=type_, licence=licence, observer=watching)
    if as_json:
        print_json(exported.describe())
    else:
        show_facts(exported.rows())
