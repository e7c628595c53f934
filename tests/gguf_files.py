"""GGUF files for tests, byte by byte: a second, independent way to write them, so that the reader is not only held
against our own writer. Also a small tokenizer and models of each architecture."""

import random
import struct
from collections.abc import Sequence
from typing import Any

import torch

from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.tokenizer import Tokenizer, TokenizerConfig
from llm_journey.tokenizer.chat_template import DEFAULT_TEMPLATE
from llm_journey.tokenizer.train import train_tokenizer

LLAMA: dict[str, Any] = {"num_kv_heads": 2, "tied_embeddings": False}
LLAMA_BIASED: dict[str, Any] = {"bias": True, "norm_epsilon": 1e-5, "rope_theta": 100_000.0}
QWEN3: dict[str, Any] = {"qk_norm": True, "head_width": 24, "num_kv_heads": 1}
GPT2: dict[str, Any] = {"norm": "layernorm", "positions": "learned", "mlp": "gelu_tanh", "bias": True}
ARCHITECTURES = {"llama": LLAMA, "llama-biased": LLAMA_BIASED, "qwen3": QWEN3, "gpt2": GPT2}
TEXTS = (
    "the river runs by the old mill 1905",
    "a bridge, a town and its market: 3 of 17",
    "don't be late\n\nit's fine",
)


def tiny_tokenizer(vocab_size: int = 300, pattern: str = "gpt2") -> Tokenizer:
    """A trained vocabulary with the chat tokens and our template."""
    config = TokenizerConfig(vocab_size=vocab_size, pattern=pattern)  # type: ignore[arg-type]
    trained = train_tokenizer(list(TEXTS) * 4, config, processes=1)
    return Tokenizer(
        trained.vocabulary,
        trained.merges,
        special_tokens=trained.special_tokens,
        pattern=pattern,
        chat_template=DEFAULT_TEMPLATE,
    )


def random_model(seed: int = 0, **choices: Any) -> Decoder:
    """Every tensor random, vectors around 0.7; rows are whole blocks of 32."""
    sizes = {"vocab_size": 304, "width": 64, "num_layers": 2, "num_heads": 4, "mlp_width": 96, "context": 48}
    model = Decoder(TransformerConfig(**(sizes | choices))).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.7 if parameter.ndim == 1 else 0.0, 0.2, generator=generator)
    return model


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def header(num_tensors: int, num_keys: int, *, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, num_tensors, num_keys)


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, dimensions: Sequence[int], kind: int, offset: int) -> bytes:
    """A description; dimensions in the file's order, rows last."""
    sizes = struct.pack(f"<{len(dimensions)}Q", *dimensions)
    return text(name) + struct.pack("<I", len(dimensions)) + sizes + struct.pack("<IQ", kind, offset)


def padded(data: bytes, alignment: int = 32) -> bytes:
    return data + bytes(-len(data) % alignment)


def mutate(data: bytes, draw: random.Random) -> bytes:
    """`data` with a few changes: bits, whole numbers set to extremes, pieces cut out, doubled or swapped."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        # Most of a file is numbers, which may be anything: the head is where the harm is.
        place = draw.randrange(min(len(changed), draw.choice([64, 512, 4096, len(changed)])))
        match draw.randrange(6):
            case 0:
                changed[place] ^= 1 << draw.randrange(8)
            case 1:
                changed[place] = draw.randrange(256)
            case 2:
                extreme = draw.choice([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, draw.getrandbits(40)])
                changed[place : place + 8] = struct.pack("<Q", extreme)
            case 3:
                del changed[place : place + draw.choice([1, 8, 200])]
            case 4:
                changed[place:place] = changed[place : place + draw.choice([1, 8, 64])]
            case 5:
                del changed[draw.randrange(1, len(changed)) :]
        if not changed:
            return b""
    return bytes(changed)
