"""The limits of a server: one dataclass, changed by `--set key=value`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from llm_journey.core.config import STRICT


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Limits of a server.

    max_running: answers that share a pass, of each model. max_queue: answers that wait beyond these; one more is
    refused with 429. max_new_tokens: the most that one answer may ask for. max_n: answers to one prompt, and prompts
    of one request. max_body_bytes: of a request. max_texts: of an embeddings request. request_seconds: from the last
    byte of a request to the end of its answer. read_seconds: for a request's header, and again for its body.
    drain_seconds: how long a server that is told to end lets answers finish. cache_tokens, cache_dtype: see
    generation.engine.EngineConfig.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    max_running: int = 16
    max_queue: int = 64
    max_new_tokens: int = 4096
    max_n: int = 8
    max_body_bytes: int = 4 << 20
    max_texts: int = 512
    request_seconds: float = 600.0
    read_seconds: float = 20.0
    drain_seconds: float = 2.5
    cache_tokens: int = 0
    cache_dtype: Literal["float32", "bfloat16", "int8"] = "float32"

    def __post_init__(self) -> None:
        for name in ("max_running", "max_new_tokens", "max_n", "max_texts"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(self.max_queue >= 0, f"max_queue must be at least 0, not {self.max_queue}")
        _require(1024 <= self.max_body_bytes <= 1 << 30, "max_body_bytes must be from 1,024 to 1,073,741,824")
        _require(self.cache_tokens >= 0, "cache_tokens must be at least 0 (0: as much as four contexts)")
        for name in ("request_seconds", "read_seconds"):
            _require(getattr(self, name) > 0, f"{name} must be above 0, not {getattr(self, name)}")
        _require(0 <= self.drain_seconds <= 60, f"drain_seconds must be from 0 to 60, not {self.drain_seconds}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
