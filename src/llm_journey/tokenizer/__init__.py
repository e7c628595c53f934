"""Text to tokens and back: byte-level BPE trained from scratch, WordPiece for BERT, chat templates, vocabulary reports.

The two names that others need load on first use, so that a counting process starts without them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_journey.tokenizer.config import TokenizerConfig
    from llm_journey.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer", "TokenizerConfig"]


def __getattr__(name: str) -> Any:
    if name == "Tokenizer":
        from llm_journey.tokenizer.tokenizer import Tokenizer

        return Tokenizer
    if name == "TokenizerConfig":
        from llm_journey.tokenizer.config import TokenizerConfig

        return TokenizerConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
