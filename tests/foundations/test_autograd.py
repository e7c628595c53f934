"""The scalar autograd against torch.autograd: random expressions, a network, graphs that share and that are deep."""

import inspect
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_journey.foundations import autograd
from llm_journey.foundations.autograd import Scalar, cross_entropy

# Each takes the numbers made so far (ours, or torch's) and two indices; `safe` keeps arguments where they are defined.
OPERATIONS: dict[str, Any] = {
    "x + y": lambda x, y: x + y,
    "x - y": lambda x, y: x - y,
    "x * y": lambda x, y: x * y,
    "x / (y^2 + 1)": lambda x, y: x / (y**2 + 1.0),
    "-x": lambda x, y: -x,
    "3 - x": lambda x, y: 3 - x,
    "2 + x": lambda x, y: 2 + x,
    "0.5 * x": lambda x, y: 0.5 * x,
    "1 / (x^2 + 1)": lambda x, y: 1 / (x**2 + 1.0),
    "(x^2 + 1)^-0.5": lambda x, y: (x**2 + 1.0) ** -0.5,
    "tanh": lambda x, y: x.tanh(),
    "exp tanh": lambda x, y: x.tanh().exp(),
    "log(x^2 + 1)": lambda x, y: (x**2 + 1.0).log(),
    "relu": lambda x, y: x.relu(),
    "x^0": lambda x, y: x**0,
}

programs = st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 99), st.integers(0, 99)), max_size=25)


def run(program: list[tuple[str, int, int]], leaves: list[Any]) -> Any:
    made = list(leaves)
    for name, first, second in program:
        # The newest numbers are likelier to be used, so that graphs become deep; older ones again, so that they share.
        x, y = made[-1 - first % min(len(made), 4)], made[second % len(made)]
        made.append(OPERATIONS[name](x, y).tanh() if name == "x * y" else OPERATIONS[name](x, y))
    result = made[0]
    for number in made[1:]:
        result = result + number
    return result


@settings(max_examples=300)
@given(programs, st.lists(st.floats(-3, 3), min_size=1, max_size=4))
def test_random_expressions_have_torchs_values_and_gradients(program: list[Any], values: list[float]) -> None:
    ours = [Scalar(value) for value in values]
    theirs = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]
    result, expected = run(program, ours), run(program, theirs)
    result.backward()
    expected.backward()
    assert result.value == pytest.approx(expected.item(), rel=1e-10, abs=1e-10)
    for one, other in zip(ours, theirs, strict=True):
        assert other.grad is not None
        assert one.gradient == pytest.approx(other.grad.item(), rel=1e-8, abs=1e-8)


def test_a_network_has_torchs_gradients() -> None:
    """Two inputs, a layer of tanh, one of relu, three logits and the cross-entropy of one example."""
    generator = np.random.default_rng(0)
    shapes = [(5, 2), (4, 5), (3, 4)]
    weights = [generator.normal(size=shape) for shape in shapes]
    ours = [[[Scalar(w) for w in row] for row in weight] for weight in weights]
    x: list[Any] = [0.3, -1.2]
    for layer, activation in zip(ours, ("tanh", "relu", ""), strict=True):
        x = [sum((w * value for w, value in zip(row, x, strict=True)), Scalar(0.0)) for row in layer]
        x = [getattr(number, activation)() for number in x] if activation else x
    loss = cross_entropy(x, target=2)
    loss.backward()

    theirs = [torch.tensor(weight, requires_grad=True) for weight in weights]
    hidden = (theirs[1] @ (theirs[0] @ torch.tensor([0.3, -1.2], dtype=torch.float64)).tanh()).relu()
    expected = torch.nn.functional.cross_entropy(theirs[2] @ hidden, torch.tensor(2))
    expected.backward()
    assert loss.value == pytest.approx(expected.item(), rel=1e-12)
    for layer, weight in zip(ours, theirs, strict=True):
        found = [[number.gradient for number in row] for row in layer]
        np.testing.assert_allclose(found, weight.grad, atol=1e-12)
    assert float(theirs[0].grad.abs().max()) > 0.01


@given(st.lists(st.floats(-700, 700), min_size=1, max_size=6), st.integers(0, 5))
def test_cross_entropy_is_softmax_minus_one_at_the_target(values: list[float], index: int) -> None:
    target = index % len(values)
    logits = [Scalar(value) for value in values]
    loss = cross_entropy(logits, target)
    loss.backward()
    theirs = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(target))
    expected.backward()
    assert loss.value == pytest.approx(expected.item(), rel=1e-12, abs=1e-12)
    np.testing.assert_allclose([logit.gradient for logit in logits], theirs.grad, atol=1e-12)


def test_a_number_used_twice_gets_both_its_shares() -> None:
    x = Scalar(3.0)
    y = x * x + x
    y.backward()
    assert (y.value, x.gradient) == (12.0, 7.0)
    y.backward()
    assert x.gradient == 7.0  # a second pass starts anew


def test_a_diamond_is_walked_in_order() -> None:
    """Each number waits until all that were made from it have spoken; a plain depth-first walk gets this wrong."""
    x = Scalar(1.0)
    a = x * 2.0
    b = a * 3.0
    c = a * 5.0
    (b + c * b).backward()  # b = 6, c = 10: d/dx = (b' + c' b + c b') = 6 + 10 * 6 + 10 * 6
    assert x.gradient == 126.0


def test_graphs_deeper_than_the_recursion_limit() -> None:
    depth = 3 * sys.getrecursionlimit()
    first = result = Scalar(1.0)
    for _ in range(depth):
        result = result + 1.0
    result.backward()
    assert (result.value, first.gradient) == (depth + 1.0, 1.0)


def test_slopes_at_the_edges_are_torchs() -> None:
    zero = Scalar(0.0)
    zero.relu().backward()
    assert zero.gradient == 0.0
    (zero**0).backward()
    assert zero.gradient == 0.0
    (zero**1).backward()
    assert zero.gradient == 1.0
    with pytest.raises(ValueError, match=r"domain|positive"):
        Scalar(-1.0).log()
    assert math.isclose((2.0 / Scalar(4.0)).value, 0.5)


def test_the_whole_of_it_is_under_150_lines() -> None:
    assert len(inspect.getsource(autograd).splitlines()) < 150
