"""`journey quantize`: a model in few bits, with what it cost."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llm_journey.cli.options import Json, Model, examples

QUANTIZE_EXAMPLES = examples(
    "journey quantize quickstart --method int4 --out quickstart-int4",
    "journey quantize smollm2-135m-instruct --method gptq --bits 3 --max-kl 1 --out smollm2-3bit",
)


def quantize(
    model: Model,
    method: Annotated[
        str,
        typer.Option("--method", metavar="int8|dynamic-int8|int4|nf4|gptq", help="How codes are chosen."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="A new folder.", show_default=False)],
    bits: Annotated[int, typer.Option("--bits", help="Of int4 and gptq: 4, or 3 for study.")] = 4,
    group: Annotated[int, typer.Option("--group", help="Of int4 and gptq: 32, 64 or 128 inputs to a scale.")] = 32,
    symmetric: Annotated[bool, typer.Option("--symmetric", help="Of int4 and gptq: scales without minimums.")] = False,
    act_order: Annotated[bool, typer.Option("--act-order", help="Of gptq: columns of large inputs first.")] = False,
    text: Annotated[
        str,
        typer.Option("--text", metavar="SOURCE", help="Fitted to (gptq) and measured on, in two parts of its own."),
    ] = "wiki-summaries",
    max_kl: Annotated[
        float | None,
        typer.Option("--max-kl", metavar="NATS", help="The most that it may cost; each method has its own bound."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Round a model's weights to few bits.

    The folder is one that every other command takes. What was written is opened again and compared with the model in
    float32; the result lies beside it in certificate.json. Over its bound, nothing is written.
    """
    from llm_journey.app.quantize import QuantizeConfig, quantize_to_folder
    from llm_journey.cli.live import view
    from llm_journey.cli.output import show_facts
    from llm_journey.core.config import validate
    from llm_journey.core.console import print_json

    chosen: dict[str, Any] = {"method": method, "bits": bits, "group_size": group, "symmetric": symmetric}
    config = validate(QuantizeConfig, chosen | {"act_order": act_order, "text": text, "max_kl": max_kl}, "quantize")
    with view() as watching:
        found = quantize_to_folder(model, out, config, watching)
    if as_json:
        print_json(found.describe())
    else:
        show_facts(found.rows())
