"""ONNX files: written, opened by onnxruntime, and made int8 by onnxruntime's own dynamic quantization.

The packages onnx and onnxruntime are an extra (`llm-journey[onnx]`), asked for by `require_onnx`.

Legend: B batch, T new positions, P past ones, S = P + T, K key-value heads, E head width, V vocabulary.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llm_journey.core.errors import JourneyError

if TYPE_CHECKING:
    import onnx

Floats = npt.NDArray[np.float32]
_ONE_FILE = 32 << 20  # up to so many bytes the tensors lie in the graph's file; beyond, beside it, to be mapped


def require_onnx() -> None:
    """Raises JourneyError with the command that installs them, where onnx and onnxruntime are not here."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise JourneyError(f"{' and '.join(missing)} not installed; pip install 'llm-journey[onnx]'")


def save_onnx(model: "onnx.ModelProto", path: Path) -> None:
    """Write a graph to `path`, its tensors to `path`.data where they are large. `model` is used up by it."""
    import onnx

    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _ONE_FILE
    options: dict[str, Any] = {"save_as_external_data": True, "location": f"{path.name}.data"} if large else {}
    onnx.save(model, path, **options)
    for file in files_of(path):
        file.chmod(0o644)  # the library makes files that only their owner can read


def files_of(path: Path) -> list[Path]:
    """The file of a graph, and that of its tensors where there is one."""
    data = path.with_name(f"{path.name}.data")
    return [path, data] if data.is_file() else [path]


def quantize_dynamically(source: Path, path: Path) -> None:
    """int8 by onnxruntime: weights by output channel, activations by one scale for a whole tensor, found as it runs.

    Where a few activations are a hundred times the others, as in many decoders, that one scale leaves the others
    nothing (Dettmers et al. 2022, section 4): see the certificate.
    """
    import logging

    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped, unused-ignore]

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises to prepare graphs that other exporters made
    large = source.with_name(f"{source.name}.data").is_file()
    try:
        quantize_dynamic(
            source,
            path,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul"],
            use_external_data_format=large,
        )
    finally:
        logger.setLevel(level)
    for file in files_of(path):
        file.chmod(0o644)


def open_session(path: Path, threads: int = 0, *, optimize: bool = True) -> Any:
    """onnxruntime's session of a file, on the CPU. threads: 0 takes all cores."""
    require_onnx()
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OnnxDecoder:
    """A decoder's graph with the keys and values of what it has read; `reset` forgets them."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        self.session = open_session(path, threads)
        inputs = {item.name: item.shape for item in self.session.get_inputs()}
        self._past = [name for name in inputs if name.startswith("past_key_values.")]
        self._shape = inputs[self._past[0]]
        self._new_alone = any(item.name.startswith("new.") for item in self.session.get_outputs())
        self.reset()

    def reset(self, batch: int = 1) -> None:
        """Begin anew, with `batch` rows."""
        self.length = 0
        empty = np.zeros([{"batch": batch, "past_length": 0}.get(size, size) for size in self._shape], np.float32)
        self._values: dict[str, Floats] = dict.fromkeys(self._past, empty)

    def read(self, ids_bt: npt.NDArray[np.int64], mask_bs: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Logits (B, T, V), or (B, 1, V) of a graph for answering, of ids after those read before.

        mask_bs: False at padding, over all positions so far and the new ones.
        """
        batch, length = ids_bt.shape
        stop = self.length + length
        mask = np.ones((batch, stop), np.int64) if mask_bs is None else mask_bs.astype(np.int64)
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, self.length :]
        feeds = {"input_ids": ids_bt, "attention_mask": mask, "position_ids": positions}
        logits, *present = self.session.run(None, feeds | self._values)
        if self._new_alone:
            axis, before = self._shape.index("past_length"), self._values.values()
            present = [np.concatenate(pair, axis) for pair in zip(before, present, strict=True)]
        self._values, self.length = dict(zip(self._past, present, strict=True)), stop
        result: Floats = logits
        return result

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """`count` tokens after `ids`, the likeliest each time."""
        self.reset()
        new: list[int] = []
        logits = self.read(np.array([ids], np.int64))
        while True:
            new.append(int(logits[0, -1].argmax()))
            if len(new) == count:
                return new
            logits = self.read(np.array([new[-1:]], np.int64))
