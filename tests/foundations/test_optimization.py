"""Optimizers step by step against torch.optim; their rates of convergence against the theory."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_journey.foundations.linear_algebra import Floats
from llm_journey.foundations.optimization import (
    LinearRegression,
    Quadratic,
    adam,
    adamw,
    best_gradient_descent,
    best_momentum,
    gradient_descent,
    linear_decay,
    momentum,
    muon,
    newton_schulz,
    orthogonal_factor,
    rosenbrock,
    rosenbrock_gradient,
)
from llm_journey.training.optim import Muon, orthogonalize

seeds = st.integers(0, 2**32 - 1)


def torch_path(
    optimizer: Callable[..., torch.optim.Optimizer], value: Any, start: Floats, steps: int, **options: Any
) -> Floats:
    """The trajectory of a torch optimizer; `value` is a torch function, differentiated by torch."""
    x = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    made, path = optimizer([x], **options), [start]
    for _ in range(steps):
        made.zero_grad()
        value(x).backward()
        made.step()
        path.append(x.detach().numpy().copy())
    return np.array(path)


def valley(x: Any) -> Any:
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


START = np.array([-1.2, 1.0])
METHODS: list[tuple[str, Any, dict[str, Any], Any, dict[str, Any]]] = [
    ("gradient descent", gradient_descent, {"learning_rate": 1e-3}, torch.optim.SGD, {"lr": 1e-3}),
    ("momentum", momentum, {"learning_rate": 1e-3}, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
    (
        "nesterov",
        momentum,
        {"learning_rate": 1e-3, "decay": 0.8, "nesterov": True},
        torch.optim.SGD,
        {"lr": 1e-3, "momentum": 0.8, "nesterov": True},
    ),
    ("adam", adam, {"learning_rate": 0.02}, torch.optim.Adam, {"lr": 0.02}),
    (
        "adam with l2",
        adam,
        {"learning_rate": 0.02, "betas": (0.8, 0.95), "epsilon": 1e-3, "l2": 0.3},
        torch.optim.Adam,
        {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3},
    ),
    (
        "adamw",
        adamw,
        {"learning_rate": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3},
        torch.optim.AdamW,
        {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3},
    ),
]


@pytest.mark.parametrize(
    ("name", "ours", "our_options", "theirs", "their_options"), METHODS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_every_step_is_torchs(name: str, ours: Any, our_options: Any, theirs: Any, their_options: Any) -> None:
    """Rounding grows along a curved valley: 200 steps agree to 1e-9 in float64."""
    found = ours(rosenbrock_gradient, START, steps=200, **our_options)
    expected = torch_path(theirs, valley, START, 200, **their_options)
    np.testing.assert_allclose(found, expected, atol=1e-9, rtol=0)
    assert float(np.abs(found[-1] - START).max()) > 0.05


def regression(seed: int = 0, rows: int = 4, columns: int = 6) -> tuple[LinearRegression, Floats]:
    generator = np.random.default_rng(seed)
    inputs_nj = generator.normal(size=(20, columns))
    return LinearRegression(inputs_nj, generator.normal(size=(20, rows))), generator.normal(size=(rows, columns))


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5)])
def test_muon_is_that_of_training(shape: tuple[int, int]) -> None:
    """Training's computes Newton-Schulz in float32: sixty steps of 0.02 agree to 1e-5."""
    problem, start_ij = regression(0, *shape)
    inputs, targets = torch.tensor(problem.inputs_nj), torch.tensor(problem.targets_ni)
    expected = torch_path(
        Muon,
        lambda w: (inputs @ w.T - targets).square().sum() / 40,
        start_ij,
        60,
        lr=0.02,
        momentum=0.9,
        weight_decay=0.1,
    )
    found = muon(problem.gradient, start_ij, steps=60, learning_rate=0.02, decay=0.9, weight_decay=0.1)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_muon_is_torchs(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own iterates in bfloat16; made to keep float64, it agrees to 1e-9."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    problem, start_ij = regression(1, *shape)
    inputs, targets = torch.tensor(problem.inputs_nj), torch.tensor(problem.targets_ni)
    expected = torch_path(
        torch.optim.Muon,
        lambda w: (inputs @ w.T - targets).square().sum() / 40,
        start_ij,
        30,
        lr=0.02,
        momentum=0.95,
        weight_decay=0.1,
    )
    found = muon(problem.gradient, start_ij, steps=30, learning_rate=0.02, decay=0.95, weight_decay=0.1)
    np.testing.assert_allclose(found, expected, atol=1e-9, rtol=0)


@given(seeds, st.integers(1, 7), st.integers(1, 7))
def test_newton_schulz_is_that_of_training_and_acts_on_singular_values(seed: int, rows: int, columns: int) -> None:
    a_ij = np.random.default_rng(seed).normal(size=(rows, columns))
    found = newton_schulz(a_ij)
    np.testing.assert_allclose(found, orthogonalize(torch.tensor(a_ij)[None], dtype=torch.float64)[0], atol=1e-10)
    u_ik, s_k, vt_kj = scipy.linalg.svd(a_ij, full_matrices=False)
    s_k = s_k / np.linalg.norm(s_k)
    for _ in range(5):
        s_k = 3.4445 * s_k - 4.7750 * s_k**3 + 2.0315 * s_k**5
    np.testing.assert_allclose(found, (u_ik * s_k) @ vt_kj, atol=1e-10)


@given(seeds, st.integers(1, 7), st.integers(1, 7))
def test_the_orthogonal_factor_is_scipys_polar(seed: int, rows: int, columns: int) -> None:
    a_ij = np.random.default_rng(seed).normal(size=(rows, columns))
    expected, _ = scipy.linalg.polar(a_ij, side="right" if rows >= columns else "left")
    np.testing.assert_allclose(orthogonal_factor(a_ij), expected, atol=1e-11 * np.linalg.cond(a_ij))


def test_the_orthogonal_factor_needs_full_rank() -> None:
    with pytest.raises(ValueError, match="without full rank"):
        orthogonal_factor(np.ones((2, 2)))


@given(seeds, st.integers(1, 5), st.floats(0.01, 0.19))
def test_gradient_descent_on_a_quadratic_is_a_power(seed: int, width: int, rate: float) -> None:
    """x_t - c = (I - lr H)^t (x_0 - c)."""
    generator = np.random.default_rng(seed)
    turn_dd = np.linalg.qr(generator.normal(size=(width, width)))[0]
    bowl = Quadratic(turn_dd @ np.diag(generator.uniform(1, 10, width)) @ turn_dd.T, generator.normal(size=width))
    start_d = generator.normal(size=width)
    path = gradient_descent(bowl.gradient, start_d, steps=25, learning_rate=rate)
    for step in (0, 1, 7, 25):
        power_dd = np.linalg.matrix_power(np.eye(width) - rate * bowl.hessian_dd, step)
        np.testing.assert_allclose(path[step] - bowl.minimum_d, power_dd @ (start_d - bowl.minimum_d), atol=1e-9)
    np.testing.assert_allclose(
        bowl.gradient(start_d), scipy.optimize.approx_fprime(start_d, lambda x: bowl.value(x)), atol=1e-4
    )


@given(st.floats(0.1, 3), st.floats(1.5, 300))
def test_rates_of_convergence_are_the_theorys(smallest: float, kappa: float) -> None:
    """Gradient descent shrinks by its rate at every step; momentum in the long run, where all it has are its roots."""
    largest = smallest * kappa
    bowl = Quadratic(np.diag([smallest, largest]), np.zeros(2))
    rate, shrink = best_gradient_descent(smallest, largest)
    path = gradient_descent(bowl.gradient, np.ones(2), steps=20, learning_rate=rate)
    np.testing.assert_allclose(np.abs(path[1:]), shrink * np.abs(path[:-1]), rtol=1e-7, atol=1e-15)
    ball_rate, decay, shrink = best_momentum(smallest, largest)
    # The iteration (x, v) -> (x - lr (m v + h x), m v + h x): its spectral radius is the rate, at both curvatures.
    for curvature in (smallest, largest):
        step_22 = np.array([[1 - ball_rate * curvature, -ball_rate * decay], [curvature, decay]])
        # A double root, so rounding of 1e-16 shows as 1e-8 in it.
        assert float(np.abs(np.linalg.eigvals(step_22)).max()) == pytest.approx(shrink, abs=1e-6)
        start_2 = np.array([1.0, 0.0])
        ours = momentum(lambda x, h=curvature: h * x, np.ones(1), steps=9, learning_rate=ball_rate, decay=decay)
        np.testing.assert_allclose(ours[9, 0], (np.linalg.matrix_power(step_22, 9) @ start_2)[0], atol=1e-9)


def test_gradient_descent_diverges_above_two_over_the_curvature() -> None:
    bowl = Quadratic(np.diag([1.0, 25.0]), np.zeros(2))
    below = gradient_descent(bowl.gradient, np.ones(2), steps=200, learning_rate=0.99 * 2 / 25)
    above = gradient_descent(bowl.gradient, np.ones(2), steps=200, learning_rate=1.01 * 2 / 25)
    assert np.linalg.norm(below[-1]) < 0.1 < 10 < np.linalg.norm(above[-1])


@pytest.mark.parametrize("curvatures", [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_curvatures_are_positive_and_in_order(curvatures: tuple[float, float]) -> None:
    for function in (best_gradient_descent, best_momentum):
        with pytest.raises(ValueError, match="positive and in order"):
            function(*curvatures)


def test_adam_does_not_see_the_scale_of_gradients_and_adamw_decays_alike() -> None:
    paths = [
        adam(lambda x, k=scale: k * rosenbrock_gradient(x), START, steps=50, learning_rate=0.05, epsilon=0.0)
        for scale in (1.0, 1e6)
    ]
    np.testing.assert_allclose(paths[0], paths[1], atol=1e-9)
    still = adamw(lambda x: np.zeros_like(x), START, steps=30, learning_rate=0.1, weight_decay=0.2)
    np.testing.assert_allclose(still, START * (1 - 0.02) ** np.arange(31)[:, None], rtol=1e-12)


def test_a_learning_rate_may_follow_the_step() -> None:
    rate = linear_decay(0.1, 4)
    assert [rate(step) for step in range(5)] == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0])
    path = gradient_descent(lambda x: np.ones_like(x), np.zeros(1), steps=4, learning_rate=rate)
    np.testing.assert_allclose(path[:, 0], [0, -0.1, -0.175, -0.225, -0.25], atol=1e-15)


def test_problems_are_scipys_and_their_gradients_hold() -> None:
    points_n2 = np.random.default_rng(0).normal(size=(6, 2))
    np.testing.assert_allclose(rosenbrock(points_n2), [scipy.optimize.rosen(x_2) for x_2 in points_n2], rtol=1e-12)
    for x_2 in points_n2:
        np.testing.assert_allclose(rosenbrock_gradient(x_2), scipy.optimize.rosen_der(x_2), rtol=1e-10)
    problem, weight_ij = regression()
    slope = scipy.optimize.approx_fprime(weight_ij.ravel(), lambda w: problem.value(w.reshape(4, 6)))
    np.testing.assert_allclose(problem.gradient(weight_ij).ravel(), slope, atol=1e-5)
    best_ij = scipy.linalg.lstsq(problem.inputs_nj, problem.targets_ni)[0].T
    np.testing.assert_allclose(problem.gradient(best_ij), 0, atol=1e-12)
    assert math.isfinite(problem.value(best_ij))
