"""Engines over random decoders, and what they are compared with."""

from collections.abc import Sequence
from typing import Any

from llm_journey.generation.decode import generate
from llm_journey.generation.engine import Engine, EngineConfig, Request
from llm_journey.generation.runner import Runner
from llm_journey.generation.sampling import SamplingConfig
from llm_journey.model.decoder import Decoder
from llm_journey.parity.random_models import GPT2, LLAMA, QWEN3, random_decoder

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": QWEN3,
    "gpt2": GPT2,
    "window": {"sliding_window": 7},
    "post-norm": {"norm_placement": "post", "norm": "layernorm", "positions": "sinusoidal", "mlp": "relu2"},
    "untied": {"tied_embeddings": False, "embedding_norm": True, "embedding_scale": True, "mlp": "silu"},
}
GREEDY = SamplingConfig(temperature=0, max_new_tokens=12)


def engine(decoder: Decoder | None = None, **room: Any) -> Engine:
    """A small engine: blocks of 4 positions."""
    return Engine(Runner(decoder or random_decoder()), EngineConfig(**({"block_size": 4} | room)))


def run(an_engine: Engine, limit: int = 1000) -> None:
    """Steps until nothing is left to do."""
    for _ in range(limit):
        if not an_engine.busy:
            return
        an_engine.step()
    raise AssertionError(f"still busy after {limit} steps")


def new_ids(request: Request) -> list[int]:
    return [token.id for token in request.tokens]


def alone(decoder: Decoder, ids: Sequence[int], config: SamplingConfig = GREEDY) -> list[int]:
    """What the plain decoding of one prompt gives."""
    return list(generate(decoder, ids, config))
