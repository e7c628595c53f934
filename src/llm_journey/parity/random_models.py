"""Small models whose every parameter is random: fresh ones hold zeros, which would hide a wrong map."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_journey.checkpoint.model_folder import save_model
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.encoder_decoder import EncoderDecoder
from llm_journey.model.kinds import Model, make_model

LLAMA: dict[str, Any] = {"num_kv_heads": 2}
QWEN3: dict[str, Any] = {"qk_norm": True, "num_kv_heads": 2}
GPT2: dict[str, Any] = {"norm": "layernorm", "positions": "learned", "mlp": "gelu_tanh", "bias": True}
_POST_NORM: dict[str, Any] = {"norm": "layernorm", "norm_placement": "post", "bias": True}
BERT: dict[str, Any] = _POST_NORM | {
    "kind": "encoder",
    "norm_epsilon": 1e-12,
    "positions": "learned",
    "mlp": "gelu",
    "token_types": 2,
    "embedding_norm": True,
    "head_transform": True,
    "head_bias": True,
}
MARIAN: dict[str, Any] = _POST_NORM | {
    "kind": "encoder_decoder",
    "norm_epsilon": 1e-5,
    "positions": "sinusoidal_halves",
    "mlp": "silu",
    "embedding_scale": True,
    "head_bias": True,
}


def random_decoder(seed: int = 0, scale: float = 0.2, **choices: Any) -> Decoder:
    """A Decoder of random weights, norms around 0.7, in evaluation mode."""
    model = random_model(seed, scale, **choices)
    assert isinstance(model, Decoder)
    return model


def random_encoder_decoder(seed: int = 0, scale: float = 0.2, **choices: Any) -> EncoderDecoder:
    """An EncoderDecoder as Marian has it."""
    model = random_model(seed, scale, **MARIAN | choices)
    assert isinstance(model, EncoderDecoder)
    return model


def random_model(seed: int = 0, scale: float = 0.2, **choices: Any) -> Model:
    """A model of the kind that `choices` name (a decoder where they name none), every tensor random."""
    sizes = {"vocab_size": 97, "width": 32, "num_layers": 3, "num_heads": 4, "context": 64}
    model = make_model(TransformerConfig(**(sizes | choices))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.7 if parameter.ndim == 1 else 0.0, scale, generator=generator)
    return model


def random_ids(rows: int, length: int, vocab_size: int, seed: int = 1) -> torch.Tensor:
    """(rows, length) token ids."""
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


@contextmanager
def opened_by_transformers(model: Any, opener: str = "AutoModelForCausalLM", **options: Any) -> Iterator[Any]:
    """`model` written to a folder and opened there by the transformers class called `opener`, offline."""
    import transformers

    with tempfile.TemporaryDirectory() as temporary, quiet():
        save_model(model, Path(temporary) / "model")
        yield (
            getattr(transformers, opener)
            .from_pretrained(Path(temporary) / "model", local_files_only=True, **options)
            .eval()
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers shows no progress bars and no warnings."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    logs: Any = logging
    loading: Any = modeling_gguf_pytorch_utils  # its bar is its own, and asks nobody
    bar = loading.tqdm
    loading.tqdm = partial(bar, disable=True)
    level = logs.get_verbosity()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        logs.enable_progress_bar()
        loading.tqdm = bar


def plant(parameter: torch.Tensor) -> None:
    """Change one weight: the first entry, by 0.5."""
    with torch.no_grad():
        parameter.view(-1)[0] += 0.5
