"""Picture of reverse-mode differentiation: the graph of a cross-entropy, each number with its value and gradient."""

from typing import Any

from llm_journey.foundations.autograd import Scalar
from llm_journey.foundations.pictures.canvas import BLUE, FAINT, GRID, INK, ORANGE, Picture


def _draw_autograd(figure: Any) -> None:
    z = [Scalar(value) for value in (2.0, 1.0, -0.5)]
    powers = [logit.exp() for logit in z]
    first_two = powers[0] + powers[1]
    total = first_two + powers[2]
    logarithm, negative = total.log(), -z[0]
    loss = logarithm + negative
    loss.backward()
    places = {
        z[0]: ("z₀, the target", 0.0, 2.0), z[1]: ("z₁", 0.0, 1.0), z[2]: ("z₂", 0.0, 0.0),
        negative: ("−z₀", 1.3, 3.0), powers[0]: ("exp z₀", 1.3, 2.0), powers[1]: ("exp z₁", 1.3, 1.0),
        powers[2]: ("exp z₂", 1.3, 0.0), first_two: ("+", 2.6, 1.5), total: ("Σ exp z", 3.9, 0.75),
        logarithm: ("log Σ exp z", 5.2, 0.75), loss: ("loss", 6.5, 1.5),
    }  # fmt: skip
    axis = figure.subplots()
    axis.set_axis_off()
    for node, (name, x, y) in places.items():
        for parent, slope in zip(node.parents, node.slopes, strict=True):
            if parent in places:  # all but the plain −1 that z₀ is multiplied by
                _, from_x, from_y = places[parent]
                style = {"arrowstyle": "-|>", "color": FAINT, "linewidth": 1, "shrinkA": 34, "shrinkB": 36}
                axis.annotate("", xy=(x, y), xytext=(from_x, from_y), arrowprops=style)
                middle = (0.5 * (x + from_x), 0.5 * (y + from_y))
                white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                axis.text(*middle, f"×{slope:.3f}", ha="center", va="center", fontsize=8, color=FAINT, bbox=white)
        box = {"boxstyle": "round,pad=0.45", "facecolor": "white", "linewidth": 1.6}
        edge = ORANGE if node is loss or node in z else GRID
        words = f"{name}\n{node.value:.3f}\n" + 13 * " "  # room for the gradient, which has a colour of its own
        axis.text(x, y, words, ha="center", va="center", fontsize=9, color=INK, bbox=box | {"edgecolor": edge})
        axis.text(x, y - 0.19, f"{node.gradient:+.3f}", ha="center", va="center", fontsize=9, color=BLUE)
    axis.set(xlim=(-0.6, 7.0), ylim=(-0.45, 3.45))
    axis.text(7.0, 3.3, "values flow right →", color=INK, fontsize=9, ha="right")
    axis.text(7.0, 3.05, "← gradients flow left", color=BLUE, fontsize=9, ha="right")


PICTURES = (
    Picture(
        name="autograd",
        title="Backward through a cross-entropy, number by number",
        caption=(
            "In each box: a number, and below it (blue) the loss's derivative by it; on each arrow the slope from one "
            "to the next. A box's derivative is the sum, over the boxes that it feeds, of theirs times the slope. At "
            "the logits softmax comes out, less one at the target: which the chunked loss writes down at once."
        ),
        used_in=("model/loss.py", "_LinearCrossEntropy"),
        draw=_draw_autograd,
        height=4.4,
    ),
)
