"""What crosses to other programs: GGUF's tensor types, and GGUF files in transformers and llama.cpp."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_journey.checkpoint.embedding_files import read_embedding_recipe
from llm_journey.checkpoint.gguf.format import TENSOR_TYPES
from llm_journey.checkpoint.gguf.model import build_decoder, read_gguf, write_gguf
from llm_journey.checkpoint.gguf.quants import WRITTEN_TYPES, dequantize, quantize
from llm_journey.checkpoint.model_folder import load_encoder
from llm_journey.datasets.catalog import find, locate
from llm_journey.generation.embed import embed_ids
from llm_journey.model.decoder import Decoder
from llm_journey.parity.equality import Equality
from llm_journey.parity.random_models import LLAMA, plant, quiet, random_decoder, random_ids
from llm_journey.parity.tokens import TEXTS, trained
from llm_journey.tokenizer.wordpiece import WordPiece

_SMOLLM2 = "smollm2-135m-instruct"
_MINILM = "all-minilm-l6-v2"
_SUMS = "float32 sums taken in another order, of logits around 10"


def _reading(planted: bool) -> float:
    """How many numbers of random blocks come out otherwise, over all tensor types that are read."""
    from gguf import GGMLQuantizationType
    from gguf import quants as reference

    draw, differing = np.random.default_rng(0), 0
    for kind in TENSOR_TYPES.values():
        data = draw.integers(0, 256, (500, kind.size), dtype=np.uint8)
        with np.errstate(all="ignore"):
            expected = reference.dequantize(data, GGMLQuantizationType[kind.name]).reshape(500, -1)
        if planted:
            data = np.roll(data, 1, axis=1)
        found = dequantize(kind, data.reshape(-1)).reshape(500, -1)
        differing += int((found != expected)[np.isfinite(expected).all(axis=1)].sum())
    return float(differing)


def _writing(planted: bool) -> float:
    """How many bytes of quantized random weights differ, over all tensor types that are written."""
    from gguf import GGMLQuantizationType
    from gguf import quants as reference

    numbers = np.random.default_rng(1).normal(size=(40, 256)).astype(np.float32)
    differing = 0
    for kind in WRITTEN_TYPES:
        expected = np.asarray(reference.quantize(numbers, GGMLQuantizationType[kind.name])).view(np.uint8).ravel()
        found = np.asarray(quantize(kind, numbers * (1.01 if planted else 1.0))).view(np.uint8).ravel()
        differing += int((found != expected).sum())
    return float(differing)


def _through_gguf(planted: bool) -> float:
    """A random llama-type model through our F16 file: our logits from it, and transformers' from it."""
    tokenizer = trained()
    model = random_decoder(vocab_size=tokenizer.vocab_size, **LLAMA)
    ids_bt = random_ids(2, 20, tokenizer.vocab_size)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.gguf"
        write_gguf(model, tokenizer, path)
        ours = build_decoder(read_gguf(path))
        if planted:
            plant(ours.blocks[0].attention.q.weight)  # type: ignore[union-attr, arg-type]
        return _difference(ours, path, ids_bt)


def _smollm2(planted: bool) -> float:
    """The published 4-bit file of SmolLM2, both loading it: logits of 64 tokens of a text."""
    path = _located(_SMOLLM2)
    path = path if path.is_file() else next(path.glob("*.gguf"))
    found = read_gguf(path)
    ids = found.tokenizer.encode("The transformer reads a text as tokens, each of which looks at those before it. " * 5)
    ours = build_decoder(found)
    if planted:
        plant(ours.blocks[0].mlp.down.weight)  # type: ignore[union-attr, arg-type]
    return _difference(ours, path, torch.tensor([ids[:64]]))


def _embeddings(planted: bool) -> float:
    """all-MiniLM-L6-v2 on sixteen texts, short and cut at its limit: one minus the smallest cosine."""
    from sentence_transformers import SentenceTransformer

    folder = _located(_MINILM)
    encoder, tokenizer = load_encoder(folder)
    recipe = read_embedding_recipe(folder)
    assert isinstance(tokenizer, WordPiece) and recipe.max_tokens is not None
    texts = [text[: 60 * 4**size] for size in range(4) for text in TEXTS[:4]]
    encoded = tokenizer.encode_batch(texts)
    encoded = [[*ids[: recipe.max_tokens - 1], ids[-1]] if len(ids) > recipe.max_tokens else ids for ids in encoded]
    padding_id = tokenizer.special_tokens[tokenizer.options.padding]
    pooling = "max" if planted else recipe.pooling
    ours = embed_ids(encoder, encoded, pooling=pooling, normalize=recipe.normalize, padding_id=padding_id)
    with quiet():
        peer: Any = SentenceTransformer(str(folder), device="cpu")
        theirs = peer.encode(texts, show_progress_bar=False)
    cosines = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    return float(1 - cosines.min())


def _difference(ours: Decoder, path: Path, ids_bt: torch.Tensor) -> float:
    import transformers

    opener: Any = transformers.AutoModelForCausalLM
    with quiet(), torch.inference_mode():
        theirs = opener.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32, local_files_only=True)
        return float((ours(ids_bt) - theirs.eval()(ids_bt).logits).abs().max())


def _llama_cpp(planted: bool, *, choices: dict[str, Any]) -> float:
    """A random model through our F16 file in llama.cpp, against our own float32 logits of the last token."""
    from llama_cpp import Llama  # type: ignore[import-not-found, unused-ignore]

    tokenizer = trained()
    model = random_decoder(vocab_size=tokenizer.vocab_size, width=64, head_width=16, mlp_width=96, **choices)
    ids = random_ids(1, 20, tokenizer.vocab_size)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "model.gguf"
        write_gguf(model, tokenizer, path)
        if planted:
            plant(model.blocks[0].attention.q.weight)  # type: ignore[union-attr, arg-type]
        peer = Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False)
        peer.eval(ids[0].tolist())
        theirs = torch.from_numpy(np.array(peer.scores[19])).log_softmax(-1)
        peer.close()
    with torch.inference_mode():
        ours = model(ids)[0, -1].log_softmax(-1)
    return float((ours.exp() * (ours - theirs)).sum().abs())


def _located(name: str) -> Path:
    path = locate(find(name))
    assert path is not None, "a row is only measured where its catalog items are"
    return path


EQUALITIES = (
    Equality(
        component="GGUF tensor types, reading",
        reference="gguf",
        compared="how many numbers differ: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q5_K, Q6_K",
        tolerance=0.0,
        reason="bit for bit",
        difference=_reading,
    ),
    Equality(
        component="GGUF tensor types, writing",
        reference="gguf",
        compared="how many bytes differ: F16, Q8_0, Q4_0, Q4_1",
        tolerance=0.0,
        reason="bit for bit",
        difference=_writing,
    ),
    Equality(
        component="GGUF file of ours",
        reference="transformers",
        compared="logits of a random llama-type model from our F16 file",
        tolerance=1e-4,
        reason=_SUMS,
        difference=_through_gguf,
    ),
    Equality(
        component="SmolLM2-135M-Instruct from its Q4_1 GGUF",
        reference="transformers",
        compared="logits of 64 tokens, the same file",
        tolerance=1e-3,
        reason=f"{_SUMS} through 30 layers",
        difference=_smollm2,
        needs=(_SMOLLM2,),
    ),
    Equality(
        component="embeddings of all-MiniLM-L6-v2",
        reference="sentence-transformers",
        compared="one minus the smallest cosine of 16 texts",
        tolerance=1e-5,
        reason="float32 sums taken in another order",
        difference=_embeddings,
        needs=(_MINILM,),
    ),
    *(
        Equality(
            component=f"GGUF file of ours, {name}",
            reference="llama-cpp-python",
            compared="KL divergence of the next token, F16 file against our float32",
            tolerance=1e-4,
            reason="weights and activations are rounded to 11 bits there",
            difference=partial(_llama_cpp, choices=choices),
        )
        for name, choices in (("llama", LLAMA),)
    ),
)
