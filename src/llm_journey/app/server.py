"""Models by name behind an address: what `journey serve` runs."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llm_journey.app.embedder import open_embedder
from llm_journey.app.find_models import embeds_texts
from llm_journey.app.language_model import open_model
from llm_journey.core.config import override, validate
from llm_journey.core.errors import BadInputError

if TYPE_CHECKING:
    from llm_journey.app.embedder import Embedder
    from llm_journey.app.language_model import LanguageModel
    from llm_journey.serving.api import Service
    from llm_journey.serving.config import ServerConfig
    from llm_journey.serving.served import ServedEmbedder, ServedModel

T = TypeVar("T")
_GIVE_BACK_SECONDS = 10.0


def serve_models(
    names: Sequence[str],
    *,
    host: str,
    port: int,
    key_file: Path | None = None,
    more_hosts: Sequence[str] = (),
    adapters: Sequence[str] = (),
    precision: str = "auto",
    compile: bool | None = None,
    settings: Sequence[str] = (),
    log_prompts: bool = False,
    on_start: Callable[[str, "Service"], None],
) -> None:
    """Open the models and answer until told to end. on_start: told the address once connections are taken.

    adapters: "NAME=FOLDER" texts; each is served under its name, over the first model's weights.

    Raises BadInputError before anything is opened where a name, a key file or a limit is wrong, JourneyError where the
    address is taken.
    """
    check_installed()
    from llm_journey.core.footprint import bound_caches, give_back_free_memory, given_back_every
    from llm_journey.serving.config import ServerConfig
    from llm_journey.serving.guard import Door, read_keys
    from llm_journey.serving.logs import start_logging
    from llm_journey.serving.run import bind, serve

    config = validate(ServerConfig, override({}, settings), "server limits")
    keys = read_keys(key_file) if key_file is not None else []
    door = Door(host, keys, more_hosts=more_hosts)
    listening = bind(host, port)
    bound_caches()
    try:
        service = _on_passing_thread(
            lambda: make_service(
                names, adapters, config=config, precision=precision, compile=compile, log_prompts=log_prompts
            )
        )
    except BaseException:
        listening.close()
        raise
    give_back_free_memory()
    start_logging()
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    with given_back_every(_GIVE_BACK_SECONDS):
        serve(service, door, listening, on_start=lambda: on_start(address, service))


def _on_passing_thread(work: Callable[[], T]) -> T:
    """What `work` returns, from a thread that ends with it.

    OpenMP gives each thread that computes helpers of its own. As long as all of them together are more than the
    processor has cores, libgomp puts a helper to sleep between any two operations, hundreds of times a token: an
    engine is half as fast beside a main thread that has loaded its model. A thread's helpers end with it.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="opening", daemon=True)
    thread.start()
    found = outcome.result()
    thread.join()
    return found


def make_service(
    names: Sequence[str],
    adapters: Sequence[str] = (),
    *,
    config: "ServerConfig",
    precision: str = "auto",
    compile: bool | None = None,
    log_prompts: bool = False,
) -> "Service":
    """The models of `names`, each with its engine on a thread of its own."""
    from llm_journey.serving.api import Service

    if len(set(names)) < len(names):
        raise BadInputError("a model is named twice")
    wanted = _named_adapters(adapters)
    models: dict[str, ServedModel] = {}
    embedders: dict[str, ServedEmbedder] = {}
    for name in names:
        if embeds_texts(name):
            embedder = open_embedder(name)
            embedders[embedder.name] = served_embedder(embedder)
        else:
            model = open_model(name, precision, compile=compile)
            taken = {model.name, *names} & wanted.keys()
            if taken:
                raise BadInputError(f"--adapter {taken.pop()!r}: a model is called so; give the adapter another name")
            models[model.name] = served_model(model, config, wanted)
            models |= served_adapters(models[model.name])
            wanted = {}  # they belong to the first
    if wanted:
        raise BadInputError("--adapter needs a model that writes text")
    return Service(models, embedders, config, log_prompts)


def served_model(
    model: "LanguageModel", config: "ServerConfig", adapters: Mapping[str, Path] | None = None
) -> "ServedModel":
    """An opened model behind an engine of its own, which can compute with adapters too; the model itself may be let go
    of."""
    from llm_journey.generation.worker import EngineWorker
    from llm_journey.serving.served import ServedModel

    engine = model.make_engine(
        adapters=adapters or {},
        cache_tokens=config.cache_tokens,
        max_running=config.max_running,
        cache_dtype=config.cache_dtype,
    )
    return ServedModel(
        model.name, model.tokenizer, EngineWorker(engine), model.defaults, model.stop_ids, int(time.time())
    )


def served_adapters(model: "ServedModel") -> "dict[str, ServedModel]":
    """The adapters of a model's engine as models by name."""
    names = model.worker.engine.runner.adapters
    return {name: replace(model, name=name, adapter=name, parent=model.name) for name in names}


def _named_adapters(texts: Sequence[str]) -> dict[str, Path]:
    """ "NAME=FOLDER" texts; the folder may be a run's name."""
    from llm_journey.app.adapters import find_adapter

    found: dict[str, Path] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not equals or not name or not place:
            raise BadInputError(f"--adapter {text!r}: say NAME=FOLDER, the name that requests give as their model")
        if name in found:
            raise BadInputError(f"--adapter {name!r} is named twice")
        found[name] = find_adapter(place)
    return found


def served_embedder(embedder: "Embedder") -> "ServedEmbedder":
    """An opened embedder."""
    from llm_journey.serving.served import ServedEmbedder

    return ServedEmbedder(
        embedder.name,
        lambda texts: embedder.embed_counted(texts).vectors,
        lambda texts: [len(ids) for ids in embedder.tokenizer.encode_batch(list(texts))],
        embedder.width,
        embedder.max_tokens,
        int(time.time()),
    )


def check_installed() -> None:
    """Raises BadInputError that says what to install where the server's packages are missing."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise BadInputError(f"a server needs the package {error.name}: pip install 'llm-journey[serve]'") from None
