"""A written GGUF file through somebody else's reader: the `gguf` package that llama.cpp's makers publish.

Our reader would pass an error that it shares with our writer. Here the package finds the tensors in the file and makes
numbers of their bytes; each must be, bit for bit, what our reader makes of it. Only for files that we wrote ourselves:
a hostile file can hang the package (llama.cpp#27188). Which tensor is which stays with `names`, since the package has
no model; tests and benchmarks compare that with transformers and llama.cpp.
"""

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from llm_journey.checkpoint.gguf import names
from llm_journey.checkpoint.gguf.model import shapes_of
from llm_journey.checkpoint.gguf.quants import Floats
from llm_journey.checkpoint.gguf.reader import GgufFile
from llm_journey.core.errors import JourneyError


class IndependentReading(NamedTuple):
    """What the package found. read_by: its name and version; tensors: how many were equal; state: our parameters."""

    read_by: str
    tensors: int
    state: dict[str, Tensor]


def read_independently(path: Path) -> IndependentReading | None:
    """The parameters of a file that we wrote, read by the `gguf` package; None where that is not installed.

    Raises JourneyError naming a tensor that the package misses, has too many of, or reads otherwise than we do.
    """
    if importlib.util.find_spec("gguf") is None:
        return None
    file = GgufFile(path)
    found = _tensors(path)
    differing = sorted(found.keys() ^ file.tensors.keys())
    if differing:
        raise JourneyError(f"{path.name}: the gguf package finds other tensors: {', '.join(differing[:8])}")

    def numbers(name: str) -> Floats:
        # The reader keeps the file's order of dimensions, which is the reverse of NumPy's.
        theirs = _numbers(found[name]).reshape([int(size) for size in found[name].shape[::-1]])
        if not np.array_equal(theirs, file.numbers(name)):
            raise JourneyError(f"{path.name}: the gguf package reads other numbers of tensor {name} than we do")
        return theirs

    kind, config = names.read_config(file.metadata, shapes_of(file), str(path))
    state = {name: torch.from_numpy(value) for name, value in names.read_tensors(kind, config, numbers)}
    return IndependentReading(f"gguf {importlib.metadata.version('gguf')}", len(found), state)


def _tensors(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    try:
        return {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    except (ValueError, KeyError, IndexError) as error:
        raise JourneyError(f"{path.name}: the gguf package cannot read it ({error})") from None


def _numbers(tensor: Any) -> Floats:
    from gguf import quants

    return np.array(quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
