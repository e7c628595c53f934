"""A model as the server holds it: its tokenizer, the worker that runs its engine, how it likes to be sampled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from llm_journey.generation.worker import EngineWorker
from llm_journey.serving.tool_text import Closers, find_closers, renders_tools
from llm_journey.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass
class ServedModel:
    """A decoder behind an engine. defaults: its own sampling settings. stop_ids: what ends its texts.

    adapter: of the engine's runner, which this model's answers are computed with; parent: the model that it adapts,
    with which it shares the engine.
    """

    name: str
    tokenizer: Tokenizer
    worker: EngineWorker
    defaults: Mapping[str, Any] = field(default_factory=dict)
    stop_ids: frozenset[int] = frozenset()
    created: int = 0
    adapter: str | None = None
    parent: str | None = None

    @property
    def context(self) -> int:
        """The most tokens of prompt and answer."""
        return self.worker.engine.runner.config.context

    @property
    def kind(self) -> Literal["chat", "completion"]:
        """Whether it has a chat template."""
        return "chat" if self.tokenizer.chat_template is not None else "completion"

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Special tokens that are no text."""
        special = self.tokenizer.special_tokens
        return frozenset(token for name, token in special.items() if name not in self.tokenizer.visible_tokens)

    @cached_property
    def _num_tokens(self) -> int:
        return self.tokenizer.vocab_size

    def text_bytes(self, token: int) -> bytes:
        """What a token adds to a text: nothing where it is special, or a row of the model without a token."""
        known = token < self._num_tokens and token not in self.hidden_ids
        return self.tokenizer.id_to_bytes(token) if known else b""

    @cached_property
    def renders_tools(self) -> bool:
        """Whether the model's own template writes tools, calls and results."""
        return renders_tools(self.tokenizer)

    @cached_property
    def closers(self) -> Closers:
        """Tokens that can end the mark before a tool call."""
        return find_closers(self.tokenizer, self.worker.engine.runner.config.vocab_size)


@dataclass(frozen=True)
class ServedEmbedder:
    """An embedder. embed: (N, D) vectors of N texts. count: tokens of each text, before any cut."""

    name: str
    embed: "Callable[[Sequence[str]], npt.NDArray[np.float32]]"
    count: Callable[[Sequence[str]], list[int]]
    width: int
    context: int
    created: int = 0
    kind: Literal["embedding"] = "embedding"
    parent: None = None
