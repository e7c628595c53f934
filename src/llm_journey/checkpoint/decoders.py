"""A decoder from wherever one is kept: a folder in Hugging Face's layout, or a GGUF file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_journey.checkpoint.gguf.model import open_gguf
from llm_journey.checkpoint.model_folder import GENERATION, load_decoder
from llm_journey.checkpoint.tensor_files import read_json
from llm_journey.core.errors import BadInputError
from llm_journey.model.decoder import Decoder
from llm_journey.tokenizer import Tokenizer

GGUF_SUFFIX = ".gguf"


@dataclass(frozen=True)
class StoredDecoder:
    """decoder: in float32, in evaluation mode. generation: what its maker says of sampling and of ends."""

    decoder: Decoder
    tokenizer: Tokenizer
    generation: dict[str, Any]


def read_decoder(path: Path) -> StoredDecoder:
    """The decoder of a folder or a GGUF file. Raises BadInputError where it is damaged, or has no tokenizer."""
    if path.suffix == GGUF_SUFFIX:
        return StoredDecoder(*open_gguf(path))
    decoder, tokenizer = load_decoder(path)
    if tokenizer is None:
        raise BadInputError(f"{path}: holds no tokenizer.json, so no text can go in; put the tokenizer there")
    generation = path / GENERATION
    return StoredDecoder(decoder, tokenizer, read_json(generation) if generation.is_file() else {})
