"""Pictures of optimization: paths on two landscapes, the price of conditioning, decay, Muon."""

import math
from typing import Any

import numpy as np

from llm_journey.foundations.linear_algebra import Floats, rotation, svd
from llm_journey.foundations.optimization import (
    Gradient,
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
    rosenbrock,
    rosenbrock_gradient,
)
from llm_journey.foundations.pictures.canvas import (
    BLUE,
    FAINT,
    GREEN,
    ORANGE,
    PINK,
    Picture,
    dress,
    legend,
    note,
)


def _draw_descent(figure: Any) -> None:
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.1, 1.1, 1])
    turn = rotation(0.45)
    bowl = Quadratic(turn @ np.diag([1.0, 25.0]) @ turn.T, np.zeros(2))
    start_2 = turn @ np.array([-3.6, 0.62])
    gd_rate, _ = best_gradient_descent(1.0, 25.0)
    ball_rate, ball_decay, _ = best_momentum(1.0, 25.0)
    steps = 80
    paths = (
        ("gradient descent", BLUE, gradient_descent(bowl.gradient, start_2, steps=steps, learning_rate=gd_rate)),
        ("momentum", ORANGE, momentum(bowl.gradient, start_2, steps=steps, learning_rate=ball_rate, decay=ball_decay)),
        ("Adam", GREEN, _best_rate(bowl.value, bowl.gradient, start_2, adam, steps)[1]),
    )
    dress(left, "A bowl, 25 times as steep one way")
    _contours(left, bowl.value, (-4.3, 1.6), (-2.6, 1.6), np.geomspace(0.03, 60, 11))
    dress(right, "The bowl: value by step", "step", "value")
    for name, color, path in paths:
        left.plot(*path.T, "o-", color=color, linewidth=1.3, markersize=2.4, label=name)
        right.semilogy(np.maximum(bowl.value(path), 1e-16), color=color, linewidth=1.8, label=name)
    right.set_ylim(1e-12, 100)
    legend(left, "upper left")

    dress(middle, "Rosenbrock's curved valley, 400 steps")
    _contours(middle, lambda x_n2: np.log10(1e-3 + rosenbrock(x_n2)), (-1.6, 1.6), (-0.6, 1.9), np.linspace(-2, 3, 11))
    start_2 = np.array([-1.2, 1.0])
    slope = rosenbrock_gradient
    valley = (
        ("gradient descent, lr 0.001", BLUE, gradient_descent(slope, start_2, steps=400, learning_rate=0.001)),
        ("momentum, lr 0.001", ORANGE, momentum(slope, start_2, steps=400, learning_rate=0.001)),
        ("Adam, lr 0.1 to 0", GREEN, adam(slope, start_2, steps=400, learning_rate=linear_decay(0.1, 400))),
    )
    for name, color, path in valley:
        middle.plot(*path.T, "-", color=color, linewidth=1.5, label=f"{name}: {float(rosenbrock(path[-1])):.2g}")
        middle.plot(*path[-1], "o", color=color, markersize=5)
    middle.plot(1, 1, "*", color=FAINT, markersize=12)
    legend(middle, "lower left")


def _contours(axis: Any, value: Any, x_span: tuple[float, float], y_span: tuple[float, float], levels: Floats) -> None:
    x, y = np.meshgrid(np.linspace(*x_span, 200), np.linspace(*y_span, 200))
    axis.contour(x, y, value(np.stack([x, y], axis=-1)), levels=levels, cmap="Greys_r", linewidths=0.7, alpha=0.7)
    axis.grid(False)
    axis.set(xlim=x_span, ylim=y_span)


def _draw_convergence(figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    kappas = np.array([2, 5, 10, 20, 50, 100, 200, 500, 1000])
    dress(left, "Steps until the error is a millionth", "condition number κ", "steps")
    found: dict[str, list[int]] = {"gradient descent": [], "momentum": []}
    for kappa in kappas:
        bowl = Quadratic(np.diag([1.0, float(kappa)]), np.zeros(2))
        rate, _ = best_gradient_descent(1.0, float(kappa))
        ball_rate, decay, _ = best_momentum(1.0, float(kappa))
        start_2, most = np.ones(2), int(12 * kappa) + 60
        paths = {
            "gradient descent": gradient_descent(bowl.gradient, start_2, steps=most, learning_rate=rate),
            "momentum": momentum(bowl.gradient, start_2, steps=most, learning_rate=ball_rate, decay=decay),
        }
        for name, path in paths.items():
            above = np.flatnonzero(np.linalg.norm(path, axis=1) > 1e-6 * np.linalg.norm(start_2))
            found[name].append(int(above[-1]) + 1)
    for name, color in (("gradient descent", BLUE), ("momentum", ORANGE)):
        left.loglog(kappas, found[name], "o", color=color, markersize=5, label=name)
    million = math.log(1e6)
    left.loglog(
        kappas, [million / -math.log(best_gradient_descent(1, k)[1]) for k in kappas], "--", color=BLUE, linewidth=1
    )
    left.loglog(kappas, [million / -math.log(best_momentum(1, k)[2]) for k in kappas], "--", color=ORANGE, linewidth=1)
    note(left, "dashed: ln 10⁶ / −ln(rate), ∝ κ and ∝ √κ", 2, 4500, color=FAINT)
    left.set_ylim(5, 9000)
    legend(left, "lower right")

    dress(right, "Gradient descent, κ = 25: rate against 2 / L", "step", "value")
    bowl = Quadratic(np.diag([1.0, 25.0]), np.zeros(2))
    for factor, color in ((0.2, PINK), (0.9, GREEN), (1 / (1 + 1 / 25), BLUE), (1.02, ORANGE)):
        path = gradient_descent(bowl.gradient, np.array([4.0, 1.0]), steps=120, learning_rate=factor * 2 / 25)
        right.semilogy(bowl.value(path), color=color, linewidth=1.8, label=f"{factor:.2f} · 2 / L")
    right.set_ylim(1e-9, 1e4)
    legend(right, "lower left")


def _draw_weight_decay(figure: Any) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    scales = np.array([0.01, 0.1, 1.0, 10.0])
    steps, rate, l2, decay = 600, 0.001, 0.2, 2.0

    def noise() -> Any:
        generator = np.random.default_rng(0)
        return lambda _: scales * generator.normal(size=4)

    through = adam(noise(), np.ones(4), steps=steps, learning_rate=rate, l2=l2)
    apart = adamw(noise(), np.ones(4), steps=steps, learning_rate=rate, weight_decay=decay)
    paths = (
        (f"Adam, L2 of {l2:g}: decay goes through the division", through),
        (f"AdamW, weight decay of {decay:g}: it stands by itself", apart),
    )
    for axis, (title, path) in zip(axes, paths, strict=True):
        dress(axis, title, "step", "weight")
        for index, color in enumerate((BLUE, GREEN, ORANGE, PINK)):
            axis.plot(path[:, index], color=color, linewidth=1.6, label=f"gradients of size {scales[index]:g}")
        axis.set_ylim(0, 1.1)
    axes[1].plot((1 - rate * decay) ** np.arange(steps + 1), "--", color=FAINT, linewidth=1.2, label="(1 − lr · wd)ᵗ")
    legend(axes[0], "lower left")
    legend(axes[1], "lower left")


def _draw_muon(figure: Any) -> None:
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    dress(left, "Newton-Schulz: one singular value", "before", "after")
    values = np.concatenate([np.linspace(0.0005, 0.02, 40), np.linspace(0.02, 1, 200)])
    for steps, color in ((1, PINK), (3, GREEN), (5, BLUE)):
        after = [_iterated(float(s), steps) for s in values]
        left.plot(values, after, color=color, linewidth=1.7, label=f"{steps} step{'s' if steps > 1 else ''}")
    left.axhline(1, color=FAINT, linewidth=1, linestyle="--")
    left.set_ylim(0, 1.35)
    legend(left, "lower right")

    generator = np.random.default_rng(0)
    turn_jj = np.linalg.qr(generator.normal(size=(24, 24)))[0]
    inputs_nj = generator.normal(size=(512, 24)) * np.geomspace(1, 1 / 30, 24) @ turn_jj
    problem = LinearRegression(inputs_nj, inputs_nj @ generator.normal(size=(16, 24)).T)
    start_ij = np.zeros((16, 24))
    slope_ij = problem.gradient(start_ij)
    dress(middle, "Singular values of the first update", "number", "share of the largest")
    for matrix, color, name in ((slope_ij, ORANGE, "gradient"), (newton_schulz(slope_ij), BLUE, "Newton-Schulz of it")):
        s_k = svd(matrix)[1]
        middle.semilogy(range(1, 17), s_k / s_k[0], "o-", color=color, markersize=3.5, linewidth=1, label=name)
    middle.set_ylim(2e-4, 3)
    legend(middle, "lower left")

    steps = 300
    dress(
        right,
        f"Linear layer, κ of the Hessian {_hessian_condition(inputs_nj):,.0f}",
        "step",
        "loss, share of the first",
    )
    methods = (
        ("gradient descent", ORANGE, gradient_descent),
        ("momentum", PINK, momentum),
        ("Adam", GREEN, adam),
        ("Muon", BLUE, muon),
    )
    for name, color, method in methods:
        rate, path = _best_rate(problem.value, problem.gradient, start_ij, method, steps)
        losses = np.array([problem.value(weight_ij) for weight_ij in path])
        right.semilogy(losses / losses[0], color=color, linewidth=1.8, label=f"{name}, lr {rate:.2g}")
    legend(right, "lower left")


def _iterated(value: float, steps: int) -> float:
    """What Newton-Schulz makes of a singular value, without the scaling at its start: fed as one of two values."""
    rest = math.sqrt(max(1 - value * value, 0.0))  # so that the matrix diag(value, rest) has norm 1
    return abs(float(newton_schulz(np.diag([value, rest]), steps)[0, 0]))


def _hessian_condition(inputs_nj: Floats) -> float:
    s_k = svd(inputs_nj.T @ inputs_nj)[1]
    return float(s_k[0] / s_k[-1])


def _best_rate(value: Any, gradient: Gradient, start: Floats, method: Any, steps: int) -> tuple[float, Floats]:
    """The peak rate, of a grid by factors of two, whose last value is least (rates fall to zero); and its path."""
    best: tuple[float, float, Floats] | None = None
    for rate in 2.0 ** np.arange(-12, 6):
        with np.errstate(over="ignore", invalid="ignore"):
            path = method(gradient, start, steps=steps, learning_rate=linear_decay(float(rate), steps))
            last = float(value(path[-1]))
        if np.isfinite(path).all() and math.isfinite(last) and (best is None or last < best[0]):
            best = last, float(rate), path
    assert best is not None, "some rate of the grid is small enough"
    return best[1], best[2]


PICTURES = (
    Picture(
        name="descent",
        title="Three ways downhill",
        caption=(
            "In the bowl gradient descent and momentum have the best rates in theory, Adam the best of a grid, "
            "falling to zero. Momentum swings wider and still arrives far sooner, for it gathers speed along the flat "
            "direction; Adam's step for each coordinate helps less where, as here, the bowl lies across them. In the "
            "valley the rates are small, to show the paths; values at the end stand beside them."
        ),
        used_in=("training/optim.py", "Optimizer"),
        draw=_draw_descent,
    ),
    Picture(
        name="convergence",
        title="The price of bad conditioning",
        caption=(
            "On a quadratic the best gradient descent needs steps in proportion to κ, the best momentum to √κ. Dots "
            "are counted; dashed lines are the rates in the long run, which momentum reaches only after its first "
            "swings. Above a rate of 2 / L (L the steepest curvature) it diverges; a warmup waits while the curvature "
            "is large (Gilmer et al. 2022)."
        ),
        used_in=("training/schedule.py", "learning_rate_factor"),
        draw=_draw_convergence,
    ),
    Picture(
        name="weight_decay",
        title="Decoupled weight decay: Adam is not AdamW",
        caption=(
            "Four weights whose gradients are pure noise of different sizes. With L2 in the gradient, Adam divides "
            "the decay by the gradient's size too: weights with large gradients hardly decay, those with small ones "
            "shrink by a full step each time. AdamW shrinks all of them at the same rate (Loshchilov and Hutter "
            "2019)."
        ),
        used_in=("training/optim.py", "_parameter_groups"),
        draw=_draw_weight_decay,
    ),
    Picture(
        name="muon",
        title="Muon: every direction of an update alike",
        caption=(
            "The quintic lifts small singular values and keeps large ones near 1, so that five steps make a gradient "
            "nearly orthogonal. Right: each method at the peak rate, of a grid by factors of two, whose last loss is "
            "least, falling to zero. A quadratic without noise is momentum's home ground, and it wins here; Muon "
            "passes gradient descent and Adam, for it moves along flat directions as fast as along steep ones."
        ),
        used_in=("training/optim.py", "Muon"),
        draw=_draw_muon,
    ),
)
