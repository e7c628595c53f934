"""Metrics of an order: by hand, within bounds, never NaN; intervals and paired tests that say what they should."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.errors import BadInputError
from llm_journey.evaluation.ranking import (
    METRICS,
    average_precision,
    ndcg,
    per_query,
    precision,
    recall,
    reciprocal_rank,
)
from llm_journey.evaluation.stats import bootstrap_mean, paired_difference

GAINS = {"a": 3.0, "b": 1.0, "c": 0.0, "d": 2.0}


def test_by_hand() -> None:
    ranked = ["c", "a", "x", "b"]
    best = 3 + 2 / math.log2(3) + 1 / 2
    assert ndcg(ranked, GAINS, 10) == pytest.approx((3 / math.log2(3) + 1 / math.log2(5)) / best)
    assert ndcg(ranked, GAINS, 1) == 0
    assert recall(ranked, GAINS, 3) == pytest.approx(1 / 3) and precision(ranked, GAINS, 3) == pytest.approx(1 / 3)
    assert average_precision(ranked, GAINS, 10) == pytest.approx((1 / 2 + 2 / 4) / 3)
    assert reciprocal_rank(ranked, GAINS, 10) == 1 / 2 and reciprocal_rank(ranked, GAINS, 1) == 0


@settings(max_examples=100, deadline=None)
@given(
    ranked=st.lists(st.sampled_from("abcdefgh"), unique=True),
    gains=st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from([0.0, 1.0, 2.0, 5.0]), min_size=1),
    cut=st.integers(1, 9),
)
def test_every_metric_is_a_share(ranked: list[str], gains: dict[str, float], cut: int) -> None:
    if not any(gains.values()):
        gains["a"] = 1.0
    perfect = sorted(gains, key=lambda document: -gains[document])
    for name, metric in METRICS.items():
        assert 0 <= metric(ranked, gains, cut) <= 1
        if name != "precision":
            assert metric(ranked, gains, cut) <= metric(perfect, gains, cut) + 1e-12
    assert ndcg(perfect, gains, cut) == pytest.approx(1)


def test_by_query() -> None:
    judged = {"1": {"a": 1.0}, "2": {"b": 1.0}}
    assert per_query("recall@2", {"1": ["x", "a"]}, judged).tolist() == [1, 0]
    with pytest.raises(BadInputError, match="unknown metric 'f1'"):
        per_query("f1@3", {}, judged)
    for name in ("ndcg", "ndcg@", "ndcg@0", "ndcg@x"):
        with pytest.raises(BadInputError, match="how many documents"):
            per_query(name, {}, judged)


def test_intervals() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(0.5, 0.2, size=300)
    mean = bootstrap_mean(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(300)
    assert mean.value == pytest.approx(values.mean()) and mean.low == pytest.approx(mean.value - half, abs=0.005)
    assert bootstrap_mean(values) == mean
    better = paired_difference(values + draw.normal(0.03, 0.05, size=300), values)
    assert better.excludes_zero and better.p < 0.001
    same = paired_difference(values, values)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1) and not same.excludes_zero
    for wrong, reason in (([], "no value"), ([0.1, float("nan")], "not finite")):
        with pytest.raises(BadInputError, match=reason):
            bootstrap_mean(np.array(wrong))
    with pytest.raises(BadInputError, match="not of the same questions"):
        paired_difference(values, values[1:])
