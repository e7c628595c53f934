"""Adapters as files in PEFT's own layout, so that peft opens ours and we open peft's.

    adapter_config.json         what LoraConfig says, and the model that the adapter belongs to
    adapter_model.safetensors   base_model.model.<module>.lora_A.weight (R, K), lora_B.weight (N, R),
                                lora_magnitude_vector (N,)
                                of an embedding lora_embedding_A (R, V), lora_embedding_B (D, R)

<module> is Hugging Face's name where its llama or qwen3 families fit the model, else ours. GPT-2's family joins query,
key and value in one matrix there: an adapter of three is none of that, and is refused. Files from outside are read
within bounds, and compared with the model's shapes before a layer is made.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import regex
import torch
from torch import Tensor

from llm_journey.checkpoint import families, tensor_files
from llm_journey.checkpoint.families.llama import huggingface_name
from llm_journey.checkpoint.tensor_files import Shape
from llm_journey.core.config import validate
from llm_journey.core.errors import BadInputError
from llm_journey.core.files import new_directory, write_json
from llm_journey.finetuning.config import LoraConfig
from llm_journey.finetuning.lora import (
    LoraEmbedding,
    adapted_layers,
    adapter_at,
    base_shape,
    base_weight,
    inject,
    matching,
)
from llm_journey.model.config import TransformerConfig
from llm_journey.model.transformer import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_MOST_RANK = 4096
_TENSOR = regex.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(\.weight)?"
)
# A matrix of the model itself, which PEFT adds where it adapted the embedding.
_WHOLE = regex.compile(r"base_model\.model\.(?P<module>.+?)(\.base_layer)?\.weight")
_MAX_PATTERNS, _PATTERN_SECONDS = 1000, 0.1
_KEYS = {"lora_A": "a_rk", "lora_B": "b_nr", "lora_magnitude_vector": "magnitude_n"}
_KEYS |= {"lora_embedding_A": "b_nr", "lora_embedding_B": "a_rk"}
# Settings of PEFT that change what an adapter computes; with any other value than these it is refused.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False, None),
    "megatron_config": (None,),
    "arrow_config": (None,),
    "use_bdlora": (False, None),
}
# Ways to begin that change the base's own matrices, which the files do not hold; after any other the base is the base.
_OTHER_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")


@dataclass(frozen=True)
class Facts:
    """What a folder says of its adapter, whatever model it fits."""

    base: str
    config: LoraConfig
    num_modules: int
    num_parameters: int

    @property
    def kind(self) -> str:
        """In a word."""
        return kind_of(self.config)


def kind_of(config: LoraConfig) -> str:
    """LoRA, rsLoRA, DoRA or rsDoRA."""
    return f"{'rs' if config.rslora else ''}{'DoRA' if config.dora else 'LoRA'}"


def read_facts(directory: Path) -> Facts:
    """The facts of an adapter's folder; of its tensors the header alone is read.

    Raises BadInputError naming the file.
    """
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise BadInputError(f"{directory / name}: no such regular file")
    values, shapes = tensor_files.read_json(directory / CONFIG), tensor_files.read_shapes(directory / WEIGHTS)
    base = values.get("base_model_name_or_path")
    if values.get("peft_type") != "LORA":
        kind = str(values.get("peft_type"))[:80]
        raise BadInputError(f"{directory / CONFIG}: key 'peft_type' = {kind!r}: only LORA is read")
    parts = [stored for stored in shapes if _TENSOR.fullmatch(stored)]
    factors = [stored for stored in parts if stored.endswith(("lora_A.weight", "lora_embedding_A"))]
    settings = _settings(values, values.get("r", 8), values.get("lora_alpha", 8), ["*"])
    config = validate(LoraConfig, settings, str(directory / CONFIG))
    number = sum(math.prod(shapes[stored]) for stored in parts)
    return Facts(base if isinstance(base, str) else "", config, len(factors), number)


def read_base(directory: Path) -> str:
    """What model the adapter in a folder says that it belongs to; empty where it says nothing."""
    base = tensor_files.read_json(directory / CONFIG).get("base_model_name_or_path")
    return base if isinstance(base, str) else ""


def is_adapter(directory: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (directory / CONFIG).is_file()


def save_adapter(model: Transformer, directory: Path, config: LoraConfig, *, base: str, name: str = "default") -> None:
    """Write one adapter of a model as a folder, atomically. base: the model's name, for whoever opens it.

    Raises BadInputError where the model has no such adapter, or its family's layout has no place for it.
    """
    with tensor_files.writing(directory), new_directory(directory) as temporary:
        write_adapter_files(model, temporary, config, base=base, name=name)


def write_adapter_files(
    model: Transformer, directory: Path, config: LoraConfig, *, base: str, name: str = "default"
) -> None:
    """The files of `save_adapter` into a directory that exists."""
    tensors: dict[str, Tensor] = {}
    modules = []
    for path, layer in adapted_layers(model):
        if name not in layer.adapters:
            continue
        state = layer.adapters[name].state_dict()
        module = module_name(model.config, path)
        modules.append(module)
        if isinstance(layer, LoraEmbedding):
            tensors[f"{_PREFIX}{module}.lora_embedding_A"] = state["b_nr"].T.contiguous()
            tensors[f"{_PREFIX}{module}.lora_embedding_B"] = state["a_rk"].T.contiguous()
        else:
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = state["a_rk"]
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = state["b_nr"]
            if "magnitude_n" in state:
                tensors[f"{_PREFIX}{module}.lora_magnitude_vector"] = state["magnitude_n"]
    if not tensors:
        raise BadInputError(f"the model has no adapter called {name!r}")
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        # A pattern of PEFT: whole names, so that exactly these modules are meant.
        "target_modules": sorted(modules),
    }
    write_json(directory / CONFIG, values)
    tensor_files.write_tensors(directory / WEIGHTS, tensors)


def load_adapter(model: Transformer, directory: Path, name: str = "default") -> LoraConfig:
    """Put a folder's adapter, ours or PEFT's, active, into a model that it fits. Returns what it is.

    Raises BadInputError naming the file and what is wrong: a setting that is not followed, tensors of other modules or
    shapes, left over or missing.
    """
    if not directory.is_dir():
        raise BadInputError(f"{directory}: no such adapter folder")
    for name_of_file in (CONFIG, WEIGHTS):
        if not (directory / name_of_file).is_file():
            raise BadInputError(f"{directory / name_of_file}: no such regular file")
    values, weights = tensor_files.read_json(directory / CONFIG), directory / WEIGHTS
    kind = values.get("peft_type")
    if kind != "LORA":
        raise BadInputError(
            f"{directory / CONFIG}: key 'peft_type' = {str(kind)[:80]!r}: only low-rank adapters (LORA) are put beside "
            "a model; a tuned prompt or prefix is part of the model that its run has saved"
        )
    stored = _stored(model, tensor_files.read_shapes(weights), str(weights))
    configs = _read_config(values, str(directory / CONFIG), model, stored)
    shapes = tensor_files.read_shapes(weights)
    for path, names in stored.items():
        rank = shapes[names["b_nr"]][0 if path == "embed" else 1]  # a table's factors are stored transposed
        if configs[path].rank != rank:
            raise BadInputError(
                f"{directory / CONFIG}: the rank of {path} is {configs[path].rank}, its factors have {rank}"
            )
    tensors = tensor_files.read_tensors(weights)
    for stored_name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise BadInputError(f"{weights}: {stored_name!r} holds what is no finite floating point number")
    for stored_name, path in _matrices(model, tensor_files.read_shapes(weights)).items():
        if not torch.equal(tensors[stored_name].float(), base_weight(model.get_submodule(path)).float()):
            raise BadInputError(f"{weights}: {stored_name!r} differs from the model's own; another model was adapted")
    for path, names in stored.items():
        inject(model, configs[path], name)
        adapter = adapter_at(model, path, name)
        state = {key: tensors[stored_name] for key, stored_name in names.items()}
        if path == "embed":
            state = {key: tensor.T for key, tensor in state.items()}
        adapter.load_state_dict(
            {key: tensor.flatten() if key == "magnitude_n" else tensor for key, tensor in state.items()}
        )
    first = next(iter(configs.values()))
    return replace(first, targets=tuple(stored))


def module_name(config: TransformerConfig, path: str) -> str:
    """What a module is called in PEFT's files. Raises BadInputError where the family's layout has no such module."""
    family = families.family_of(config)
    if family in ("llama", "qwen3"):
        return huggingface_name(f"{path}.weight").removesuffix(".weight")
    if family is not None:
        raise BadInputError(
            f"Hugging Face's {family} has other matrices than this adapter ({path}); merge the adapter, or save it "
            "with a model of the llama or qwen3 family"
        )
    return path


def _stored(model: Transformer, shapes: Mapping[str, Shape], where: str) -> dict[str, dict[str, str]]:
    """For each adapted module, in the model's order, which tensor of the file each part of its adapter is.

    Every tensor must have a place, and every place its tensor, of a shape that fits.
    """
    known = {module_name(model.config, path): path for path in matching(model, ("*",))}
    found: dict[str, dict[str, str]] = {}
    for stored in shapes.keys() - _matrices(model, shapes):
        match = _TENSOR.fullmatch(stored)
        path = known.get(match["module"]) if match else None
        if match is None or path is None:
            raise BadInputError(f"{where}: {stored[:120]!r} belongs to no matrix of this model")
        key = _KEYS[match["part"]]
        if ("embedding" in match["part"]) != (path == "embed"):
            raise BadInputError(f"{where}: {stored[:120]!r} is no part of an adapter of {path}")
        if key in found.setdefault(path, {}):
            raise BadInputError(f"{where}: {stored[:120]!r} is there in two spellings")
        found[path][key] = stored
    for path, names in found.items():
        if not {"a_rk", "b_nr"} <= names.keys():
            raise BadInputError(f"{where}: of the adapter of {path} a factor is missing")
        _check_shapes(model, path, {key: shapes[stored] for key, stored in names.items()}, where)
    if not found:
        raise BadInputError(f"{where}: no tensor in it")
    return {path: found[path] for path in known.values() if path in found}


def _matrices(model: Transformer, shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Tensors of a file that are matrices of the model itself: each with the module's path."""
    known = {module_name(model.config, path): path for path in matching(model, ("*",))}
    matches = ((stored, _WHOLE.fullmatch(stored)) for stored in shapes)
    found = {stored: known.get(match["module"]) for stored, match in matches if match}
    return {
        stored: path
        for stored, path in found.items()
        if path is not None and shapes[stored] == base_shape(model.get_submodule(path))
    }


def _check_shapes(model: Transformer, path: str, found: Mapping[str, Shape], where: str) -> None:
    rows, columns = base_shape(model.get_submodule(path))
    a, b = found["a_rk"], found["b_nr"]
    if path == "embed":
        a, b = a[::-1], b[::-1]
    rank = a[0] if len(a) == 2 else 0
    expected = {"a_rk": (rank, columns), "b_nr": (rows, rank)}
    if not 1 <= rank <= _MOST_RANK or expected != {"a_rk": a, "b_nr": b}:
        raise BadInputError(
            f"{where}: factors {list(found['b_nr'])} and {list(found['a_rk'])} of {path}, whose matrix is "
            f"{rows} x {columns}; the adapter belongs to another model"
        )
    if math.prod(found.get("magnitude_n", (rows,))) != rows:
        raise BadInputError(f"{where}: magnitudes {list(found['magnitude_n'])} of {path}, which has {rows} rows")


def _read_config(
    values: Mapping[str, Any], where: str, model: Transformer, stored: Mapping[str, Mapping[str, str]]
) -> dict[str, LoraConfig]:
    """What each adapted module's adapter is; rank_pattern and alpha_pattern make them differ."""
    for key, allowed in _PLAIN.items():
        if values.get(key, allowed[0]) not in allowed:
            raise BadInputError(f"{where}: key {key!r} = {str(values[key])[:80]!r} is not followed; merge it with peft")
    begun = values.get("init_lora_weights", True)
    if isinstance(begun, str) and begun.lower().startswith(_OTHER_BASE):
        raise BadInputError(
            f"{where}: key 'init_lora_weights' = {begun[:80]!r}: it changed the model's own matrices too, which are "
            "not in these files; save it with peft's path_initial_model_for_weight_conversion, or merge it with peft"
        )
    dora = values.get("use_dora", False)
    for path, names in stored.items():
        if ("magnitude_n" in names) != bool(dora):
            raise BadInputError(f"{where}: use_dora is {dora!r}, and {path} says otherwise")
    return {
        path: validate(
            LoraConfig,
            _settings(
                values,
                _at(values, "rank_pattern", module_name(model.config, path), values.get("r", 8)),
                _at(values, "alpha_pattern", module_name(model.config, path), values.get("lora_alpha", 8)),
                [path],
            ),
            where,
        )
        for path in stored
    }


def _settings(values: Mapping[str, Any], rank: Any, alpha: Any, targets: list[str]) -> dict[str, Any]:
    """LoraConfig's fields from PEFT's keys."""
    return {
        "rank": rank,
        "alpha": alpha,
        "dropout": values.get("lora_dropout", 0.0),
        "targets": targets,
        "rslora": values.get("use_rslora", False),
        "dora": values.get("use_dora", False),
    }


def _at(values: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """A setting that may differ by module: of the first regex that the end of the module's name matches, as PEFT has
    it."""
    patterns = values.get(key) or {}
    if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
        raise BadInputError(f"{CONFIG}: key {key!r} must map at most {_MAX_PATTERNS} patterns of modules to numbers")
    for pattern, value in patterns.items():
        try:
            if regex.match(rf"(?:.*\.)?(?:{pattern})$", module, timeout=_PATTERN_SECONDS):
                return value
        except (regex.error, TimeoutError, RecursionError, OverflowError, ValueError) as error:
            raise BadInputError(f"{CONFIG}: key {key!r}, pattern {pattern[:80]!r}: {error}") from None
    return default
