"""The certificate of a folder: the same ids through our model and through Hugging Face transformers, compared.

transformers is an extra (`llm-journey[hf]`) and is imported only here, inside the function.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llm_journey.checkpoint.families import FAMILIES, family_of
from llm_journey.checkpoint.model_folder import build, load_state
from llm_journey.core.errors import BadInputError, JourneyError


def compare_with_transformers(directory: Path, ids: Sequence[int]) -> float:
    """The largest absolute difference of logits (float32, T x V of them) between our model and transformers'.

    The folder is opened as it is, offline, with no code from it run. Raises BadInputError where the model fits no
    family or `ids` do not fit the model, JourneyError where transformers is not installed or finds other tensors.
    """
    config, state = load_state(directory)
    if family_of(config) is None:
        raise BadInputError(f"{directory}: fits none of {', '.join(FAMILIES)}, so transformers cannot open it")
    if not 0 < len(ids) <= config.context or not all(0 <= item < config.vocab_size for item in ids):
        raise BadInputError(f"give 1 to {config.context} ids from 0 to {config.vocab_size - 1} to compare on")
    if importlib.util.find_spec("transformers") is None:
        raise JourneyError("transformers is not installed; pip install 'llm-journey[hf]'")
    theirs = _open_with_transformers(directory)
    ids_bt = torch.tensor([list(ids)])
    with torch.inference_mode():
        ours_btv = build(config, state)(ids_bt)
        theirs_btv = theirs(ids_bt).logits
    return float((ours_btv - theirs_btv).abs().max())


def _open_with_transformers(directory: Path) -> Any:
    """transformers' own model of the folder; every tensor must be where it expects one."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    opener: Any = AutoModelForCausalLM
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
        )
    finally:
        if had_bars:
            bars.enable_progress_bar()
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    differing = sorted({str(key) for kind in kinds for key in report[kind]})
    if differing:
        raise JourneyError(f"{directory}: transformers expects other tensors: {', '.join(differing[:8])}")
    return model.eval()
