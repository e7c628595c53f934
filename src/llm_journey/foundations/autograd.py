"""Reverse-mode automatic differentiation on single numbers: what `loss.backward()` does, in plain Python.

A `Scalar` remembers which numbers made it and the derivative by each of them. `backward` walks from the result to the
leaves, each number after all that were made from it, and adds up the chain rule (Linnainmaa 1970; Griewank and Walther
2008, section 3.2; the scalar form as a way of teaching: Karpathy's micrograd, 2020):

    dL/dx = sum over every y made from x of  dL/dy * dy/dx

One pass gives the derivative by every leaf, at a small multiple of the cost of the value: that is why a network with
one loss and a million weights is differentiated from the loss backwards. Left out: arrays, second derivatives, and
freeing the graph early. Numbers have whatever unit they are given; `gradient` has the result's unit per that one.
"""

import math
from collections.abc import Sequence


class Scalar:
    """A number that remembers how it was made. `gradient` is d(result) / d(this) once the result's backward has run."""

    __slots__ = ("gradient", "name", "operation", "parents", "slopes", "value")

    def __init__(
        self,
        value: float,
        parents: tuple["Scalar", ...] = (),
        slopes: tuple[float, ...] = (),
        operation: str = "",
        name: str = "",
    ) -> None:
        self.value = float(value)
        self.gradient = 0.0
        self.parents, self.slopes = parents, slopes  # slopes[i] = d(this) / d(parents[i]), at the values of now
        self.operation, self.name = operation, name

    def __add__(self, other: "Scalar | float") -> "Scalar":
        """x + y: slopes 1 and 1."""
        other = _scalar(other)
        return Scalar(self.value + other.value, (self, other), (1.0, 1.0), "+")

    def __mul__(self, other: "Scalar | float") -> "Scalar":
        """x y: slopes y and x."""
        other = _scalar(other)
        return Scalar(self.value * other.value, (self, other), (other.value, self.value), "×")

    def __pow__(self, exponent: float) -> "Scalar":
        """x^n for a plain number n: slope n x^(n-1)."""
        slope = exponent * self.value ** (exponent - 1) if exponent else 0.0
        return Scalar(self.value**exponent, (self,), (slope,), f"^{exponent:g}")

    def exp(self) -> "Scalar":
        """e^x: slope e^x."""
        result = math.exp(self.value)
        return Scalar(result, (self,), (result,), "exp")

    def log(self) -> "Scalar":
        """ln x, for x > 0: slope 1 / x."""
        return Scalar(math.log(self.value), (self,), (1 / self.value,), "log")

    def tanh(self) -> "Scalar":
        """tanh x: slope 1 - tanh(x)^2."""
        result = math.tanh(self.value)
        return Scalar(result, (self,), (1 - result * result,), "tanh")

    def relu(self) -> "Scalar":
        """max(x, 0): slope 1 above zero, else 0 (at zero itself too, as PyTorch has it)."""
        return Scalar(max(self.value, 0.0), (self,), (float(self.value > 0),), "relu")

    def __neg__(self) -> "Scalar":
        return self * -1.0

    def __sub__(self, other: "Scalar | float") -> "Scalar":
        return self + -_scalar(other)

    def __truediv__(self, other: "Scalar | float") -> "Scalar":
        return self * _scalar(other) ** -1.0

    def __radd__(self, other: float) -> "Scalar":
        return self + other

    def __rsub__(self, other: float) -> "Scalar":
        return -self + other

    def __rmul__(self, other: float) -> "Scalar":
        return self * other

    def __rtruediv__(self, other: float) -> "Scalar":
        return self**-1.0 * other

    def __repr__(self) -> str:
        return f"Scalar({self.value:g}, gradient={self.gradient:g})"

    def backward(self) -> None:
        """Set `gradient` of everything that made this number; what earlier passes left there does not count."""
        order = self.ancestors()
        for node in order:
            node.gradient = 0.0
        self.gradient = 1.0
        for node in reversed(order):  # every number after all that were made from it: its own sum is then complete
            for parent, slope in zip(node.parents, node.slopes, strict=True):
                parent.gradient += slope * node.gradient

    def ancestors(self) -> list["Scalar"]:
        """This number and all that it was made from, each once, parents before children (a topological order).

        Walked with a stack of our own: a graph deeper than Python's recursion limit is no problem.
        """
        order: list[Scalar] = []
        seen: set[int] = set()
        stack: list[tuple[Scalar, bool]] = [(self, False)]
        while stack:
            node, parents_are_done = stack.pop()
            if parents_are_done:
                order.append(node)
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack.extend((parent, False) for parent in node.parents)
        return order


def cross_entropy(logits: Sequence[Scalar], target: int) -> Scalar:
    """log sum exp(z) - z_target: nats. Its gradient by the logits z comes out as softmax(z) - onehot(target).

    The largest logit is taken out as a plain number, which changes neither the value nor any derivative.
    """
    largest = max(logit.value for logit in logits)
    total = sum(((logit - largest).exp() for logit in logits), Scalar(0.0))
    return total.log() + largest - logits[target]


def _scalar(value: "Scalar | float") -> Scalar:
    return value if isinstance(value, Scalar) else Scalar(value)
