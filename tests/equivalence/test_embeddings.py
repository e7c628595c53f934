"""Our embedder against sentence-transformers: the same folder, the same texts, the same vectors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedder_folders import save_bert, some_texts
from llm_journey.app.embedder import Embedder, open_embedder
from llm_journey.generation.embed import POOLING

st = pytest.importorskip("sentence_transformers", reason="the reference for embeddings (extra: st)")

# The promise is 0.99999; float32 in another order of sums leaves less than 1e-6.
LEAST_COSINE = 1 - 1e-6


def reference(folder: Path, pooling: str, normalize: bool, limit: int | None, **sizes: Any) -> Any:
    """A model that sentence-transformers makes and saves by itself into `folder`/st."""
    from sentence_transformers.sentence_transformer import modules

    transformer = modules.Transformer(str(save_bert(folder / "bert", **sizes)), max_seq_length=limit)
    parts = [transformer, modules.Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling)]
    model = st.SentenceTransformer(modules=[*parts, *([modules.Normalize()] if normalize else [])], device="cpu")
    model.save(str(folder / "st"), create_model_card=False)
    return model


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return np.asarray((ours.astype(np.float64) * theirs).sum(1) / lengths)


@pytest.mark.parametrize(
    ("pooling", "normalize", "limit", "sizes"),
    [
        ("mean", True, 16, {}),
        ("mean", False, None, {"hidden_size": 36, "num_attention_heads": 3, "num_hidden_layers": 3}),
        ("cls", True, 13, {"intermediate_size": 31}),
        ("max", False, 16, {"hidden_act": "gelu_new"}),
    ],
)
def test_equal_to_sentence_transformers(
    pooling: str, normalize: bool, limit: int | None, sizes: dict[str, Any], tmp_path: Path
) -> None:
    """Texts of all lengths, cut ones and empty ones, in mixed batches of ours and of theirs."""
    theirs = reference(tmp_path, pooling, normalize, limit, **sizes)
    ours = open_embedder(str(tmp_path / "st"))
    assert ours.max_tokens == theirs.max_seq_length
    texts = some_texts()
    found, expected = ours.embed_counted(texts), theirs.encode(texts, batch_size=7)
    assert found.vectors.shape == expected.shape and found.vectors.dtype == np.float32
    assert len(found.cut) > 3 and max(found.tokens) == ours.max_tokens
    np.testing.assert_allclose(found.vectors, expected, rtol=1e-4, atol=1e-5)
    assert cosines(found.vectors, expected).min() > LEAST_COSINE


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Embedder, np.ndarray]:
    """Our embedder, and their vectors of `some_texts`."""
    folder = tmp_path_factory.mktemp("pair")
    vectors = reference(folder, "mean", True, 16).encode(some_texts())
    return open_embedder(str(folder / "st")), vectors


def unmasked_pooling(monkeypatch: pytest.MonkeyPatch, embedder: Embedder) -> None:
    monkeypatch.setitem(POOLING, "mean", lambda hidden_btd, mask_bs: hidden_btd.mean(1))


def unmasked_attention(monkeypatch: pytest.MonkeyPatch, embedder: Embedder) -> None:
    hidden = embedder.encoder.hidden
    monkeypatch.setattr(embedder.encoder, "hidden", lambda ids, padding_mask_bs: hidden(ids))


def one_weight(monkeypatch: pytest.MonkeyPatch, embedder: Embedder) -> None:
    layer = embedder.encoder.blocks[1].mlp.down
    weight = layer.source.weight.detach().clone()
    weight[3] += 0.05
    monkeypatch.setattr(layer, "packed_weight", torch.ops.mkldnn._reorder_linear_weight(weight, None))


def one_token_less(monkeypatch: pytest.MonkeyPatch, embedder: Embedder) -> None:
    monkeypatch.setattr(Embedder, "max_tokens", 15)


@pytest.mark.parametrize("plant", [unmasked_pooling, unmasked_attention, one_weight, one_token_less])
def test_a_planted_error_is_seen(
    plant: Any, pair: tuple[Embedder, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder, expected = pair
    assert cosines(embedder.embed_counted(some_texts()).vectors, expected).min() > LEAST_COSINE
    plant(monkeypatch, embedder)
    assert cosines(embedder.embed_counted(some_texts()).vectors, expected).min() < 0.99999


@pytest.mark.full
@pytest.mark.network
def test_minilm_on_summaries(wiki_summaries: Path, pytestconfig: pytest.Config) -> None:
    """all-MiniLM-L6-v2 on 200 article summaries, long ones among them: cosine at least 0.99999."""
    assert pytestconfig.cache is not None
    environment = {**os.environ, "JOURNEY_HOME": str(pytestconfig.cache.mkdir("journey-home"))}
    command = [sys.executable, "-m", "llm_journey", "models", "pull", "all-minilm-l6-v2"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        pytest.skip(f"the model cannot be pulled here: {done.stderr.strip().splitlines()[-1]}")
    folder = done.stdout.strip()
    rows = (wiki_summaries / "wiki-summaries.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["text"] for row in rows]
    texts = texts[::60] + sorted(texts, key=len)[-(200 - len(texts[::60])) :]
    found = open_embedder(folder).embed_counted(texts)
    theirs = st.SentenceTransformer(folder, device="cpu").encode(texts)
    assert len(texts) == 200 and len(found.cut) > 5
    assert cosines(found.vectors, theirs).min() >= 0.99999
