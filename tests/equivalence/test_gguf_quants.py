"""GGUF's tensor types, read and written, against the `gguf` package's own, bit for bit; our files in its reader."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import quants as reference
from gguf.constants import GGMLQuantizationType

from llm_journey.checkpoint.gguf.format import TENSOR_TYPES, TensorType
from llm_journey.checkpoint.gguf.quants import WRITTEN_TYPES, dequantize, quantize
from llm_journey.checkpoint.gguf.writer import TensorToWrite, write_file

READ = tuple(TENSOR_TYPES.values())


def theirs(kind: TensorType) -> GGMLQuantizationType:
    return GGMLQuantizationType[kind.name]


def same_bits(first: Any, second: Any) -> bool:
    """Equal as bits, so that signed zeros and NaN count too."""
    return first.dtype == second.dtype and first.tobytes() == second.tobytes()


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
def test_block_sizes(kind: TensorType) -> None:
    assert gguf.GGML_QUANT_SIZES[theirs(kind)] == (kind.block, kind.size)
    assert theirs(kind).value == kind.number


@pytest.mark.parametrize("kind", READ, ids=lambda kind: kind.name)
def test_any_bytes_read_alike(kind: TensorType) -> None:
    """Random bytes: every value of every field, infinite scales left out (what they make is no number)."""
    draw = np.random.default_rng(3)
    blocks = draw.integers(0, 256, (3000, kind.size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = reference.dequantize(blocks, theirs(kind)).reshape(3000, -1)
    found = dequantize(kind, blocks.reshape(-1)).reshape(3000, -1)
    finite = np.isfinite(expected).all(axis=1)
    assert finite.sum() > 1500 or kind.block == 1
    assert same_bits(found[finite], expected[finite])


def hard_numbers() -> Any:
    """Blocks with ties, zeros, one sign, equal values, tiny and large sizes, and ordinary weights."""
    draw = np.random.default_rng(5)
    rows = [
        draw.normal(size=(400, 256)) * draw.choice([1e-6, 1e-3, 0.02, 1.0, 50.0], size=(400, 1)),
        draw.integers(-8, 9, (50, 256)) / 2,
        np.abs(draw.normal(size=(20, 256))),
        -np.abs(draw.normal(size=(20, 256))),
        np.zeros((2, 256)),
        np.full((2, 256), 0.3),
        np.full((2, 256), -127.5),
    ]
    return np.concatenate(rows).astype(np.float32)


@pytest.mark.parametrize("kind", WRITTEN_TYPES, ids=lambda kind: kind.name)
def test_numbers_are_written_alike(kind: TensorType) -> None:
    numbers = hard_numbers()
    expected = reference.quantize(numbers, theirs(kind))
    found = quantize(kind, numbers.reshape(-1))
    assert same_bits(found, np.ascontiguousarray(expected).view(np.uint8).reshape(-1))


def test_a_planted_error_is_seen() -> None:
    """One bit of one scale: the proofs above can fail."""
    kind = TENSOR_TYPES["Q6_K"]
    blocks = np.random.default_rng(1).integers(0, 60, (4, kind.size), dtype=np.uint8)
    changed = blocks.copy()
    changed[2, 200] ^= 1
    expected = reference.dequantize(blocks, theirs(kind)).reshape(-1)
    assert same_bits(dequantize(kind, blocks.reshape(-1)), expected)
    assert not same_bits(dequantize(kind, changed.reshape(-1)), expected)


def test_their_reader_sees_what_we_wrote(tmp_path: Path) -> None:
    """Keys, names, shapes, types and numbers of a file of ours, through the package's own reader."""
    draw = np.random.default_rng(2)
    arrays = {f"t.{kind.name}": draw.normal(size=(3, 64)).astype(np.float32) for kind in WRITTEN_TYPES}
    metadata = {
        "general.architecture": "llama",
        "a.number": 7,
        "a.float": 0.25,
        "a.flag": True,
        "a.texts": ["Ġthe", "naïve", ""],
        "a.types": np.array([1, 3, 1], dtype=np.int32),
    }
    tensors = [
        TensorToWrite(name, value.shape, TENSOR_TYPES[name.removeprefix("t.")], lambda value=value: value)
        for name, value in arrays.items()
    ]
    write_file(tmp_path / "a.gguf", metadata, tensors)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    for key, value in metadata.items():
        contents = reader.get_field(key).contents()
        assert contents == (value.tolist() if isinstance(value, np.ndarray) else value)
    assert len(reader.tensors) == len(arrays)
    for tensor in reader.tensors:
        kind = TENSOR_TYPES[tensor.name.removeprefix("t.")]
        assert tensor.tensor_type == theirs(kind) and tensor.shape.tolist() == [64, 3]
        read = reference.dequantize(np.asarray(tensor.data), tensor.tensor_type).reshape(3, 64)
        assert np.allclose(read, arrays[tensor.name], atol=0.3)
        expected = reference.quantize(arrays[tensor.name], theirs(kind))
        assert np.asarray(tensor.data).tobytes() == np.ascontiguousarray(expected).tobytes()
