"""Our model as a Hugging Face model and back: which family a config fits, and the maps of config and tensors.

A family is taken only where it computes exactly what our configuration says; tests/equivalence/test_families.py holds
the proof against transformers' own modeling code.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from llm_journey.checkpoint.families import bert, gpt2, llama, marian, qwen3
from llm_journey.checkpoint.families.family import ConfigReader, Family
from llm_journey.checkpoint.shapes import check_depth, check_shapes, check_tables
from llm_journey.checkpoint.tensor_files import Shape
from llm_journey.core.errors import BadInputError
from llm_journey.model.config import TransformerConfig

FAMILIES: dict[str, Family] = {
    family.name: family for family in (qwen3.FAMILY, llama.FAMILY, gpt2.FAMILY, bert.FAMILY, marian.FAMILY)
}


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


def read_config(
    values: Mapping[str, Any], where: str = "config.json", stored: Collection[str] | None = None
) -> tuple[Family, TransformerConfig]:
    """The family and our configuration for a Hugging Face config.json; `where` names it in errors.

    stored: the names in its file of tensors, where there is one; some parts (BERT's pooler) show only there.
    """
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise BadInputError(f"{where}: key 'model_type' = {str(name)[:80]!r}: must be one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    config = family.read_config(ConfigReader(values, where))
    return family, config if stored is None else family.complete(config, {family.rename(item) for item in stored})


def stored_names(family: Family, config: TransformerConfig, found: Mapping[str, Shape], where: str) -> dict[str, str]:
    """Family name -> stored name of each tensor to read, once every name and shape is as `config` says.

    `found` comes from the file's header, so that a config which lies is refused before anything is allocated.
    """
    check_depth(config.num_layers + config.num_decoder_layers, found, where)
    names: dict[str, str] = {}
    for stored in found:
        name = family.rename(stored)
        if name in names:
            raise BadInputError(
                f"{where}: {stored} and {names[name]} are two spellings of one tensor; keep one of them"
            )
        if name:
            names[name] = stored
    expected = family.shapes(config)
    derived = {name: item.shape for name, item in family.derived(config).items() if name in names}
    check_shapes(derived | expected, {name: found[stored] for name, stored in names.items()}, where)
    check_tables(config, where)
    return names


def from_huggingface(
    values: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str = "config.json"
) -> tuple[TransformerConfig, dict[str, Tensor]]:
    """Our configuration and state for a Hugging Face config and its tensors.

    Raises BadInputError naming `where` and what is wrong: an unknown or unsupported value, tensors missing, left over
    or of another shape, a stored head that is not the embedding it is said to be tied to.
    """
    family, config = read_config(values, where, tensors.keys())
    names = stored_names(family, config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, where)
    named = {name: tensors[stored] for name, stored in names.items()}
    for name, item in family.derived(config).items():
        if name in named:
            item.check(named[name], named, where)
    return config, family.read_tensors(config, named)
