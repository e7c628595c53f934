"""Texts' vectors against sentence-transformers: random encoders with each pooling, and the published model."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from llm_journey.checkpoint.embedding_files import read_embedding_recipe
from llm_journey.checkpoint.model_folder import load_encoder, save_model
from llm_journey.generation.embed import POOLING, embed_ids
from llm_journey.generation.packed_linear import pack_linears
from llm_journey.parity.equality import Equality
from llm_journey.parity.published import MINILM, located
from llm_journey.parity.random_models import BERT, quiet, random_model
from llm_journey.parity.tokens import TEXTS, words_and_pieces
from llm_journey.tokenizer.wordpiece import WordPiece

# Short texts and texts that are cut at the limit, in no order.
_TEXTS = [text[: 60 * 4**size] for size in range(4) for text in TEXTS[:4]]
_MOST_TOKENS = 48


def _random(planted: bool, *, pooling: str) -> float:
    """A random encoder in a folder that sentence-transformers makes and saves around it."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    vocabulary, library = words_and_pieces(), cast(Any, transformers)
    choices = BERT | {"head_transform": False, "head_bias": False, "vocab_size": len(vocabulary)}
    with tempfile.TemporaryDirectory() as temporary, quiet():
        folder = Path(temporary)
        save_model(random_model(**choices), folder / "bert")
        library.BertTokenizerFast(vocab=vocabulary).save_pretrained(folder / "bert")
        transformer: Any = modules.Transformer(str(folder / "bert"), max_seq_length=_MOST_TOKENS)
        parts = [transformer, modules.Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)]
        peer: Any = SentenceTransformer(modules=[*parts, modules.Normalize()], device="cpu")
        peer.save(str(folder / "st"), create_model_card=False)
        return _one_minus_cosine(folder / "st", peer, planted)


def _published(planted: bool) -> float:
    """all-MiniLM-L6-v2's own folder, opened by both."""
    from sentence_transformers import SentenceTransformer

    folder = located(MINILM)
    with quiet():
        peer: Any = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        return _one_minus_cosine(folder, peer, planted)


def _one_minus_cosine(folder: Path, peer: Any, planted: bool) -> float:
    """One minus the smallest cosine of our vectors of some texts with theirs. Planted: one weight of the last block."""
    encoder, tokenizer = load_encoder(folder)
    recipe = read_embedding_recipe(folder)
    assert isinstance(tokenizer, WordPiece) and recipe.max_tokens is not None
    most, encoded = recipe.max_tokens, tokenizer.encode_batch(_TEXTS)
    encoded = [[*ids[: most - 1], ids[-1]] if len(ids) > most else ids for ids in encoded]
    if planted:
        with torch.no_grad():
            encoder.blocks[-1].mlp.down.weight[0] += 0.5  # type: ignore[union-attr, index, operator]
    pack_linears(encoder)  # as `journey embed` runs it
    ours = embed_ids(
        encoder,
        encoded,
        pooling=recipe.pooling,
        normalize=recipe.normalize,
        padding_id=tokenizer.special_tokens[tokenizer.options.padding],
    )
    theirs = peer.encode(_TEXTS, show_progress_bar=False)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return float(1 - ((ours.astype(np.float64) * theirs).sum(1) / lengths).min())


_row = partial(
    Equality, reference="sentence-transformers", tolerance=1e-5, reason="float32 sums taken in another order"
)

EQUALITIES = (
    *(
        _row(
            component=f"embeddings, {pooling} pooling",
            compared="one minus the smallest cosine of 16 texts, a random encoder",
            difference=partial(_random, pooling=pooling),
        )
        for pooling in POOLING
    ),
    _row(
        component="embeddings of all-MiniLM-L6-v2",
        compared="one minus the smallest cosine of 16 texts",
        difference=_published,
        needs=(MINILM,),
    ),
)
