"""What a GGUF file is made of: constants, tensor types, and the bounds that our reader holds every file to.

    "GGUF" | version | number of tensors | number of keys | keys and values | tensor descriptions | padding | data

All numbers are little-endian. Source: the format's own description, ggml/docs/gguf.md (versions 2 and 3, which differ
in the byte order that they allow; big-endian files are refused here). Version 1 had other widths and is refused too.
"""

from dataclasses import dataclass

MAGIC = b"GGUF"
VERSIONS = (2, 3)
WRITTEN_VERSION = 3
DEFAULT_ALIGNMENT = 32
HEADER_BYTES = 24
QUANTIZATION_VERSION = 2

# Bounds beyond what the file's own size allows. A vocabulary of 262,144 tokens with its merges has 780,000 strings; a
# short string takes 64 bytes in Python, which is why their number bounds the memory that a small file can ask for.
MAX_KEYS = 4096
MAX_TENSORS = 1 << 14
MAX_STRINGS = 800_000
MAX_NAME_BYTES = 1024
MAX_ALIGNMENT = 1 << 16
MAX_DIMENSIONS = 4

# The types of metadata values, by number.
UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
# How `struct` and NumPy spell those of fixed size.
SCALARS: dict[int, str] = {
    UINT8: "B",
    INT8: "b",
    UINT16: "H",
    INT16: "h",
    UINT32: "I",
    INT32: "i",
    FLOAT32: "f",
    BOOL: "?",
    UINT64: "Q",
    INT64: "q",
    FLOAT64: "d",
}


@dataclass(frozen=True)
class TensorType:
    """How numbers are stored: `block` of them in `size` bytes. `file_type` is general.file_type of such a file."""

    name: str
    number: int
    block: int
    size: int
    file_type: int

    def num_bytes(self, num_elements: int) -> int:
        """Bytes of so many elements, which must be whole blocks."""
        return num_elements // self.block * self.size


TENSOR_TYPES: dict[str, TensorType] = {
    kind.name: kind
    for kind in (
        TensorType("F32", 0, 1, 4, 0),
        TensorType("F16", 1, 1, 2, 1),
        TensorType("Q4_0", 2, 32, 18, 2),
        TensorType("Q4_1", 3, 32, 20, 3),
        TensorType("Q8_0", 8, 32, 34, 7),
        TensorType("Q4_K", 12, 256, 144, 15),
        TensorType("Q5_K", 13, 256, 176, 17),
        TensorType("Q6_K", 14, 256, 210, 18),
        TensorType("BF16", 30, 1, 2, 32),
    )
}
TYPE_BY_NUMBER: dict[int, TensorType] = {kind.number: kind for kind in TENSOR_TYPES.values()}
# Types of ggml that are not read here, so that a file that has them can be refused by name.
OTHER_TYPES: dict[int, str] = {
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
