"""Models in: a GGUF file, a Hugging Face folder or a hub id becomes a model folder; and what a model is made of.

A folder's files are taken over byte for byte once they have been read and found whole; a GGUF file is written out in
float32. Nothing of a source is run, and no pickle is opened.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_journey.app.find_models import BARE_HUB_ID, GGUF_SUFFIX, KNOWN_FILES, fetch_from_hub, find_model
from llm_journey.core import files
from llm_journey.core.errors import BadInputError, JourneyError

_MOST_NAMED = 8


@dataclass(frozen=True)
class ModelFacts:
    """What a model is made of, without opening its text side. types: how many tensors are stored as what."""

    path: Path
    config: Mapping[str, Any]
    parameters: int
    types: Mapping[str, int]
    num_bytes: int
    certificate: Mapping[str, Any] | None

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) rows that describe it."""
        stored = ", ".join(f"{count} x {name}" for name, count in self.types.items())
        rows = [("Lies at", str(self.path)), ("Parameters", f"{self.parameters:,}")]
        rows += [("Stored as", f"{stored}; {self.num_bytes / 1e6:,.1f} MB")]
        rows += [(key, str(value)) for key, value in self.config.items()]
        if self.certificate is not None:
            rows += [("Certificate", str(self.certificate.get("compared")))]
        return rows

    def describe(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return {
            "path": str(self.path),
            "parameters": self.parameters,
            "types": dict(self.types),
            "bytes": self.num_bytes,
            "config": dict(self.config),
            "certificate": self.certificate,
        }


def import_model(source: str, target: Path) -> Path:
    """Bring `source` (a GGUF file, a folder, a catalog name, a hub id) into the new model folder `target`.

    Raises BadInputError naming what is wrong with the source: a tensor missing or left over, a shape, a pickle.
    """
    from llm_journey.checkpoint import tensor_files

    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInputError(f"{target}: is not empty; choose a new folder")
    path = _find_or_fetch(source)
    with tensor_files.writing(target), files.new_directory(target) as temporary:
        write_model_folder(path, temporary)
    return target


def write_model_folder(source: Path, folder: Path) -> None:
    """The files of `source`, a model folder or a GGUF file, into a folder that exists, once it is found whole."""
    from llm_journey.checkpoint import model_folder

    if source.suffix == GGUF_SUFFIX:
        from llm_journey.checkpoint.gguf.model import build_decoder, read_gguf

        found = read_gguf(source)
        decoder = build_decoder(found)
        model_folder.write_model_files(decoder, folder, tokenizer=found.tokenizer, generation=found.generation)
        return
    if is_quantized_folder(source):
        _write_dequantized(source, folder)
        return
    model_folder.load_fitting_tokenizer(source, model_folder.load_state(source)[0])
    for name in KNOWN_FILES:
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    _say_what_stays(source)


def is_quantized_folder(source: Path) -> bool:
    """Whether a model folder holds codes (journey quantize) in place of numbers."""
    from llm_journey.checkpoint import model_folder, quantized, tensor_files

    return quantized.KEY in tensor_files.read_json(source / model_folder.CONFIG)


def _write_dequantized(source: Path, folder: Path) -> None:
    """A quantized folder as a plain one, in float32: no other program reads its codes."""
    from llm_journey.checkpoint import model_folder
    from llm_journey.checkpoint.tensor_files import read_json
    from llm_journey.core.console import messages
    from llm_journey.quantization.layers import dequantize_model
    from llm_journey.tokenizer import Tokenizer

    model, tokenizer = model_folder.load_model(source)
    dequantize_model(model)
    path = source / model_folder.GENERATION
    model_folder.write_model_files(
        model,
        folder,
        tokenizer=tokenizer if isinstance(tokenizer, Tokenizer) else None,
        generation=read_json(path) if path.is_file() else None,
    )
    messages().print(f"{source}: quantized; written out in float32, as its codes say", markup=False, soft_wrap=True)


def _say_what_stays(source: Path) -> None:
    """What a source has that a model folder has no use for is left behind, and said on standard error."""
    from llm_journey.core.console import messages

    left = sorted(
        path.relative_to(source).as_posix() + "/" * path.is_dir()
        for path in source.iterdir()
        if path.name not in {name.partition("/")[0] for name in KNOWN_FILES} and not path.name.startswith(".")
    )
    if left:
        named = ", ".join(left[:_MOST_NAMED]) + (f" and {len(left) - _MOST_NAMED} more" if left[_MOST_NAMED:] else "")
        messages().print(f"{source}: left behind, no part of a model folder: {named}", markup=False, soft_wrap=True)


def describe_model(name_or_path: str) -> ModelFacts:
    """What a model is made of: its configuration and its tensors, every name and shape checked."""
    from llm_journey.core.config import dump

    path = find_model(name_or_path)
    if path.suffix == GGUF_SUFFIX:
        return _describe_gguf(path)
    from llm_journey.checkpoint.model_folder import load_stored
    from llm_journey.model.cost import count_parameters

    config, tensors, scheme = load_stored(path)
    types = _count(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    weights, shown = path / "model.safetensors", dump(config)
    parameters = sum(tensor.numel() for tensor in tensors.values())
    if scheme is not None:
        parameters, shown = count_parameters(config).total, {"quantized": scheme.describe(), **shown}
    return ModelFacts(path, shown, parameters, types, weights.stat().st_size, _certificate_of(path))


def _describe_gguf(path: Path) -> ModelFacts:
    import math

    from llm_journey.checkpoint.gguf import names
    from llm_journey.checkpoint.gguf.model import shapes_of
    from llm_journey.checkpoint.gguf.reader import GgufFile
    from llm_journey.core.config import dump

    file = GgufFile(path)
    _, config = names.read_config(file.metadata, shapes_of(file), str(path))
    types = _count(facts.kind.name for facts in file.tensors.values())
    parameters = sum(math.prod(facts.shape) for facts in file.tensors.values())
    return ModelFacts(path, dump(config), parameters, types, path.stat().st_size, _certificate_of(path.parent))


def _count(names: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _certificate_of(folder: Path) -> dict[str, Any] | None:
    from llm_journey.checkpoint.tensor_files import read_json

    path = folder / "certificate.json"
    return read_json(path) if path.is_file() else None


def _find_or_fetch(source: str) -> Path:
    """A model by any name; one that is here under none may be an old hub id, which has no slash."""
    try:
        return find_model(source)
    except BadInputError as error:
        if not BARE_HUB_ID.fullmatch(source) or Path(source).exists():
            raise
        try:
            return fetch_from_hub(source)
        except JourneyError as failure:
            raise BadInputError(f"{error}; and as an id of the hub, {failure}") from None
