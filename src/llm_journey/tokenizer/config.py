"""What a tokenizer to be trained should be."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from llm_journey.core.config import STRICT

END_TOKEN = "<|endoftext|>"  # noqa: S105 - a token of text
MAX_VOCAB_SIZE = 1 << 20
_NUM_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A byte-level BPE vocabulary: 256 bytes, then merges, then the special tokens.

    `pattern` is the split pattern ("gpt2", "cl100k"); `special_tokens` must hold `<|endoftext|>`, which ends every
    document. Raises ValueError for a size below 256 bytes plus the special tokens.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    vocab_size: int = 4096
    pattern: Literal["gpt2", "cl100k"] = "gpt2"
    special_tokens: tuple[str, ...] = (END_TOKEN, "<|im_start|>", "<|im_end|>")

    def __post_init__(self) -> None:
        if not all(self.special_tokens):
            raise ValueError("special_tokens must not hold an empty string")
        if len(set(self.special_tokens)) != len(self.special_tokens):
            raise ValueError(f"special_tokens must differ from each other: {', '.join(self.special_tokens)}")
        if END_TOKEN not in self.special_tokens:
            raise ValueError(f"special_tokens must hold {END_TOKEN}, which ends every document")
        if self.vocab_size < self.smallest_vocab_size:
            raise ValueError(
                f"vocab_size {self.vocab_size} is too small: 256 bytes and {len(self.special_tokens)} special tokens "
                f"need at least {self.smallest_vocab_size}"
            )
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise ValueError(f"vocab_size {self.vocab_size} is too large: at most {MAX_VOCAB_SIZE}")

    @property
    def smallest_vocab_size(self) -> int:
        """The 256 bytes and the special tokens, with no merge at all."""
        return _NUM_BYTES + len(self.special_tokens)

    @property
    def num_merges(self) -> int:
        """How many merges fill the vocabulary."""
        return self.vocab_size - self.smallest_vocab_size
