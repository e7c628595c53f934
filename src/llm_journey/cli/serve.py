"""`journey serve`: models behind an address that OpenAI's clients understand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm_journey.cli import completion
from llm_journey.cli.options import examples

if TYPE_CHECKING:
    from llm_journey.serving.api import Service

SERVE_EXAMPLES = examples(
    "journey serve smollm2-135m-instruct --port 8000",
    "journey serve smollm2-135m-instruct all-minilm-l6-v2 --host 0.0.0.0 --api-key-file keys.txt",
    "journey serve smollm2-135m-instruct --adapter calls=tool-calls",
    "journey serve quickstart --set max_running=4 --set max_new_tokens=512",
)


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Runs' names, catalog names, folders or GGUF files; an embedder too.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ],
    port: Annotated[int, typer.Option("--port", help="Where to listen; 0 takes a free one.", min=0, max=65535)] = 8000,
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="Which address to listen on; beyond this machine needs keys."),
    ] = "127.0.0.1",
    key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", metavar="FILE", help="API keys, one a line; without it, none is asked for."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="A further name that the server answers to; repeatable."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            metavar="NAME=FOLDER",
            help="Serve an adapter (or a run's) of the first MODEL under a name of its own; repeatable.",
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option("--precision", metavar="FORM", help="Weights: auto, float32, bfloat16, int8 or int4."),
    ] = "auto",
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Steps compiled for this machine, once (half a minute, a C++ compiler): faster from then on.",
            show_default="where compiled before",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="max_running, max_queue, max_new_tokens, max_n, max_body_bytes, max_texts, request_seconds, "
            "read_seconds, drain_seconds, cache_tokens, cache_dtype; repeatable.",
        ),
    ] = None,
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Log the texts of prompts too; they may be private.")
    ] = False,
) -> None:
    """Serve models under OpenAI's API, until Ctrl-C or SIGTERM.

    The address comes on standard output; a JSON line a request on standard error, without any text of it.
    """
    from llm_journey.app.server import serve_models
    from llm_journey.cli.output import say

    def on_start(address: str, service: "Service") -> None:
        for card in service.cards():
            say(f"{card.id}: {card.kind}, {card.context:,} tokens")
        typer.echo(f"{address}/v1")

    serve_models(
        models,
        host=host,
        port=port,
        key_file=key_file,
        more_hosts=allow_host or (),
        adapters=adapter or (),
        precision=precision,
        compile=compile,
        settings=settings or (),
        log_prompts=log_prompts,
        on_start=on_start,
    )
