"""Functions compiled to machine code by AOTInductor: made, kept as files, called without holding Python's lock.

PyTorch's own loader (`torch._inductor.aoti_load_package`, as of 2.13) holds the lock while the code runs: a call of
27 ms keeps every other thread waiting for 27 ms. Here the code is called through its C interface
(torch/csrc/inductor/aoti_runtime/interface.h), once for all layers.
"""

import contextlib
import ctypes
import functools
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from ctypes import byref, c_char_p, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_journey.core.errors import JourneyError

_LOOP_SOURCE, _LOOP = Path(__file__).with_name("in_turn.cpp"), "in_turn.so"


def find_compiler() -> str | None:
    """The C++ compiler of this machine, if there is one."""
    wanted = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((found for name in wanted if name and (found := shutil.which(name))), None)


def compile_to(path: Path, module: nn.Module, example: tuple[Any, ...], shapes: Any) -> None:
    """Write the machine code of `module`, a function of tensors (the first as its result, a tuple of them last).

    example, shapes: inputs to trace it with, and which of their lengths may change, as torch.export takes them. Raises
    JourneyError where a compiler is missing or fails.
    """
    compiler = find_compiler()
    if compiler is None:
        raise JourneyError("compiling needs a C++ compiler (g++ or clang++), and none was found; go on without it")
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.utils import fresh_cache

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compile.", suffix=".tmp", dir=path.parent) as folder, _quietly():
        file, loop = Path(folder) / "step.pt2", Path(folder) / _LOOP
        # Any number of threads: the loops ask OpenMP, and are not written for the number of this moment.
        options = {"cpp.threads": -1, "cpp.cxx": (compiler,)}
        try:
            with torch.no_grad(), fresh_cache(dir=folder):
                program = torch.export.export(module, example, dynamic_shapes=shapes)
                aoti_compile_and_package(program, package_path=str(file), inductor_configs=options)
            command = [compiler, "-shared", "-fPIC", "-O2", "-std=c++17", str(_LOOP_SOURCE), "-o", str(loop)]
            subprocess.run(command, check=True, capture_output=True)
        except Exception as error:  # whatever a compiler may say
            reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            raise JourneyError(f"the decoding step could not be compiled: {reason}") from error
        with zipfile.ZipFile(file, "a") as package:
            package.write(loop, _LOOP)
        file.replace(path)


class Function:
    """What `compile_to` has written."""

    def __init__(self, path: Path) -> None:
        """Raises JourneyError where the file is damaged, and removes it then; and where it cannot be loaded here (no
        folder to unpack it to, one whose files must not be run)."""
        beside = path.parent if os.access(path.parent, os.W_OK) else None
        try:
            with tempfile.TemporaryDirectory(prefix=".load.", suffix=".tmp", dir=beside) as folder:
                with zipfile.ZipFile(path) as package:
                    (code,) = (name for name in package.namelist() if name.endswith(".wrapper.so"))
                    files = [package.extract(name, folder) for name in (code, _LOOP)]
                self._code, self._loop = map(ctypes.CDLL, files)  # what is loaded stays when its file is gone
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise JourneyError(f"{path} is damaged, and was removed; compile again") from error
        except OSError as error:
            raise JourneyError(f"compiled code cannot be loaded: {error}; --no-compile goes on without it") from error
        self._container = c_void_p()
        created = self._code.AOTInductorModelContainerCreateWithDevice(
            byref(self._container), c_size_t(1), c_char_p(b"cpu"), c_char_p(None)
        )
        if created != 0:
            raise JourneyError(f"{path} is of another PyTorch: `journey clean --only compiled`, and compile again")
        # Not at the process's end, when a thread may still be inside.
        weakref.finalize(self, self._code.AOTInductorModelContainerDelete, self._container).atexit = False

    def in_turn(self, own: Sequence[Sequence[Tensor]]) -> "InTurn":
        """It, called once with each of these lists of tensors."""
        return InTurn(self, own)

    def run(self, x: Tensor, shared: "_Handles", own: "_Handles", times: int) -> Tensor:
        """See in_turn.cpp."""
        (taken,) = _as_pointers([x])
        place = c_void_p(taken)
        failed = self._loop.run_in_turn(
            self._code.AOTInductorModelContainerRun,
            self._container,
            _torch_library().aoti_torch_new_tensor_handle,
            _torch_library().aoti_torch_delete_tensor_object,
            byref(place),
            shared.array,
            c_size_t(len(shared.array)),
            own.array,
            c_size_t(len(own.array) // times),
            c_size_t(times),
        )
        if failed:
            raise JourneyError("a compiled decoding step failed; --no-compile goes on without")
        # PyTorch 2.13's function for a single one gives a reference too many, and its tensor is never freed.
        found: list[Tensor] = _aoti.alloc_tensors_by_stealing_from_void_ptrs([_new_capsule(place, None, None)])
        return found[0]


class InTurn:
    """x -> f(... f(f(x, *shared, *own[0]), *shared, *own[1]) ...)."""

    def __init__(self, function: Function, own: Sequence[Sequence[Tensor]]) -> None:
        self._function, self._times = function, len(own)
        self._own = _Handles([tensor for each in own for tensor in each])

    def __call__(self, x: Tensor, *shared: Tensor) -> Tensor:
        """Raises JourneyError where the code fails, which it says on standard error."""
        return self._function.run(x, _Handles(shared), self._own, self._times)


class _Handles:
    """Tensors as C takes them, for as long as this lives."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.array = (c_void_p * len(tensors))(*_as_pointers(tensors))

        self._free = _torch_library().aoti_torch_delete_tensor_object
        self._free.argtypes = [c_void_p]

    def __del__(self) -> None:
        for pointer in self.array:
            self._free(pointer)


def _as_pointers(tensors: Sequence[Tensor]) -> list[int]:
    return [_get_pointer(capsule, None) for capsule in _aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))]


@functools.cache
def _torch_library() -> ctypes.PyDLL:
    """PyTorch's C functions; they are short, and called with Python's lock held."""
    suffix = "dylib" if sys.platform == "darwin" else "so"
    return ctypes.PyDLL(str(Path(torch.__file__).with_name("lib") / f"libtorch_cpu.{suffix}"))


_aoti: Any = torch._C._aoti
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = c_void_p, [ctypes.py_object, c_char_p]
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [c_void_p, c_char_p, c_void_p]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The compiler's notes are about its own insides."""
    import warnings

    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
