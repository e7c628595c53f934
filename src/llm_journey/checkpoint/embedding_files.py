"""How an encoder's folder says that its texts become vectors: the files that sentence-transformers lays beside it.

    modules.json                      the steps in their order: Transformer, Pooling, Normalize
    1_Pooling/config.json             which pooling
    sentence_bert_config.json         the most tokens a text may have
    config_sentence_transformers.json prompts

What is not done here (other modules, several poolings at once, a prompt before every text, shortened vectors) is
refused by name: a vector that is made otherwise than the model was trained is worth nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llm_journey.checkpoint.tensor_files import MAX_JSON_BYTES, read_json
from llm_journey.core.errors import BadInputError
from llm_journey.core.json_text import parse_json

MODULES = "modules.json"
_SETTINGS, _LIMITS, _TOKENIZER = (
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
)
_STEPS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_OLD_PREFIX = "pooling_mode_"
# The spellings before sentence-transformers 5.
_OLD_NAMES = {
    "cls_token": "cls",
    "max_tokens": "max",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}
POOLING_NAMES = ("mean", "max", "cls")


@dataclass(frozen=True, kw_only=True)
class EmbeddingRecipe:
    """What happens around the encoder. max_tokens: of a text, special tokens included; None: the encoder's context."""

    pooling: str
    normalize: bool
    max_tokens: int | None
    lower_case: bool = False


def read_embedding_recipe(directory: Path) -> EmbeddingRecipe:
    """The recipe of a model folder. Raises BadInputError naming the file and what in it is not done here."""
    path = directory / MODULES
    modules = _read_modules(path)
    steps = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if steps not in _STEPS:
        allowed = " or ".join(" + ".join(allowed) for allowed in _STEPS)
        raise BadInputError(f"{path}: its modules are {' + '.join(steps) or 'none'}; {allowed} can be used")
    if modules[0].get("path", "") != "":
        raise BadInputError(
            f"{path}: its Transformer lies in {modules[0].get('path')!r}; it must lie in the folder itself"
        )
    _check_settings(directory / _SETTINGS)
    limits = _optional(directory / _LIMITS)
    return EmbeddingRecipe(
        pooling=_read_pooling(directory, modules[1], path),
        normalize=len(steps) == 3,
        max_tokens=_read_limit(directory, limits),
        lower_case=limits.get("do_lower_case") is True,
    )


def _read_modules(path: Path) -> list[Mapping[str, Any]]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadInputError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
        modules = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise BadInputError(
            f"{path}: no such file; only models in sentence-transformers' layout say how texts become vectors"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: cannot be read as JSON ({str(error) or type(error).__name__})") from None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise BadInputError(f"{path}: must be a list of modules, each with type and path")
    return modules


def _read_pooling(directory: Path, module: Mapping[str, Any], modules_path: Path) -> str:
    folder = PurePosixPath(str(module.get("path", "")))
    if folder.is_absolute() or ".." in folder.parts:
        raise BadInputError(f"{modules_path}: path {str(folder)!r} leads out of the model's folder")
    path = directory / folder / "config.json"
    values = read_json(path)
    if values.get("include_prompt", True) is not True:
        raise BadInputError(f"{path}: key 'include_prompt' = {values['include_prompt']!r}: only true can be used")
    found = values.get("pooling_mode")
    if found is None:
        found = [new for old, new in _OLD_NAMES.items() if values.get(_OLD_PREFIX + old) is True]
    names = found if isinstance(found, list) else [found]
    if len(names) != 1 or names[0] not in POOLING_NAMES:
        raise BadInputError(
            f"{path}: pooling is {', '.join(map(str, names)) or 'none'}; one of {', '.join(POOLING_NAMES)} can be used"
        )
    return str(names[0])


def _check_settings(path: Path) -> None:
    values = _optional(path)
    for key in ("default_prompt_name", "truncate_dim"):
        if values.get(key) is not None:
            raise BadInputError(f"{path}: key {key!r} = {values[key]!r} is not done here; only null can be used")


def _read_limit(directory: Path, limits: Mapping[str, Any]) -> int | None:
    """sentence-transformers' own limit, else the tokenizer's (whose makers write 1e30 where there is none)."""
    for file, values, key in (
        (_LIMITS, limits, "max_seq_length"),
        (_TOKENIZER, _optional(directory / _TOKENIZER), "model_max_length"),
    ):
        value = values.get(key)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 3 <= value < math.inf:
                raise BadInputError(f"{directory / file}: key {key!r} = {value!r}: must be a whole number from 3 on")
            return int(value)
    return None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
