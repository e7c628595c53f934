"""Figures of a changed model beside its source: each as its definition says, and intervals that cover."""

import math

import pytest
import torch
import torch.nn.functional as F

from llm_journey.evaluation.agreement import compare_logits
from llm_journey.evaluation.on_text import TextComparison, WindowFigures, bootstrap_interval, compare_window


def windows(count: int = 6) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        ids, reference = torch.randint(0, 11, (9,), generator=draw), torch.randn(9, 11, generator=draw)
        found.append((ids, reference, reference + 0.3 * torch.randn(9, 11, generator=draw)))
    return found


def test_figures_are_those_of_the_definitions() -> None:
    text = windows()
    found = TextComparison([compare_window(*window) for window in text])
    ids = torch.cat([each[1:] for each, _, _ in text])
    for index, perplexity in ((1, found.reference_perplexity), (2, found.perplexity)):
        logits = torch.cat([window[index][:-1] for window in text])
        assert perplexity == pytest.approx(math.exp(F.cross_entropy(logits.double(), ids)), rel=1e-6)
    agreement = compare_logits((reference, other) for _, reference, other in text)
    assert found.mean_kl == pytest.approx(agreement.mean_kl, rel=1e-5)
    assert found.greedy_agreement == pytest.approx(agreement.greedy_agreement)
    change, (low, high) = found.perplexity_change()
    assert change == pytest.approx(found.perplexity / found.reference_perplexity - 1)
    assert low < change < high
    assert found.describe()["mean_kl_interval"][0] < found.mean_kl < found.describe()["mean_kl_interval"][1]


def test_equal_models_differ_by_nothing() -> None:
    ids, reference, _ = windows(1)[0]
    assert compare_window(ids, reference, reference).kl == 0
    found = TextComparison([compare_window(ids, reference, reference)] * 3)
    assert found.perplexity_change() == (0, (0, 0))
    assert found.greedy_agreement == 1


def test_a_difference_is_taken_window_by_window() -> None:
    """Windows that are hard for both: each KL alone varies widely, their difference hardly."""
    first = [WindowFigures(1, 1, 10.0**number, 1) for number in range(5)]
    second = [WindowFigures(1, 1, each.kl + 0.01, 1) for each in first]
    difference, (low, high) = TextComparison(second).kl_difference(TextComparison(first))
    assert difference == pytest.approx(0.01)
    assert low == pytest.approx(0.01, abs=1e-9)
    assert high == pytest.approx(0.01, abs=1e-9)


def test_intervals_cover_the_mean_about_as_often_as_they_say() -> None:
    draw = torch.Generator().manual_seed(1)
    samples = torch.randn(200, 40, generator=draw, dtype=torch.float64) + 3
    held = [low <= 3 <= high for low, high in (bootstrap_interval(row) for row in samples.tolist())]
    assert 0.88 < sum(held) / len(held) < 0.99  # 95%, less a little: percentile intervals of 40 values are narrow
    low, high = bootstrap_interval(samples[0].tolist())
    assert high - low == pytest.approx(2 * 1.96 * float(samples[0].std(correction=0)) / 40**0.5, rel=0.1)
