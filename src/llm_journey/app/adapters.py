"""Adapters: what a folder holds, and an adapted model written as a model of its own, proven equal."""

import copy
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_journey.app.language_model import open_model
from llm_journey.core import files
from llm_journey.core.errors import BadInputError, JourneyError

CERTIFICATE = "certificate.json"
# Float32 sums taken in another order, through every layer.
_BOUND = 1e-3
_KEPT = ("LICENSE", "NOTICE")
_VIRTUAL = {"PROMPT_TUNING": "prompt", "PREFIX_TUNING": "prefix"}


@dataclass(frozen=True)
class AdapterFacts:
    """One adapter's folder, in short. rank, modules: of low-rank ones; a prompt or a prefix has None and 0."""

    folder: Path
    base: str
    kind: str
    rank: int | None
    parameters: int
    modules: int

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "folder": str(self.folder)}


def list_adapters(place: Path) -> list[AdapterFacts]:
    """The adapters in a folder and the folders below it, two levels deep, by their path.

    Raises BadInputError where there is no such folder, or one of its adapters is damaged.
    """
    if not place.is_dir():
        raise BadInputError(f"{place}: no such folder")
    return [_facts_of(folder) for folder in _adapter_folders(place)]


def _facts_of(folder: Path) -> AdapterFacts:
    from llm_journey.checkpoint import tensor_files
    from llm_journey.finetuning.peft_format import CONFIG, WEIGHTS, read_facts

    values = tensor_files.read_json(folder / CONFIG)
    kind = _VIRTUAL.get(str(values.get("peft_type")))
    if kind is None:
        facts = read_facts(folder)
        return AdapterFacts(folder, facts.base, facts.kind, facts.config.rank, facts.num_parameters, facts.num_modules)
    shapes, base = tensor_files.read_shapes(folder / WEIGHTS), values.get("base_model_name_or_path")
    number = sum(math.prod(shape) for shape in shapes.values())
    return AdapterFacts(folder, base if isinstance(base, str) else "", kind, None, number, 0)


def find_adapter(name_or_path: str) -> Path:
    """An adapter's folder: the path itself, or what a run trained. Raises BadInputError where there is none."""
    from llm_journey.app.runs import find_run, has_run
    from llm_journey.finetuning.peft_format import is_adapter
    from llm_journey.training.run_folder import RunFolder

    path = Path(name_or_path).expanduser()
    if not path.exists() and has_run(name_or_path):
        path = RunFolder.open(find_run(name_or_path).directory).adapter
        if not is_adapter(path):
            raise BadInputError(f"run {name_or_path!r} has trained no adapter, or is not finished")
    if not is_adapter(path):
        raise BadInputError(f"{path}: no adapter there (adapter_config.json), and no run of that name")
    return path


def _adapter_folders(place: Path, depth: int = 2) -> Iterator[Path]:
    from llm_journey.finetuning.peft_format import is_adapter

    if is_adapter(place):
        yield place
    elif depth:
        for folder in sorted(path for path in place.iterdir() if path.is_dir() and not path.is_symlink()):
            yield from _adapter_folders(folder, depth - 1)


@dataclass(frozen=True)
class MergedFolder:
    """A finished folder, and what its certificate says."""

    folder: Path
    certificate: dict[str, Any]

    def rows(self) -> list[tuple[str, str]]:
        """(label, value) rows that describe it."""
        return [
            ("Written", str(self.folder)),
            ("Adapter", f"{self.certificate['kind']} of {self.certificate['modules']} matrices"),
            ("Largest logit difference", f"{self.certificate['largest_logit_difference']:.2e} to the adapted model"),
            ("Changed by the adapter", f"{self.certificate['largest_change']:.2e} at most, of the model's own logits"),
        ]

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return {"folder": str(self.folder), "certificate": self.certificate}


def merge_adapter(name_or_path: str, adapter: Path, out: Path) -> MergedFolder:
    """Write a model with an adapter in its weights into the new folder `out`; every other command takes it.

    What was written is opened again and compared with the model and its adapter side by side, on fixed texts. Raises
    BadInputError for an adapter that does not fit and for quantized models, JourneyError where the two differ
    (unsloth#5410: a merged model that spoke garbage): nothing is left then.
    """
    from llm_journey.app.certificates import compare, made
    from llm_journey.checkpoint import tensor_files
    from llm_journey.checkpoint.model_folder import load_decoder, write_model_files
    from llm_journey.finetuning.lora import adapted_layers, disabled, remove
    from llm_journey.finetuning.peft_format import kind_of, load_adapter
    from llm_journey.quantization.layers import is_quantized

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInputError(f"{out}: is not empty; choose a new folder")
    source = open_model(name_or_path, precision="float32")
    if is_quantized(source.decoder):
        raise BadInputError(f"{name_or_path}: is quantized; merge into the model that it was made from, then quantize")
    config = load_adapter(source.decoder, adapter)
    facts: dict[str, Any] = {"model": source.name, "adapter": adapter.name, "kind": kind_of(config)}
    facts |= {"rank": config.rank}
    facts |= {"modules": len(list(adapted_layers(source.decoder)))}
    generation = dict(source.defaults) | ({"eos_token_id": sorted(source.stop_ids)} if source.stop_ids else {})
    with tensor_files.writing(out), files.new_directory(out) as temporary:
        merged = copy.deepcopy(source.decoder)
        remove(merged, merged=True)
        write_model_files(merged, temporary, tokenizer=source.tokenizer, generation=generation)
        for name in _KEPT:
            if (source.directory / name).is_file():
                shutil.copyfile(source.directory / name, temporary / name)
        written, _ = load_decoder(temporary)
        agreement = compare(source, source.decoder, written)
        if not agreement.largest_logit_difference <= _BOUND:  # NaN fails too
            raise JourneyError(
                f"the merged model's logits differ by {agreement.largest_logit_difference:.2e} from the adapted one's, "
                f"over the bound {_BOUND:.0e}; nothing is written"
            )
        with disabled(source.decoder):
            change = compare(source, source.decoder, written).largest_logit_difference
        facts |= {"largest_change": change}
        certificate = facts | agreement.describe() | made({"largest_logit_difference": _BOUND})
        files.write_json(temporary / CERTIFICATE, certificate)
    return MergedFolder(out, certificate)
