"""Optimization: gradient descent, momentum, Adam, AdamW, Muon, and problems to watch them on.

Every method takes a gradient and a start of any shape (...) and returns its whole trajectory (steps + 1, ...), the
start included, so that the path can be drawn. The learning rate is a number, or a function of the step from 0. Units:
gradients are in units of the value per unit of x. Left out: stochastic gradients (hand in a gradient that draws),
line searches, second-order methods. The forms are PyTorch's, and tests prove them equal to torch.optim.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llm_journey.foundations.linear_algebra import Floats, svd

Gradient = Callable[[Floats], Floats]
LearningRate = float | Callable[[int], float]

# Jordan et al. 2024: an odd quintic a s + b s^3 + c s^5 whose iterates bring singular values in (0, 1] near one.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def gradient_descent(gradient: Gradient, start: Floats, *, steps: int, learning_rate: LearningRate) -> Floats:
    """x <- x - lr g(x): straight down the slope (Cauchy 1847). Returns (steps + 1, ...).

    On a quadratic with curvatures in [mu, L] it converges for lr < 2 / L.
    """
    path = _path(start, steps)
    for step in range(steps):
        path[step + 1] = path[step] - _rate(learning_rate, step) * gradient(path[step])
    return path


def momentum(
    gradient: Gradient,
    start: Floats,
    *,
    steps: int,
    learning_rate: LearningRate,
    decay: float = 0.9,
    nesterov: bool = False,
) -> Floats:
    """v <- m v + g(x), x <- x - lr v: a heavy ball that keeps rolling (Polyak 1964). Returns (steps + 1, ...).

    nesterov: x <- x - lr (g + m v), looking ahead (Nesterov 1983, in the form of Sutskever et al. 2013, section 2).
    """
    path, velocity = _path(start, steps), np.zeros_like(start, dtype=np.float64)
    for step in range(steps):
        slope = gradient(path[step])
        velocity = decay * velocity + slope
        direction = slope + decay * velocity if nesterov else velocity
        path[step + 1] = path[step] - _rate(learning_rate, step) * direction
    return path


def adam(
    gradient: Gradient,
    start: Floats,
    *,
    steps: int,
    learning_rate: LearningRate,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    l2: float = 0.0,
) -> Floats:
    """m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, x <- x - lr m' / (sqrt(v') + eps). Returns (steps + 1, ...).

    m' = m / (1 - b1^t) and v' = v / (1 - b2^t) undo the start at zero (Kingma and Ba 2015, algorithm 1). Each number
    moves by about lr a step, whatever the scale of its gradient. l2 adds l2 x to the gradient, where it is scaled too.
    """
    return _adaptive(gradient, start, steps, learning_rate, betas, epsilon, l2=l2, weight_decay=0.0)


def adamw(
    gradient: Gradient,
    start: Floats,
    *,
    steps: int,
    learning_rate: LearningRate,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
) -> Floats:
    """x <- (1 - lr wd) x - lr m' / (sqrt(v') + eps): Adam whose decay is not scaled. Returns (steps + 1, ...).

    Decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2): every number shrinks at the same rate, whether
    its gradients are large or small.
    """
    return _adaptive(gradient, start, steps, learning_rate, betas, epsilon, l2=0.0, weight_decay=weight_decay)


def muon(
    gradient: Gradient,
    start_ij: Floats,
    *,
    steps: int,
    learning_rate: LearningRate,
    decay: float = 0.95,
    weight_decay: float = 0.0,
    newton_schulz_steps: int = 5,
) -> Floats:
    """W <- (1 - lr wd) W - lr sqrt(max(1, I / J)) NS(g + m (v - g)): every direction of an update alike.

    v <- m v + (1 - m) g, and NS is `newton_schulz` (Jordan et al. 2024). For matrices (I, J) only; returns
    (steps + 1, I, J).
    """
    path, velocity = _path(start_ij, steps), np.zeros_like(start_ij, dtype=np.float64)
    scale = math.sqrt(max(1.0, start_ij.shape[0] / start_ij.shape[1]))
    for step in range(steps):
        slope, rate = gradient(path[step]), _rate(learning_rate, step)
        velocity = decay * velocity + (1 - decay) * slope
        update = newton_schulz((1 - decay) * slope + decay * velocity, newton_schulz_steps)
        path[step + 1] = (1 - rate * weight_decay) * path[step] - rate * scale * update
    return path


def newton_schulz(matrix_ij: Floats, steps: int = 5) -> Floats:
    """X <- a X + b (X X^T) X + c (X X^T)^2 X from X = A / |A|_F: near U V^T by matrix products alone, (I, J).

    Each step maps every singular value s to a s + b s^3 + c s^5 and leaves the singular vectors as they are (Bernstein
    and Newhouse 2024; coefficients of Jordan et al. 2024). They end between about 0.7 and 1.2, not at 1.
    """
    a, b, c = NEWTON_SCHULZ
    x = np.asarray(matrix_ij / max(float(np.linalg.norm(matrix_ij)), 1e-7))
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def orthogonal_factor(matrix_ij: Floats) -> Floats:
    """U V^T of A = U diag(s) V^T: the nearest matrix whose singular values are all 1, (I, J).

    (Fan and Hoffman 1955.) The goal that Newton-Schulz comes near to. Raises ValueError where A has not full rank:
    then there is more than one.
    """
    u_ik, s_k, vt_kj = svd(matrix_ij)
    if s_k[-1] == 0:
        raise ValueError("a matrix without full rank has more than one nearest orthogonal matrix")
    return u_ik @ vt_kj


def linear_decay(peak: float, steps: int) -> Callable[[int], float]:
    """lr_t = peak (1 - t / steps): a learning rate that falls to zero.

    Methods whose steps keep their size however small the gradient is (Adam, Muon) circle the minimum without it.
    """
    return lambda step: peak * (1 - step / steps)


def best_gradient_descent(smallest: float, largest: float) -> tuple[float, float]:
    """lr = 2 / (L + mu), rate = (kappa - 1) / (kappa + 1): for a quadratic with curvatures from mu to L.

    The error shrinks by at least `rate` a step; kappa = L / mu (Nesterov 2004, theorem 2.1.15).
    """
    _check_curvatures(smallest, largest)
    return 2 / (largest + smallest), (largest - smallest) / (largest + smallest)


def best_momentum(smallest: float, largest: float) -> tuple[float, float, float]:
    """lr = 4 / (sqrt L + sqrt mu)^2, m = rate^2, rate = (sqrt kappa - 1) / (sqrt kappa + 1): returns (lr, m, rate).

    The error shrinks by `rate` a step in the long run (Polyak 1964, theorem 9): sqrt(kappa) instead of kappa.
    """
    _check_curvatures(smallest, largest)
    sum_of_roots = math.sqrt(largest) + math.sqrt(smallest)
    rate = (math.sqrt(largest) - math.sqrt(smallest)) / sum_of_roots
    return 4 / sum_of_roots**2, rate**2, rate


@dataclass(frozen=True)
class Quadratic:
    """f(x) = (x - c)^T H (x - c) / 2: convex where the Hessian H (D, D) is positive definite; minimum 0 at c (D,)."""

    hessian_dd: Floats
    minimum_d: Floats

    def value(self, x_nd: Floats) -> Floats:
        """f at each point, (N,)."""
        away_nd = x_nd - self.minimum_d
        return np.asarray(((away_nd @ self.hessian_dd) * away_nd).sum(axis=-1) / 2)

    def gradient(self, x_d: Floats) -> Floats:
        """H (x - c), (D,)."""
        return np.asarray(self.hessian_dd @ (x_d - self.minimum_d))


@dataclass(frozen=True)
class LinearRegression:
    """f(W) = |X W^T - Y|_F^2 / (2 N): a layer W (I, J) that maps inputs X (N, J) to targets Y (N, I).

    Its Hessian is X^T X / N for each row of W, so the inputs' condition number, squared, is the problem's.
    """

    inputs_nj: Floats
    targets_ni: Floats

    def value(self, weight_ij: Floats) -> float:
        """f at W."""
        errors_ni = self.inputs_nj @ weight_ij.T - self.targets_ni
        return float(np.square(errors_ni).sum()) / (2 * len(errors_ni))

    def gradient(self, weight_ij: Floats) -> Floats:
        """(X W^T - Y)^T X / N, (I, J)."""
        errors_ni = self.inputs_nj @ weight_ij.T - self.targets_ni
        return np.asarray(errors_ni.T @ self.inputs_nj / len(errors_ni))


def rosenbrock(x_n2: Floats) -> Floats:
    """f(x, y) = (1 - x)^2 + 100 (y - x^2)^2: a curved valley, minimum 0 at (1, 1), (N,) (Rosenbrock 1960)."""
    x_n, y_n = x_n2[..., 0], x_n2[..., 1]
    return np.asarray((1 - x_n) ** 2 + 100 * (y_n - x_n**2) ** 2)


def rosenbrock_gradient(x_2: Floats) -> Floats:
    """(-2 (1 - x) - 400 x (y - x^2), 200 (y - x^2)), (2,)."""
    x, y = x_2
    return np.array([-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x)])


def _adaptive(
    gradient: Gradient,
    start: Floats,
    steps: int,
    learning_rate: LearningRate,
    betas: tuple[float, float],
    epsilon: float,
    *,
    l2: float,
    weight_decay: float,
) -> Floats:
    """Adam and AdamW: they differ in where the decay enters."""
    path = _path(start, steps)
    first, second = np.zeros_like(path[0]), np.zeros_like(path[0])
    for step in range(steps):
        rate = _rate(learning_rate, step)
        slope = gradient(path[step]) + l2 * path[step]
        first = betas[0] * first + (1 - betas[0]) * slope
        second = betas[1] * second + (1 - betas[1]) * np.square(slope)
        mean = first / (1 - betas[0] ** (step + 1))
        root = np.sqrt(second / (1 - betas[1] ** (step + 1)))
        path[step + 1] = (1 - rate * weight_decay) * path[step] - rate * mean / (root + epsilon)
    return path


def _path(start: Floats, steps: int) -> Floats:
    """Room for a trajectory, its first point filled in."""
    path = np.empty((steps + 1, *start.shape), dtype=np.float64)
    path[0] = start
    return path


def _rate(learning_rate: LearningRate, step: int) -> float:
    return learning_rate(step) if callable(learning_rate) else learning_rate


def _check_curvatures(smallest: float, largest: float) -> None:
    if not 0 < smallest <= largest:
        raise ValueError(f"curvatures must be positive and in order, not {smallest} and {largest}")
