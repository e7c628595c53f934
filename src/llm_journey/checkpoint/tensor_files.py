"""Tensors and JSON on disk: safetensors files written and read, every failure turned into one line that names the file.

The only format of tensors here: a pickle runs code when it is opened, so none is ever opened (`refuse_pickles`). The
safetensors library checks the header's lengths and offsets against the file's size before anything is allocated.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.core.json_text import parse_json

Shape = tuple[int, ...]
MAX_JSON_BYTES = 1 << 20  # of a config: its values become Python objects, which take many times its bytes
MAX_STATE_BYTES = 64 << 20  # of what this package writes about its own runs
# A safetensors header of the most tensors, and of names as long as they come.
_MAX_HEADER_BYTES, MAX_TENSORS = 4 << 20, 1 << 14
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` (any dtype and device) to a safetensors file; each is stored whole, views are copied first."""
    stored: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu").contiguous()
        if value.numel() and value.untyped_storage().data_ptr() in storages:
            value = value.clone()
        storages.add(value.untyped_storage().data_ptr())
        stored[name] = value
    try:
        save_file(stored, path, metadata={"format": "pt"})
        path.chmod(0o644)  # the library makes files that only their owner can read
    except SafetensorError as error:
        raise OSError(f"{path.name}: {error}") from None


def read_shapes(path: Path) -> dict[str, Shape]:
    """The name and shape of each tensor in a safetensors file, from its header alone."""
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU, in the dtypes they were stored in."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        refuse_pickles(path.parent)
        if path.with_name(f"{path.name}.index.json").is_file():
            raise BadInputError(f"{path.parent}: its weights are split into several files; save them again as one")
        raise BadInputError(f"{path}: no such file; a model folder holds its weights as {path.name}")
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInputError(f"{path}: not a whole safetensors file ({reason}); fetch or save it again") from None


def _check_header(path: Path) -> None:
    """Raise ValueError where the header is out of proportion, or names a tensor twice (safetensors takes one)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_MAX_HEADER_BYTES, path.stat().st_size):
            raise ValueError(f"its header claims {length} bytes; at most {_MAX_HEADER_BYTES} and its size can be")
        names = parse_json(file.read(length))
    if len(names) > MAX_TENSORS:
        raise ValueError(f"{len(names)} tensors; at most {MAX_TENSORS} can be")


def refuse_pickles(found: Path) -> None:
    """Raise BadInputError naming a pickled weights file: `found` itself, or one in the folder `found`."""
    for path in sorted(found.iterdir()) if found.is_dir() else (found,) if found.is_file() else ():
        if path.suffix in _PICKLES:
            raise BadInputError(
                f"{path}: a pickle, which runs code when it is opened; convert it to safetensors "
                "where you trust it, then use that folder"
            )


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file of at most `most` bytes.

    Raises BadInputError naming the file when it is missing, too large or no object.
    """
    try:
        if path.stat().st_size > most:
            raise BadInputError(f"{path}: larger than {most} bytes")
        value = parse_json(path.read_bytes(), numbers_only=True)
    except FileNotFoundError:
        raise BadInputError(f"{path}: no such file") from None
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: not valid JSON ({str(error) or type(error).__name__})") from None
    if not isinstance(value, dict):
        raise BadInputError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn an operating system's error while `directory` is written (a full disk) into one line that names it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise JourneyError(
            f"{directory}: could not be written ({reason}); nothing half-written is left: "
            "free some space or choose another folder, then save again"
        ) from error


def storage_dtype(tensors: Mapping[str, Tensor]) -> str:
    """The name of the floating dtype that most numbers of `tensors` have, as config.json writes it ("float32")."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return str(max(counts, key=lambda dtype: counts[dtype])).removeprefix("torch.")
