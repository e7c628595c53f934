"""A server on the loopback over a small random model with a small trained tokenizer, in this process."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_journey.app.language_model import LanguageModel
from llm_journey.app.server import served_adapters, served_embedder, served_model
from llm_journey.parity.random_models import random_decoder
from llm_journey.serving.api import Service
from llm_journey.serving.config import ServerConfig
from llm_journey.serving.guard import Door
from llm_journey.serving.run import DrainingServer, bind, make_server
from llm_journey.serving.served import ServedEmbedder, ServedModel
from llm_journey.tokenizer.config import TokenizerConfig
from llm_journey.tokenizer.train import train_tokenizer

MODEL = "small"
EMBEDDER = "vectors"
TEXTS = (
    'The weather in a city: {"name": "get_weather", "arguments": {"city": "Paris"}} <tool_call>\n</tool_call> user'
    " system assistant What is the capital of France? It is Paris. The river runs by an old stone"
    " bridge, é 🎉 0123456789 true"
) * 3


def small_model(context: int = 1024, **choices: Any) -> LanguageModel:
    """A random model with a chat template; it says nothing that means anything, and stops now and then."""
    config = TokenizerConfig(vocab_size=320, special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer = train_tokenizer([TEXTS], config, processes=1)
    decoder = random_decoder(vocab_size=tokenizer.vocab_size, context=context, num_kv_heads=2, **choices)
    stop_ids = frozenset({tokenizer.special_tokens["<|im_end|>"], tokenizer.end_id})
    return LanguageModel(MODEL, Path("nowhere"), decoder, tokenizer, {"temperature": 1.0}, stop_ids)


def small_served(config: ServerConfig | None = None, **choices: Any) -> ServedModel:
    return served_model(small_model(**choices), config or ServerConfig())


@dataclass
class Running:
    """A server that answers at `url`."""

    url: str
    service: Service
    server: DrainingServer

    @property
    def model(self) -> ServedModel:
        return self.service.models[MODEL]


@contextmanager
def running(
    *,
    keys: tuple[str, ...] = (),
    limits: dict[str, Any] | None = None,
    embedder: ServedEmbedder | None = None,
    adapters: Mapping[str, Path] | None = None,
    **choices: Any,
) -> Iterator[Running]:
    """A server until the block ends."""
    config = ServerConfig(**{"max_new_tokens": 256, "drain_seconds": 0.2} | (limits or {}))
    served = served_model(small_model(**choices), config, adapters)
    embedders = {} if embedder is None else {embedder.name: embedder}
    service = Service({MODEL: served, **served_adapters(served)}, embedders, config)
    listening = bind("127.0.0.1", 0)
    started = threading.Event()
    server = make_server(service, Door("127.0.0.1", keys), on_start=started.set)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        assert started.wait(20)
        yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", service, server)
    finally:
        server.should_exit = True
        thread.join(20)
        service.close()
        listening.close()
    assert not thread.is_alive()


def embedder_in(folder: Path) -> ServedEmbedder:
    """A small random embedder under the name EMBEDDER."""
    from embedder_folders import save_embedder
    from llm_journey.app.embedder import open_embedder

    found = served_embedder(open_embedder(str(save_embedder(folder / EMBEDDER))))
    assert found.name == EMBEDDER
    return found
