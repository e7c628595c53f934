"""The certificate of a folder: the same ids through our model and through Hugging Face transformers, compared.

What is compared: logits; of an encoder without a head its hidden states. An encoder-decoder reads the ids and writes
them backwards, so that the two sides differ.

transformers is an extra (`llm-journey[hf]`) and is imported only here, inside the function.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_journey.checkpoint.families import FAMILIES, family_of
from llm_journey.checkpoint.model_folder import build, load_config, load_state
from llm_journey.core.errors import BadInputError, JourneyError
from llm_journey.model.config import TransformerConfig
from llm_journey.model.encoder import Encoder
from llm_journey.model.encoder_decoder import EncoderDecoder
from llm_journey.model.kinds import Model

_OPENERS = {
    "decoder": "AutoModelForCausalLM",
    "encoder": "AutoModelForMaskedLM",
    "encoder_decoder": "AutoModelForSeq2SeqLM",
}


def compare_with_transformers(directory: Path, ids: Sequence[int]) -> float:
    """The largest absolute difference of logits (float32, T x V of them) between our model and transformers'; of
    hidden states (T x D) where the model is an encoder without a head.

    The folder is opened as it is, offline, with no code from it run. Raises BadInputError where the model fits no
    family or `ids` do not fit the model, JourneyError where transformers is not installed or finds other tensors.
    """
    config, state = load_state(directory)
    if family_of(config) is None:
        raise BadInputError(f"{directory}: fits none of {', '.join(FAMILIES)}, so transformers cannot open it")
    if not 0 < len(ids) <= config.context or not all(0 <= item < config.vocab_size for item in ids):
        raise BadInputError(f"give 1 to {config.context} ids from 0 to {config.vocab_size - 1} to compare on")
    theirs = open_with_transformers(directory)
    ids_bt = torch.tensor([list(ids)])
    with torch.inference_mode():
        ours_btv = _our_output(build(config, state.items()), ids_bt)
        if config.kind == "encoder_decoder":
            theirs_btv = theirs(input_ids=ids_bt, decoder_input_ids=ids_bt.flip(-1)).logits
        elif _headless(config):
            theirs_btv = theirs(ids_bt).last_hidden_state
        elif config.next_sentence:
            theirs_btv = theirs(ids_bt).prediction_logits
        else:
            theirs_btv = theirs(ids_bt).logits
    return float((ours_btv - theirs_btv).abs().max())


def _our_output(model: Model, ids_bt: Tensor) -> Tensor:
    match model:
        case EncoderDecoder():
            result: Tensor = model(ids_bt, ids_bt.flip(-1))
        case Encoder() if _headless(model.config):
            result = model.hidden(ids_bt)
        case _:
            result = model(ids_bt)
    return result


def _headless(config: TransformerConfig) -> bool:
    return config.kind == "encoder" and not config.head_transform


def open_with_transformers(directory: Path) -> Any:
    """transformers' own model of the folder, in float32 and evaluation mode; every tensor must be where it expects one.

    Raises JourneyError where transformers is not installed or finds other tensors.
    """
    config = load_config(directory)
    if importlib.util.find_spec("transformers") is None:
        raise JourneyError("transformers is not installed; pip install 'llm-journey[hf]'")
    import transformers
    from transformers.utils import logging

    name = "AutoModelForPreTraining" if config.next_sentence else _OPENERS[config.kind]
    opener: Any = getattr(transformers, "AutoModel" if _headless(config) else name)
    options = {"add_pooling_layer": config.pooler} if _headless(config) else {}
    bars: Any = logging
    had_bars = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        model, report = opener.from_pretrained(
            directory,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    finally:
        if had_bars:
            bars.enable_progress_bar()
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    differing = sorted({str(key) for kind in kinds for key in report[kind]})
    if differing:
        raise JourneyError(f"{directory}: transformers expects other tensors: {', '.join(differing[:8])}")
    return model.eval()
