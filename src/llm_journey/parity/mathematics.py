"""The foundations, against SciPy and PyTorch. Everything is float64, so only rounding is allowed for."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from llm_journey.foundations import information, linear_algebra, optimization, probability
from llm_journey.foundations.autograd import Scalar, cross_entropy
from llm_journey.parity.differences import largest
from llm_journey.parity.equality import Equality

_CURVATURE, _START = np.array([1.0, 30.0, 1000.0]), np.array([1.0, -2.0, 0.5])


def _autograd(planted: bool) -> float:
    """Gradients of a small network's cross-entropy, scalar by scalar, against torch.autograd."""
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(3, 4)), generator.normal(size=(5, 3)), generator.normal(size=4)
    w1, w2 = (torch.tensor(matrix, requires_grad=True) for matrix in numbers[:2])
    logits = w2 @ torch.tanh(w1 @ torch.tensor(numbers[2]))
    torch.autograd.backward(torch.nn.functional.cross_entropy(logits[None], torch.tensor([2])))
    ours = [[[Scalar(float(value)) for value in row] for row in matrix] for matrix in numbers[:2]]
    inputs = [float(value) for value in numbers[2]]
    hidden = [sum((w * x for w, x in zip(row, inputs, strict=True)), Scalar(0.0)) for row in ours[0]]
    hidden = [value.relu() if planted else value.tanh() for value in hidden]
    outputs = [sum((w * h for w, h in zip(row, hidden, strict=True)), Scalar(0.0)) for row in ours[1]]
    cross_entropy(outputs, 2).backward()
    found = [np.array([[value.gradient for value in row] for row in matrix]) for matrix in ours]
    return largest(found, [w1.grad, w2.grad])


def _optimizer(planted: bool, *, ours: Callable[..., Any], theirs: Callable[..., Any], rate: float) -> float:
    """Where 200 steps on an ill-conditioned quadratic lead; the planted error is one in a thousand of the rate."""
    path = ours(lambda x: _CURVATURE * x, _START, steps=200, learning_rate=rate * (1.001 if planted else 1.0))
    parameter = torch.tensor(_START, requires_grad=True)
    optimizer = theirs([parameter], lr=rate)
    for _ in range(200):
        parameter.grad = torch.tensor(_CURVATURE) * parameter.detach()
        optimizer.step()
    return largest(path[-1], parameter)


def _newton_schulz(planted: bool) -> float:
    """PyTorch's own iteration runs in bfloat16 and has no public name: the map of singular values by torch's SVD."""
    matrix = np.random.default_rng(5).normal(size=(6, 9))
    u, s, v = torch.linalg.svd(torch.tensor(matrix), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return largest(optimization.newton_schulz(matrix, 4 if planted else 5), u @ torch.diag(s) @ v)


def _distribution() -> tuple[Any, Any]:
    draw = np.random.default_rng(2)
    return draw.dirichlet(np.ones(20)), draw.dirichlet(np.ones(20))


def _entropies(planted: bool) -> float:
    """Entropy, KL both ways, Jensen-Shannon; the planted error exchanges p and q in one."""
    from scipy.spatial.distance import jensenshannon
    from scipy.stats import entropy

    p, q = _distribution()
    found = [
        information.entropy(p),
        information.kl_divergence(q, p) if planted else information.kl_divergence(p, q),
        information.kl_divergence(q, p),
        information.jensen_shannon_divergence(p, q),
    ]
    return largest(found, [entropy(p), entropy(p, q), entropy(q, p), jensenshannon(p, q) ** 2])


def _softmax(planted: bool) -> float:
    """log-sum-exp, log-softmax and softmax of logits up to 800, which overflow where they are not shifted."""
    from scipy import special

    logits = np.random.default_rng(3).normal(size=(4, 9)) * 400
    theirs = logits / 1.01 if planted else logits
    found = [probability.logsumexp(theirs), probability.log_softmax(theirs), probability.softmax(theirs)]
    return largest(
        found, [special.logsumexp(logits, axis=-1), special.log_softmax(logits, -1), special.softmax(logits, -1)]
    )


def _densities(planted: bool) -> float:
    """Log-densities of the Gaussians, Dirichlet, binomial and multinomial at random points."""
    from scipy import stats

    draw = np.random.default_rng(4)
    x_nd, root = draw.normal(size=(5, 3)), draw.normal(size=(3, 3))
    covariance, p = root @ root.T + np.eye(3), draw.dirichlet(np.ones(4), size=5)
    alpha, counts = np.array([0.5, 1.0, 2.0, 3.0]), draw.multinomial(12, p[0], size=5)
    found = [
        probability.gaussian_log_density(x_nd[:, 0], 0.3, 1.71 if planted else 1.7),
        probability.multivariate_gaussian_log_density(x_nd, np.ones(3), covariance),
        probability.dirichlet_log_density(p, alpha),
        probability.binomial_log_probability(np.arange(8), 7, 0.3),
        probability.multinomial_log_probability(counts, p[0]),
    ]
    expected = [
        stats.norm(0.3, 1.7).logpdf(x_nd[:, 0]),
        stats.multivariate_normal(np.ones(3), covariance).logpdf(x_nd),
        np.array([stats.dirichlet(alpha).logpdf(row) for row in p]),
        stats.binom(7, 0.3).logpmf(np.arange(8)),
        stats.multinomial(12, p[0]).logpmf(counts),
    ]
    return largest(found, expected)


def _decomposition(planted: bool) -> float:
    """Singular values, the best approximation of rank 3, and the condition number, of a matrix of full rank."""
    from scipy import linalg

    matrix = np.random.default_rng(6).normal(size=(9, 6))
    u, s, vt = linalg.svd(matrix, full_matrices=False)
    found = [
        linear_algebra.svd(matrix)[1],
        linear_algebra.low_rank(matrix, 4 if planted else 3),
        linear_algebra.condition_number(matrix),
    ]
    return largest(found, [s, (u[:, :3] * s[:3]) @ vt[:3], s[0] / s[-1]])


def _least_squares(planted: bool) -> float:
    from scipy import linalg

    draw = np.random.default_rng(7)
    matrix, target = draw.normal(size=(12, 5)), draw.normal(size=12)
    found = linear_algebra.least_squares(matrix, target, 1e-3 if planted else 0.0)
    return largest(found, linalg.lstsq(matrix, target)[0])


def _cosine(planted: bool) -> float:
    draw = np.random.default_rng(8)
    x, y = draw.normal(size=(4, 7)), draw.normal(size=(5, 7))
    expected = torch.nn.functional.cosine_similarity(torch.tensor(x)[:, None], torch.tensor(y)[None], dim=-1)
    return largest(linear_algebra.cosine_similarity(x, y + 0.01 * planted), expected)


_vs_torch = partial(Equality, reference="torch", tolerance=1e-10, reason="rounding of float64 over 200 steps")
_vs_scipy = partial(Equality, reference="scipy", tolerance=1e-10, reason="rounding of float64")

EQUALITIES = (
    Equality(
        component="scalar autograd",
        reference="torch",
        compared="gradients of a small network, torch.autograd",
        tolerance=1e-12,
        reason="rounding of float64",
        difference=_autograd,
    ),
    *(
        _vs_torch(
            component=f"{name} as mathematics",
            compared=f"where 200 steps lead, torch.optim.{peer}",
            difference=partial(_optimizer, ours=ours, theirs=theirs, rate=rate),
        )
        for name, peer, rate, ours, theirs in (
            ("gradient descent", "SGD", 1e-3, optimization.gradient_descent, torch.optim.SGD),
            (
                "Nesterov's momentum",
                "SGD with nesterov",
                1e-4,
                partial(optimization.momentum, decay=0.9, nesterov=True),
                partial(torch.optim.SGD, momentum=0.9, nesterov=True),
            ),
            (
                "Adam",
                "Adam",
                0.01,
                partial(optimization.adam, betas=(0.9, 0.99)),
                partial(torch.optim.Adam, betas=(0.9, 0.99)),
            ),
            (
                "AdamW",
                "AdamW",
                0.01,
                partial(optimization.adamw, betas=(0.9, 0.99), weight_decay=0.1),
                partial(torch.optim.AdamW, betas=(0.9, 0.99), weight_decay=0.1),
            ),
        )
    ),
    Equality(
        component="Newton-Schulz iteration",
        reference="torch",
        compared="five steps on a matrix, the polynomial of its singular values by torch.linalg.svd",
        tolerance=1e-10,
        reason="rounding of float64",
        difference=_newton_schulz,
    ),
    Equality(
        component="cosine similarity",
        reference="torch",
        compared="20 pairs of vectors, torch.nn.functional.cosine_similarity",
        tolerance=1e-12,
        reason="rounding of float64",
        difference=_cosine,
    ),
    _vs_scipy(
        component="entropy and divergences",
        compared="entropy, KL both ways, Jensen-Shannon, scipy.stats.entropy and jensenshannon",
        difference=_entropies,
    ),
    _vs_scipy(
        component="log-sum-exp and softmax",
        compared="of large logits, scipy.special",
        difference=_softmax,
    ),
    _vs_scipy(
        component="densities",
        compared="Gaussian, Dirichlet, binomial, multinomial, scipy.stats",
        difference=_densities,
    ),
    _vs_scipy(
        component="singular value decomposition",
        compared="singular values, best rank 3, condition number, scipy.linalg.svd",
        difference=_decomposition,
    ),
    _vs_scipy(component="least squares", compared="the solution, scipy.linalg.lstsq", difference=_least_squares),
)
