"""Tensors of GGUF as float32 and back: what each block of bytes stands for, in NumPy.

Legend: N blocks, each of `block` numbers. Each `_read_...` takes (N, size) bytes and gives (N, block) float32; each
`_write_...` is the other way. d is a block's scale, m its minimum, q the stored whole numbers.

    Q8_0   x = d q                  q of 8 bits, signed               32 numbers in 34 bytes
    Q4_0   x = d (q - 8)            q of 4 bits                       32 in 18
    Q4_1   x = d q + m              q of 4 bits                       32 in 20
    Q4_K   x = d s q - e t          q of 4 bits; s, t of 6 bits for every 32 numbers, d, e for all 256, in 144
    Q5_K   the same with q of 5 bits                                  256 in 176
    Q6_K   x = d s (q - 32)         q of 6 bits; s of 8 bits for every 16 numbers     256 in 210

Source: the reference code in ggml-quants.c; equal to the `gguf` package's results bit for bit, which
tests/equivalence/test_gguf_quants.py proves. Rounding the written types better than that reference (a search for each
block's scale) is left out on purpose: what is written here is what its own tool would write.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llm_journey.checkpoint.gguf.format import TENSOR_TYPES, TensorType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
# Numbers worked on at a time: they stay in the processor's cache, and the memory needed beside the result is small.
_CHUNK = 1 << 18


def dequantize(kind: TensorType, data: Bytes) -> Floats:
    """The numbers, float32 and flat, that `data` (flat, whole blocks) stands for."""
    if kind.name == "F32":
        return data.view("<f4").astype(np.float32)
    if kind.name == "F16":
        return data.view("<f2").astype(np.float32)
    blocks = data.reshape(-1, kind.size)
    result = np.empty((len(blocks), kind.block), dtype=np.float32)
    step = max(1, _CHUNK // kind.block)
    with np.errstate(invalid="ignore"):  # a damaged scale may be infinite; what it makes is no number either
        for start in range(0, len(blocks), step):
            result[start : start + step] = _READ[kind.name](blocks[start : start + step])
    return result.reshape(-1)


def quantize(kind: TensorType, numbers: Floats) -> Bytes:
    """`numbers` (flat, whole blocks, finite) as bytes of one of `WRITTEN_TYPES`."""
    blocks = numbers.reshape(-1, kind.block)
    result = np.empty((len(blocks), kind.size), dtype=np.uint8)
    step = max(1, _CHUNK // kind.block)
    for start in range(0, len(blocks), step):
        result[start : start + step] = _WRITE[kind.name](blocks[start : start + step])
    return result.reshape(-1)


def _half(data_nb: Bytes) -> Floats:
    """Two bytes a block as a column of float32, (N, 1)."""
    return np.ascontiguousarray(data_nb).view("<f2").astype(np.float32)


def _nibbles(data_nb: Bytes) -> Bytes:
    """The low halves of the bytes, then the high halves: (..., B) -> (..., 2 B)."""
    return np.concatenate([data_nb & 0x0F, data_nb >> 4], axis=-1)


def _read_bf16(blocks: Bytes) -> Floats:
    """bfloat16 is the upper half of a float32."""
    return (np.ascontiguousarray(blocks).view("<u2").astype(np.uint32) << 16).view(np.float32)


def _read_q8_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _read_q4_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8.0)


def _read_q4_1(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks[:, 2:4])


def _scales_and_minima(packed_nb: Bytes) -> tuple[Bytes, Bytes]:
    """Eight scales and eight minima of 6 bits each from 12 bytes a block; (N, 8) each.

    Bytes 0-3 hold scales 0-3 and bytes 4-7 minima 0-3 in their lower six bits; the upper two bits are those of scales
    and minima 4-7, whose lower four bits lie in bytes 8-11.
    """
    first, second, third = packed_nb[:, :4], packed_nb[:, 4:8], packed_nb[:, 8:]
    scales = np.concatenate([first & 0x3F, (third & 0x0F) | ((first >> 6) << 4)], axis=1)
    minima = np.concatenate([second & 0x3F, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales, minima


def _scaled_groups(blocks: Bytes, q_ngi: Bytes) -> Floats:
    """Q4_K and Q5_K share their scales: (N, 8 groups, 32) whole numbers become (N, 256) numbers."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    scale_ng = _half(blocks[:, :2]) * scales.astype(np.float32)
    minimum_ng = _half(blocks[:, 2:4]) * minima.astype(np.float32)
    return (scale_ng[..., None] * q_ngi.astype(np.float32) - minimum_ng[..., None]).reshape(len(blocks), -1)


def _read_q4_k(blocks: Bytes) -> Floats:
    return _scaled_groups(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _read_q5_k(blocks: Bytes) -> Floats:
    low_ngi = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    fifth_ngi = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    return _scaled_groups(blocks, low_ngi | (fifth_ngi << np.uint8(4)))


def _read_q6_k(blocks: Bytes) -> Floats:
    low_nhi = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[:, None]
    high_nhi = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    q_ngi = (low_nhi | (high_nhi << 4)).reshape(-1, 16, 16).astype(np.float32) - 32.0
    scale_ng = _half(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scale_ng[..., None] * q_ngi).reshape(len(blocks), -1)


_READ: dict[str, Callable[[Bytes], Floats]] = {
    "BF16": _read_bf16,
    "Q8_0": _read_q8_0,
    "Q4_0": _read_q4_0,
    "Q4_1": _read_q4_1,
    "Q4_K": _read_q4_k,
    "Q5_K": _read_q5_k,
    "Q6_K": _read_q6_k,
}


def _inverse(scale_n1: Floats) -> Floats:
    """1 / d, and 0 for a block of zeros."""
    with np.errstate(divide="ignore"):
        return np.where(scale_n1 == 0, np.float32(0), np.float32(1) / scale_n1)


def _bytes_of_half(column_n1: Floats) -> Bytes:
    return column_n1.astype("<f2").view(np.uint8)


def _packed(q_ni: Bytes) -> Bytes:
    """Sixteen bytes of 32 four-bit numbers: the first half in the low bits, the second in the high ones."""
    return q_ni[:, :16] | (q_ni[:, 16:] << np.uint8(4))


def _write_f32(blocks: Floats) -> Bytes:
    return np.ascontiguousarray(blocks, dtype="<f4").view(np.uint8)


def _write_f16(blocks: Floats) -> Bytes:
    return np.ascontiguousarray(blocks.astype("<f2")).view(np.uint8)


def _write_q8_0(blocks: Floats) -> Bytes:
    """d = max |x| / 127; q = x / d, halves rounded away from zero as C's roundf does."""
    scale_n1 = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale_n1)
    size = np.abs(scaled)
    whole = np.floor(size)
    rounded = whole + np.floor(np.float32(2) * (size - whole))
    q_ni = np.copysign(rounded, scaled).astype(np.int8).view(np.uint8)
    return np.concatenate([_bytes_of_half(scale_n1), q_ni], axis=1)


def _write_q4_0(blocks: Floats) -> Bytes:
    """d = x / -8 for the x of largest size (its sign kept: -8 has no positive partner); q = round(x / d) + 8.

    The rounding is done in float64, where the reference's fused multiply-add cannot differ from it.
    """
    place_n1 = np.abs(blocks).argmax(axis=1, keepdims=True)
    scale_n1 = np.take_along_axis(blocks, place_n1, axis=1) / np.float32(-8)
    scaled = blocks.astype(np.float64) * _inverse(scale_n1).astype(np.float64) + 8.5
    q_ni = np.trunc(scaled).astype(np.float32).astype(np.uint8).clip(0, 15)
    return np.concatenate([_bytes_of_half(scale_n1), _packed(q_ni)], axis=1)


def _write_q4_1(blocks: Floats) -> Bytes:
    """m = min x, d = (max x - m) / 15; q = round((x - m) / d)."""
    low_n1, high_n1 = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    scale_n1 = (high_n1 - low_n1) / np.float32(15)
    scaled = (blocks - low_n1) * _inverse(scale_n1) + np.float32(0.5)
    q_ni = np.trunc(scaled).astype(np.uint8).clip(0, 15)
    return np.concatenate([_bytes_of_half(scale_n1), _bytes_of_half(low_n1), _packed(q_ni)], axis=1)


_WRITE: dict[str, Callable[[Floats], Bytes]] = {
    "F32": _write_f32,
    "F16": _write_f16,
    "Q8_0": _write_q8_0,
    "Q4_0": _write_q4_0,
    "Q4_1": _write_q4_1,
}
WRITTEN_TYPES = tuple(TENSOR_TYPES[name] for name in _WRITE)
