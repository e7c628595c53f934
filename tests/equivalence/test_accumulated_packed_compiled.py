"""Accumulated = one large batch, packed = padded with masks, compiled = eager.

Tolerances. Gradients in float32 are sums of some hundred terms in another order: 1e-6 of the largest. Over several
updates such differences grow, most where AdamW divides a gradient by its own size: 1e-4 of a loss of about 3 nats. The
proof of packing runs in float64, where 1e-11 leaves room for rounding alone; rmsnorm takes its statistics in float32,
so 1e-5 there.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_training import CONTEXT, END, VOCABULARY, make_recipe, make_trainer, steps, write_corpus

from llm_journey.datasets.batching import IGNORED, Batch, pad_batch, pad_documents
from llm_journey.datasets.packing import pack
from llm_journey.datasets.shards import TokenShards
from llm_journey.model.config import TransformerConfig
from llm_journey.model.decoder import Decoder
from llm_journey.model.loss import linear_cross_entropy, next_token_loss
from llm_journey.training.trainer import Trainer


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    """Documents of 1 to 30 letters."""
    return write_corpus(tmp_path_factory.mktemp("shards"))


def _gradients(trainer: Trainer) -> tuple[float, dict[str, torch.Tensor], list[int]]:
    """Loss, gradients and targets per micro-batch of the coming step, without taking it."""
    batches = [trainer.loader.next_batch() for _ in range(trainer.config.accumulation)]
    counts = [batch.num_targets() for batch in batches]
    loss = trainer._gradients(batches, sum(counts))
    gradients = {name: value.grad.clone() for name, value in trainer.model.named_parameters() if value.grad is not None}
    return loss, gradients, counts


@pytest.mark.parametrize("order", ["documents", "windows", "packed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulated_is_one_large_batch(order: str, smoothing: float, shards: TokenShards) -> None:
    found = []
    for batch_size, accumulation in ((12, 1), (3, 4), (1, 12)):
        recipe = make_recipe(order=order, batch_size=batch_size, accumulation=accumulation, label_smoothing=smoothing)
        trainer = make_trainer(recipe, shards)
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                parameter.normal_(0.0, 0.3)  # zeros at first would leave most gradients zero
        found.append((*_gradients(trainer), steps(make_trainer(recipe, shards), 6)))
    large_loss, large_gradients, _, large_losses = found[0]
    for loss, gradients, counts, losses in found[1:]:
        assert loss == pytest.approx(large_loss, rel=1e-6)
        assert gradients.keys() == large_gradients.keys()
        for name, gradient in gradients.items():
            scale = float(large_gradients[name].abs().max())
            assert scale > 0
            torch.testing.assert_close(gradient, large_gradients[name], rtol=0.0, atol=1e-6 * max(scale, 1.0))
        assert losses == pytest.approx(large_losses, rel=1e-4)
        assert (len(set(counts)) > 1) == (order == "packed"), "rows with differing numbers of targets are the hard case"


STYLES: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2, "qk_norm": True},
    "gpt2": {"norm": "layernorm", "positions": "learned", "mlp": "gelu_tanh", "bias": True},
    "vaswani": {"norm": "layernorm", "norm_placement": "post", "positions": "sinusoidal", "mlp": "relu2"},
    "window": {"norm": "layernorm", "sliding_window": 3, "tied_embeddings": False},
    "no positions": {"norm": "layernorm", "positions": "none"},
}


def _double_decoder(style: str) -> Decoder:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "width": 16, "num_layers": 2, "num_heads": 4, "context": CONTEXT}
    model = Decoder(TransformerConfig(**shape, **STYLES[style])).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.ndim == 1 else 0.0, 0.3)
    return model


def _tensors(batch: Batch) -> list[torch.Tensor | None]:
    arrays = (batch.inputs, batch.targets, batch.segments, batch.positions)
    return [None if array is None else torch.from_numpy(array) for array in arrays]


def _summed_losses(model: Decoder, batch: Batch, padding: torch.Tensor | None) -> torch.Tensor:
    """Nats of each position (B, T); 0 where the target is ignored."""
    inputs, targets, segments, positions = _tensors(batch)
    assert inputs is not None and targets is not None
    logits = model(inputs, segments_bt=segments, positions_bt=positions, padding_mask_bs=padding)
    return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")


def _padded(documents: list[np.ndarray], side: str) -> tuple[Batch, torch.Tensor]:
    """One document a row, with its mask; on the left with positions that count from each document's beginning."""
    if side == "right":
        batch = pad_documents(documents, pad_id=0, start_id=END)
        mask = torch.from_numpy(batch.targets != IGNORED)
        return batch, mask
    inputs, real = pad_batch([[END, *document[:-1]] for document in documents], pad_id=0, side="left")
    targets = np.full_like(inputs, IGNORED)
    targets[real] = np.concatenate(documents)
    return Batch(inputs, targets, positions=np.maximum(np.cumsum(real, axis=1) - 1, 0)), torch.from_numpy(real)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("style", STYLES)
def test_packed_is_padded_with_masks(style: str, side: str) -> None:
    """The loss of each single document and all gradients of that loss."""
    model = _double_decoder(style)
    tolerance = 1e-5 if style == "llama" else 1e-11
    generator = np.random.default_rng(1)
    documents = [generator.integers(0, END, length) for length in (3, 7, 1, 12, 2, 5, 4)]
    packed = pack(documents, CONTEXT, pad_id=0, start_id=END)
    assert len(packed.inputs) < len(documents), "several documents share a row"
    assert packed.segments is not None
    padded, padding = _padded(documents, side)
    ours, theirs = _summed_losses(model, packed, None), _summed_losses(model, padded, padding)
    rows = [document.tolist() for document in documents]
    checked = 0
    for row in range(len(packed.inputs)):
        for segment in np.unique(packed.segments[row]):
            places = torch.from_numpy((packed.segments[row] == segment) & (packed.targets[row] != IGNORED))
            if not bool(places.any()):
                continue
            number = rows.index(packed.targets[row][places.numpy()].tolist())
            losses = [ours[row][places].sum(), theirs[number].sum()]
            torch.testing.assert_close(losses[0], losses[1], atol=tolerance, rtol=tolerance)
            gradients = [
                torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
                for loss in losses
            ]
            for one, other in zip(*gradients, strict=True):
                torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
            checked += 1
    assert checked == len(documents)


@pytest.mark.parametrize("style", STYLES)
def test_packed_loss_of_training_is_that_of_the_padded_batch(style: str) -> None:
    """What the trainer computes (float32, chunked) against plain cross-entropy on padded rows."""
    model = _double_decoder(style).float()
    generator = np.random.default_rng(2)
    documents = [generator.integers(0, END, length) for length in (4, 9, 2, 11, 6)]
    inputs, targets, segments, positions = _tensors(pack(documents, CONTEXT, pad_id=0, start_id=END))
    assert inputs is not None and targets is not None
    hidden = model.hidden(inputs, segments_bt=segments, positions_bt=positions)
    packed_loss = linear_cross_entropy(hidden, model.head_weight, targets, label_smoothing=0.1, chunk=7)
    padded, padding = _padded(documents, "right")
    assert int((targets != IGNORED).sum()) == padded.num_targets() == 32
    logits = model(torch.from_numpy(padded.inputs), padding_mask_bs=padding)
    padded_loss = next_token_loss(logits, torch.from_numpy(padded.targets), label_smoothing=0.1)
    torch.testing.assert_close(packed_loss, padded_loss, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("order", ["documents", "packed"])
def test_a_block_is_traced_whole_and_computes_the_same(
    order: str, shards: TokenShards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile without its code generator, and without leave to fall back: the same kernels, the same losses."""
    expected = steps(make_trainer(make_recipe(order=order), shards), 3)
    torch._dynamo.reset()
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled(self, backend="eager", fullgraph=True))
    found = steps(make_trainer(make_recipe(order=order, compile=True), shards), 3)
    assert found == expected


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler (g++)")
@pytest.mark.parametrize("order", ["documents", "packed"])
def test_compiled_is_eager(order: str, shards: TokenShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated code adds up in another order: losses of 6 steps agree to 1e-4."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    expected = steps(make_trainer(make_recipe(order=order), shards), 6)
    torch._dynamo.reset()
    found = steps(make_trainer(make_recipe(order=order, compile=True), shards), 6)
    assert found == pytest.approx(expected, rel=1e-4)
