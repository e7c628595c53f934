"""The foundations: our own derivatives and optimizers, against PyTorch's."""

import numpy as np
import torch

from llm_journey.foundations import optimization
from llm_journey.foundations.autograd import Scalar, cross_entropy
from llm_journey.parity.equality import Equality


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
    worst = 0.0
    for matrix, theirs in zip(ours, (w1, w2), strict=True):
        assert theirs.grad is not None
        found = np.array([[value.gradient for value in row] for row in matrix])
        worst = max(worst, float(np.abs(found - theirs.grad.numpy()).max()))
    return worst


def _adamw(planted: bool) -> float:
    """Two hundred steps on an ill-conditioned quadratic against torch.optim.AdamW, in float64."""
    curvature, start = np.array([1.0, 30.0, 1000.0]), np.array([1.0, -2.0, 0.5])
    path = optimization.adamw(
        lambda x: curvature * x,
        start,
        steps=200,
        learning_rate=0.01,
        betas=(0.9, 0.98 if planted else 0.99),
        weight_decay=0.1,
    )
    theirs = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(200):
        theirs.grad = torch.tensor(curvature) * theirs.detach()
        optimizer.step()
    return float(np.abs(path[-1] - theirs.detach().numpy()).max())


EQUALITIES = (
    Equality(
        component="scalar autograd",
        reference="torch",
        compared="gradients of a small network, torch.autograd",
        tolerance=1e-12,
        reason="float64 rounding",
        difference=_autograd,
    ),
    Equality(
        component="AdamW as mathematics",
        reference="torch",
        compared="where 200 steps lead, torch.optim.AdamW",
        tolerance=1e-10,
        reason="float64 rounding over 200 steps",
        difference=_adamw,
    ),
)
