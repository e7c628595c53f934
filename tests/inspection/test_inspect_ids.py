"""An inspection's arrays: maps and head figures against plain formulas, pooling, budgets, the lens, bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inspected_decoders import random_decoder

from llm_journey.core.errors import BadInputError
from llm_journey.inspection.inspection import inspect_ids
from llm_journey.inspection.lens import predictions
from llm_journey.inspection.maps import HeadFigures, cell_size, head_figures, pooled


def some_weights(size: int, seed: int = 0) -> np.ndarray:
    """A random causal map."""
    scores = np.random.default_rng(seed).normal(size=(size, size)) * 2
    weights = np.exp(scores) * np.tri(size)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 7, 600])
def test_head_figures_are_what_they_say(size: int) -> None:
    weights = some_weights(size)
    later = range(1, size) if size > 1 else range(1)
    pairs = max(size - 1, 1)
    expected = [
        -sum(w * math.log2(w) for w in weights.ravel().tolist() if w > 0) / size,
        sum(float(weights[t, 0]) for t in later) / len(later),
        sum(float(weights[t, t - 1]) for t in range(1, size)) / pairs,
        sum(float(weights[t, t]) for t in range(size)) / size,
        sum(float(weights[t, t + 1]) for t in range(size - 1)) / pairs,
        sum(float(weights[t, s]) * abs(t - s) for t in range(size) for s in range(size)) / size,
    ]
    np.testing.assert_allclose(head_figures(torch.tensor(weights)), expected, rtol=1e-4, atol=1e-6)


def test_head_figures_of_plain_heads() -> None:
    size = 8
    previous = HeadFigures(*map(np.float32, head_figures(torch.roll(torch.eye(size), 1, 1).T.contiguous())))  # type: ignore[arg-type]
    assert previous.entropy == 0 and previous.previous == 1
    even = HeadFigures(*map(np.float32, head_figures(torch.full((size, size), 1 / size))))  # type: ignore[arg-type]
    assert even.entropy == pytest.approx(
        3
    ) and even.first == even.previous == even.itself == even.following == np.float32(1 / size)


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 40), cell=st.integers(1, 45))
def test_a_pooled_map_is_where_the_queries_looked_on_average(size: int, cell: int) -> None:
    weights = some_weights(size)
    cells = pooled(weights, cell)
    assert cells.shape == (-(-size // cell),) * 2
    np.testing.assert_allclose(cells.sum(1), 1, atol=1e-5)
    for row in range(cells.shape[0]):
        for column in range(cells.shape[1]):
            block = weights[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            assert cells[row, column] == pytest.approx(block.sum(1).mean(), abs=1e-5)


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 9000), num_maps=st.integers(1, 600), budget=st.integers(1000, 1 << 30))
def test_cells_are_the_smallest_that_fit(length: int, num_maps: int, budget: int) -> None:
    def size(cell: int) -> int:
        return num_maps * math.ceil(length / cell) ** 2 * 4

    cell = cell_size(length, num_maps, budget)
    assert size(cell) <= budget or cell == length
    assert cell == 1 or size(cell - 1) > budget


def test_what_is_kept_of_a_text() -> None:
    model = random_decoder()
    ids = list(range(20))
    found = inspect_ids(model, ids)
    assert (found.length, found.cell, sorted(found.maps), len(found.lens)) == (20, 1, [0, 1, 2], 4)
    assert found.heads.entropy.shape == (3, 4) and not np.isnan(found.heads.entropy).any()
    for layer in range(3):
        for head in range(4):
            weights = found.attention(layer, head)
            np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
            assert not np.triu(weights, 1).any()
            np.testing.assert_allclose(found.heads.itself[layer, head], weights.diagonal().mean(), atol=1e-6)


def test_the_last_row_of_the_lens_is_the_models_own_prediction() -> None:
    model = random_decoder()
    ids_bt = torch.randint(61, (1, 30), generator=torch.Generator().manual_seed(3))
    predicted = inspect_ids(model, ids_bt[0].tolist()).predicted
    assert predicted is not None
    with torch.inference_mode():
        probabilities_tv = model(ids_bt)[0].softmax(-1).numpy()
    for t in range(30):
        order = np.argsort(-probabilities_tv[t])
        assert predicted.kept_ids[t].tolist() == order[:5].tolist()
        np.testing.assert_allclose(predicted.kept_probabilities[t], probabilities_tv[t, order[:5]], atol=1e-6)
        if t < 29:
            target = int(ids_bt[0, t + 1])
            assert predicted.probability[t] == pytest.approx(probabilities_tv[t, target], abs=1e-6)
            assert predicted.surprisal[t] == pytest.approx(-math.log2(probabilities_tv[t, target]), abs=1e-4)
            assert predicted.rank[t] == 1 + order.tolist().index(target)
    assert np.isnan(predicted.probability[-1]) and np.isnan(predicted.surprisal[-1]) and predicted.rank[-1] == 0


def test_predictions_in_slices_equal_predictions_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits_tv = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    targets_t = torch.arange(50) % 8 - 1
    whole = predictions(lambda x: x, logits_tv, targets_t, kept=3)
    monkeypatch.setattr("llm_journey.inspection.lens._SLICE", 9)
    parts = predictions(lambda x: x, logits_tv, targets_t, kept=3)
    for name in ("kept_ids", "kept_probabilities", "entropy", "probability", "surprisal", "rank"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), atol=1e-6, err_msg=name)


def test_a_long_text_is_pooled_within_its_budget_and_a_named_layer_is_finer() -> None:
    model, ids = random_decoder(), [index % 61 for index in range(64)]
    whole = inspect_ids(model, ids)
    budget = 12 * 32 * 32 * 4
    coarse = inspect_ids(model, ids, max_map_bytes=budget)
    assert coarse.cell == 2 and sum(maps.nbytes for maps in coarse.maps.values()) <= budget
    np.testing.assert_allclose(coarse.attention(1, 2), pooled(whole.attention(1, 2), 2), atol=1e-6)
    np.testing.assert_array_equal(coarse.heads.entropy, whole.heads.entropy)
    fine = inspect_ids(model, ids, layers=[2], max_map_bytes=4 * 64 * 64 * 4)
    assert fine.cell == 1 and list(fine.maps) == [2]
    np.testing.assert_array_equal(fine.attention(2, 3), whole.attention(2, 3))
    assert np.isnan(fine.heads.entropy[:2]).all() and fine.sharpest_head()[0] == 2


def test_the_sharpest_head_passes_over_resting_heads() -> None:
    from dataclasses import replace

    found = inspect_ids(random_decoder(), list(range(10)))
    entropy = np.full((3, 4), 2.0, dtype=np.float32)
    entropy[0, 1], entropy[1, 2] = 0.1, 0.5
    first = np.zeros((3, 4), dtype=np.float32)
    first[0, 1] = 0.99
    heads = replace(found.heads, entropy=entropy, first=first, itself=np.zeros((3, 4), dtype=np.float32))
    assert replace(found, heads=heads).sharpest_head() == (1, 2)
    resting = replace(heads, first=np.ones((3, 4), dtype=np.float32))
    assert replace(found, heads=resting).sharpest_head() == (0, 1)


def test_bad_input_is_refused_with_what_is_allowed() -> None:
    model = random_decoder()
    with pytest.raises(BadInputError, match="the text is empty"):
        inspect_ids(model, [])
    with pytest.raises(BadInputError, match="the text has 65 tokens, the model's context holds 64"):
        inspect_ids(model, [0] * 65)
    with pytest.raises(BadInputError, match="token id 61 is outside the model's vocabulary of 61"):
        inspect_ids(model, [0, 61])
    with pytest.raises(BadInputError, match="layer 3 is not one of this model's: 0 to 2"):
        inspect_ids(model, [0], layers=[0, 3])
    found = inspect_ids(model, [0], layers=[1])
    with pytest.raises(BadInputError, match="layer 0 has no map here; there are maps of layers 1"):
        found.attention(0, 0)
    with pytest.raises(BadInputError, match="head 4 is not one"):
        found.attention(1, 4)
