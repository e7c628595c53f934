"""Learning-rate schedules: in [0, 1], without jumps, up in the warmup and down in the decay."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.core.config import validate
from llm_journey.core.errors import BadInputError
from llm_journey.training.schedule import ScheduleConfig, learning_rate_factor

NAMES = ("cosine", "wsd", "constant")
shares = st.floats(0, 1)
configs = st.builds(
    lambda name, warmup, decay, final: ScheduleConfig(
        name=name, warmup=warmup, decay=(1 - warmup) * decay, final=final
    ),
    name=st.sampled_from(NAMES),
    warmup=shares,
    decay=shares,
    final=shares,
)


@settings(max_examples=200, deadline=None)
@given(config=configs, progress=st.floats(-0.5, 1.5))
def test_a_factor_of_the_peak(config: ScheduleConfig, progress: float) -> None:
    assert 0.0 <= learning_rate_factor(config, progress) <= 1.0 + 1e-12


@settings(max_examples=200, deadline=None)
@given(config=configs, one=shares, other=shares)
def test_up_in_the_warmup_and_never_up_after_it(config: ScheduleConfig, one: float, other: float) -> None:
    first, second = sorted((one, other))
    before, after = learning_rate_factor(config, first), learning_rate_factor(config, second)
    if second < config.warmup:
        assert before <= after
    elif first >= config.warmup:
        assert before >= after - 1e-12


@settings(max_examples=200, deadline=None)
@given(config=configs, progress=shares)
def test_no_jumps(config: ScheduleConfig, progress: float) -> None:
    """The change over a small step is bounded by the steepest slope of its pieces; a piece of no length may jump."""
    step = 1e-6
    if 0 < config.warmup < 1e-3 or 0 < config.decay < 1e-3 or 1e-3 > 1 - config.warmup > 0:
        return
    slope = max(1 / config.warmup if config.warmup else 0, 1 / config.decay if config.decay else 0)
    slope = max(slope, math.pi / 2 / max(1 - config.warmup, 1e-3))
    change = abs(learning_rate_factor(config, progress + step) - learning_rate_factor(config, progress))
    at_the_end = progress + step >= 1.0 and config.warmup == 1.0  # the warmup fills everything: then comes the peak
    assert change <= slope * step * 1.01 or at_the_end


@pytest.mark.parametrize("name", NAMES)
def test_the_corners(name: str) -> None:
    config = ScheduleConfig(name=name, warmup=0.1, decay=0.4, final=0.2)  # type: ignore[arg-type]
    assert learning_rate_factor(config, 0.0) == 0.0
    assert learning_rate_factor(config, 0.05) == pytest.approx(0.5)
    assert learning_rate_factor(config, 0.1) == pytest.approx(1.0)
    assert learning_rate_factor(config, 1.0) == pytest.approx(1.0 if name == "constant" else 0.2)
    middle = {"cosine": 0.2 + 0.8 * (1 + math.cos(math.pi * 0.5 / 0.9)) / 2, "wsd": 1.0, "constant": 1.0}
    assert learning_rate_factor(config, 0.6) == pytest.approx(middle[name])
    if name == "wsd":
        assert learning_rate_factor(config, 0.8) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"warmup": -0.1}, "shares of the budget"),
        ({"warmup": 0.6, "decay": 0.6}, "their sum must lie"),
        ({"final": 1.1}, r"final must lie in \[0, 1\], not 1.1"),
        ({"name": "linear"}, "'cosine', 'wsd' or 'constant'"),
    ],
)
def test_schedules_that_cannot_be(values: dict[str, object], reason: str) -> None:
    with pytest.raises(BadInputError, match=reason):
        validate(ScheduleConfig, values, "recipe.yaml")
