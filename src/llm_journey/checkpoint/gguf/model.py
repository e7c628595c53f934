"""A GGUF file as a model of ours, and a model of ours as a GGUF file: names, numbers, tokenizer and keys put together.

Read: the configuration, our parameters in float32, the tokenizer, and the sampling defaults that newer files carry.
Written: see `write_gguf`. What a quantized file loses is measured by whoever exports it (app.exports), not here.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm_journey.checkpoint.gguf import names
from llm_journey.checkpoint.gguf.format import QUANTIZATION_VERSION, TENSOR_TYPES, TensorType
from llm_journey.checkpoint.gguf.reader import GgufFile
from llm_journey.checkpoint.gguf.vocabulary import read_vocabulary, write_vocabulary
from llm_journey.checkpoint.gguf.writer import TensorToWrite, write_file
from llm_journey.checkpoint.model_folder import build
from llm_journey.checkpoint.shapes import check_shapes, parameter_shapes
from llm_journey.core.errors import unknown_name
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.tokenizer import Tokenizer

# The types that a file can be asked for -> the type of its matrices.
FILE_TYPES = {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0", "q4_1": "Q4_1"}
_WIDE = ("token_embd.weight", "output.weight")
# generation_config.json's key -> the key of a GGUF file (llama.cpp's general.sampling.*).
SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


class GgufModel(NamedTuple):
    """What a file holds. generation: as in generation_config.json, only the keys that the file has."""

    config: TransformerConfig
    state: dict[str, Tensor]
    tokenizer: Tokenizer
    generation: dict[str, Any]


def read_gguf(path: Path) -> GgufModel:
    """The model in `path`, every name, shape and count checked before a number is read.

    Raises BadInputError naming the file and what is missing, left over, of another shape, or not supported.
    """
    file = GgufFile(path)
    config, numbers, tokenizer = _parts(file, path)
    return GgufModel(config, dict(numbers), tokenizer, _generation(file.metadata))


def build_decoder(found: GgufModel) -> Decoder:
    """The model of a file, ready to run."""
    return build(found.config, found.state.items(), Decoder)


def open_gguf(path: Path) -> tuple[Decoder, Tokenizer, dict[str, Any]]:
    """The model in `path`, ready to run, as `read_gguf` and `build_decoder` give it, in the memory of its float32
    numbers alone: no tensor is unpacked before the one before it has its place."""
    file = GgufFile(path)
    config, numbers, tokenizer = _parts(file, path)
    return build(config, numbers, Decoder), tokenizer, _generation(file.metadata)


def _parts(file: GgufFile, path: Path) -> tuple[TransformerConfig, Iterator[tuple[str, Tensor]], Tokenizer]:
    kind, config = names.read_config(file.metadata, shapes_of(file), str(path))
    tokenizer = read_vocabulary(file.metadata, config.vocab_size, str(path))
    numbers = names.read_tensors(kind, config, file.numbers)
    return config, ((name, torch.from_numpy(value)) for name, value in numbers), tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a file alone; see `read_gguf`."""
    file = GgufFile(path)
    _, config = names.read_config(file.metadata, shapes_of(file), str(path))
    return read_vocabulary(file.metadata, config.vocab_size, str(path))


def shapes_of(file: GgufFile) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor in an open file."""
    return {name: facts.shape for name, facts in file.tensors.items()}


def _sampling_metadata(generation: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: generation[key] for key in SAMPLING_KEYS if generation.get(key) is not None}
    return {SAMPLING_KEYS[key]: value if key == "top_k" else float(value) for key, value in given.items()}


def _generation(metadata: dict[str, Any]) -> dict[str, Any]:
    found = {key: metadata.get(stored) for key, stored in SAMPLING_KEYS.items()}
    return {
        key: names.shortest(value) if isinstance(value, float) else value
        for key, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def write_gguf(
    model: Decoder,
    tokenizer: Tokenizer,
    path: Path,
    *,
    type: str = "f16",
    generation: Mapping[str, Any] | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write `model` to `path` so that llama.cpp runs it.

    type: one of `FILE_TYPES`. Matrices get it; vectors and learned positions stay F32, as do in 4-bit files the
    embedding and the head at Q8_0 (llama.cpp's own recipe gives them more bits too: every token passes them), and a
    matrix whose rows are no whole blocks gets F16. generation: generation_config.json's sampling keys. facts: texts
    for general.* (name, license, description). Raises BadInputError where llama.cpp does not compute what the model
    computes, JourneyError where numbers are not finite.
    """
    if type not in FILE_TYPES:
        raise unknown_name("GGUF type", type, FILE_TYPES)
    config, state = model.config, model.state_dict()
    kind = names.architecture_of(config)
    check_shapes(parameter_shapes(config), {name: tuple(value.shape) for name, value in state.items()}, "the model")
    made = names.write_tensors(kind, config, lambda name: state[name].detach().float().cpu().numpy())
    tensors = [
        TensorToWrite(name, shape, _type_of(name, shape, type), made[name])
        for name, shape in names.stored_shapes(kind, config).items()
    ]
    metadata = names.write_metadata(config)
    metadata |= {f"general.{key}": text for key, text in (facts or {}).items()}
    metadata |= {"general.file_type": TENSOR_TYPES[FILE_TYPES[type]].file_type}
    metadata |= {"general.quantization_version": QUANTIZATION_VERSION}
    metadata |= _sampling_metadata(generation or {})
    write_file(path, metadata | write_vocabulary(tokenizer, config.vocab_size), tensors)


def _type_of(name: str, shape: tuple[int, ...], file_type: str) -> TensorType:
    if len(shape) == 1 or name.startswith("position_embd"):
        return TENSOR_TYPES["F32"]
    four_bits = file_type.startswith("q4")
    kind = TENSOR_TYPES["Q8_0" if four_bits and name in _WIDE else FILE_TYPES[file_type]]
    return kind if shape[-1] % kind.block == 0 else TENSOR_TYPES["F16"]
