"""Our Decoder as a Hugging Face model and back: which family a config fits, and the maps of config and tensors.

A family is taken only where it computes exactly what our configuration says; tests/equivalence/test_families.py holds
the proof against transformers' own modeling code.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llm_journey.checkpoint.families import gpt2, llama, qwen3
from llm_journey.checkpoint.families.family import ConfigReader, Family
from llm_journey.checkpoint.shapes import check_depth, check_shapes
from llm_journey.checkpoint.tensor_files import Shape
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig

FAMILIES: dict[str, Family] = {family.name: family for family in (qwen3.FAMILY, llama.FAMILY, gpt2.FAMILY)}
_HEAD, _EMBEDDING = "lm_head.weight", ("model.embed_tokens.weight", "transformer.wte.weight")


def family_of(config: TransformerConfig) -> str | None:
    """The name of the Hugging Face family that computes exactly what `config` says, or None."""
    return next((name for name, family in FAMILIES.items() if family.fits(config)), None)


def to_huggingface(config: TransformerConfig, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json's values and the named tensors of the family that fits. Raises BadInputError where none fits."""
    name = family_of(config)
    if name is None:
        raise BadInputError(f"this model's choices fit none of Hugging Face's families {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    return family.write_config(config), family.write_tensors(config, state)


def read_config(values: Mapping[str, Any], where: str = "config.json") -> tuple[Family, TransformerConfig]:
    """The family and our configuration for a Hugging Face config.json; `where` names it in errors."""
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise BadInputError(f"{where}: key 'model_type' = {str(name)[:80]!r}: must be one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    return family, family.read_config(ConfigReader(values, where))


def stored_names(family: Family, config: TransformerConfig, found: Mapping[str, Shape], where: str) -> dict[str, str]:
    """Family name -> stored name of each tensor to read, once every name and shape is as `config` says.

    `found` comes from the file's header, so that a config which lies is refused before anything is allocated.
    """
    check_depth(config.num_layers, found, where)
    names = {family.rename(stored): stored for stored in found}
    names.pop("", None)
    expected = family.shapes(config)
    if config.tied_embeddings and _HEAD in names and _HEAD not in expected:
        expected[_HEAD] = expected[next(name for name in _EMBEDDING if name in expected)]
    check_shapes(expected, {name: found[stored] for name, stored in names.items()}, where)
    return names


def from_huggingface(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str = "config.json"
) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """Our configuration and state for a Hugging Face config and its tensors.

    Raises BadInputError naming `where` and what is wrong: an unknown or unsupported value, tensors missing, left over
    or of another shape, a stored head that is not the embedding it is said to be tied to.
    """
    family, config = read_config(values, where)
    names = stored_names(family, config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, where)
    named = {name: tensors[stored] for name, stored in names.items()}
    if config.tied_embeddings and _HEAD in named:
        embedding = next(name for name in _EMBEDDING if name in named)
        if not torch.equal(named[_HEAD], named[embedding]):
            raise BadInputError(f"{where}: tie_word_embeddings is true, yet {_HEAD} differs from {embedding}")
    return config, family.read_tensors(config, named)
