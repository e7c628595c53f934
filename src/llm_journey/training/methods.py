"""What of a model a run trains, and how that lies on disk: by the recipe's `method`.

    full    every weight, but those that `frozen` names           the model's folder
    lora    an adapter beside the frozen matrices                  PEFT's files, and the trained tensors by our names
    qlora   the same, the matrices of the blocks in NF4 with       the same
            double quantization (Dettmers et al. 2023)
    prompt  a few embeddings before each chat                      the same
    prefix  keys and values of a few tokens before each chat       the same

Whatever was trained, a run ends with one model: a plain one, but for a prefix, which stays a part of it.
"""

import fnmatch
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from llm_journey.checkpoint.model_folder import load_state, write_model_files
from llm_journey.checkpoint.tensor_files import read_tensors
from llm_journey.checkpoint.training_state import TRAINED, write_trained
from llm_journey.core.errors import BadInputError
from llm_journey.finetuning.lora import inject, remove
from llm_journey.finetuning.peft_format import write_adapter_files
from llm_journey.finetuning.prefix import inject_prefix, prefix_tokenizer, write_prefix_files
from llm_journey.finetuning.prompt import (
    PromptedEmbedding,
    inject_prompt,
    merge_prompt,
    prompt_tokenizer,
    write_prompt_files,
)
from llm_journey.model.decoder import Decoder
from llm_journey.model.kinds import Model
from llm_journey.quantization.layers import is_quantized, quantize_model
from llm_journey.quantization.scheme import Scheme
from llm_journey.tokenizer import Tokenizer
from llm_journey.training.recipe import Recipe


def prepare(model: Model, recipe: Recipe, tokenizer: Tokenizer) -> None:
    """Make the model one that `recipe.method` trains; what is drawn comes from torch's global generator. tokenizer: of
    `tokenizer_for`.

    Raises BadInputError where a pattern names nothing, and for a base that is quantized already.
    """
    if is_quantized(model):
        raise BadInputError(f"{recipe.base} is quantized; go on from the model that it was made from (qlora quantizes)")
    if model.config.prefix_tokens:
        raise BadInputError(f"{recipe.base} has a tuned prefix; go on from the model that it was made from")
    if recipe.method == "full":
        freeze_named(model, recipe.frozen)
        return
    if recipe.method == "prompt":
        assert isinstance(model, Decoder)
        inject_prompt(model, recipe.prompt, tokenizer.vocab_size - recipe.prompt.tokens)
        return
    if recipe.method == "prefix":
        assert isinstance(model, Decoder)
        inject_prefix(model, recipe.prompt)
        return
    if recipe.method == "qlora":
        assert isinstance(model, Decoder)
        quantize_model(model.blocks, Scheme(format="nf4"))  # embedding and head stay whole, as in the paper
    inject(model, recipe.adapter)


def tokenizer_for(recipe: Recipe, tokenizer: Tokenizer, vocab_size: int) -> Tokenizer:
    """The base's tokenizer as the run writes chats. vocab_size: rows of the base's embedding."""
    match recipe.method:
        case "prompt":
            return prompt_tokenizer(tokenizer, recipe.prompt)
        case "prefix":
            return prefix_tokenizer(tokenizer, recipe.prompt, vocab_size)
        case _:
            return tokenizer


def freeze_named(model: Model, patterns: tuple[str, ...]) -> None:
    """Leave the parameters as they are that a pattern names, or a module around them (`blocks.0.*`, `embed`).

    Raises BadInputError for a pattern that names none.
    """
    for pattern in patterns:
        found = [
            parameter
            for name, parameter in model.named_parameters()
            if any(fnmatch.fnmatchcase(part, pattern) for part in _names_around(name))
        ]
        if not found:
            known = ", ".join(dict.fromkeys(name.partition(".")[0] for name, _ in model.named_parameters()))
            raise BadInputError(f"frozen: {pattern!r} names no weights of this model; its parts are {known}")
        for parameter in found:
            parameter.requires_grad = False


def _names_around(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def write_model(model: Model, recipe: Recipe, tokenizer: Tokenizer, folder: Path) -> None:
    """What a checkpoint keeps of the model, into a folder that exists."""
    if not recipe.is_adapted:
        write_model_files(model, folder, tokenizer=tokenizer)
        return
    write_adapter(model, recipe, folder)
    write_trained(model, folder)


def write_adapter(model: Model, recipe: Recipe, folder: Path) -> None:
    """The adapter in PEFT's layout, into a folder that exists."""
    if recipe.method == "prompt":
        assert isinstance(model, Decoder)
        write_prompt_files(model, folder, base=recipe.base or "")
    elif recipe.method == "prefix":
        assert isinstance(model, Decoder)
        write_prefix_files(model, folder, base=recipe.base or "")
    else:
        write_adapter_files(model, folder, recipe.adapter, base=recipe.base or "")


def read_model(folder: Path) -> dict[str, Tensor]:
    """The tensors of what `write_model` wrote."""
    trained = folder / TRAINED
    return read_tensors(trained) if trained.is_file() else load_state(folder)[1]


def restore(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of `read_model` back. Raises BadInputError where they are not those that are trained."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    is_whole = model.state_dict().keys() == tensors.keys()
    if not is_whole and trained != tensors.keys():
        raise BadInputError("the checkpoint holds what another method trains; start a new run")
    model.load_state_dict(dict(tensors), strict=is_whole)


def finish(model: Model) -> None:
    """Make an adapted model one of plain layers that computes the same; others, and a prefix, stay as they are."""
    if isinstance(model, Decoder) and isinstance(model.embed, PromptedEmbedding):
        merge_prompt(model)
    remove(model, merged=True)
