"""Picture of reverse-mode differentiation: the graph of a cross-entropy, each number with its value and gradient."""

from typing import Any

from llm_journey.foundations.autograd import Scalar, cross_entropy
from llm_journey.foundations.pictures.canvas import BLUE, FAINT, GRID, INK, ORANGE, Picture


def _draw_autograd(figure: Any) -> None:
    logits = [Scalar(value, name=name) for value, name in ((2.0, "z₀, the target"), (1.0, "z₁"), (-0.5, "z₂"))]
    loss = cross_entropy(logits, target=0)
    loss.name = "loss"
    loss.backward()
    # Constants that the reader need not see: the zero a sum starts from, and factors of minus one.
    shown = [node for node in loss.ancestors() if node.parents or node.name]
    places = _places(shown)
    axis = figure.subplots()
    axis.set_axis_off()
    for node in shown:
        x, y = places[id(node)]
        for parent in node.parents:
            if id(parent) in places:
                style = {"arrowstyle": "-|>", "color": FAINT, "linewidth": 1, "shrinkA": 25, "shrinkB": 27}
                axis.annotate("", xy=(x, y), xytext=places[id(parent)], arrowprops=style)
        edge = ORANGE if node is loss or node in logits else GRID
        box = {"boxstyle": "round,pad=0.4", "facecolor": "white", "edgecolor": edge, "linewidth": 1.5}
        words = f"{node.name or node.operation}\n{node.value:.3f}\n{node.gradient:+.3f}"
        axis.text(x, y, words, ha="center", va="center", fontsize=8, color=INK, bbox=box, linespacing=1.3)
    xs, ys = [place[0] for place in places.values()], [place[1] for place in places.values()]
    axis.set(xlim=(min(xs) - 0.7, max(xs) + 0.7), ylim=(min(ys) - 0.6, max(ys) + 0.75))
    axis.text(min(xs) - 0.6, max(ys) + 0.62, "values flow right →", color=FAINT, fontsize=9)
    axis.text(max(xs) + 0.6, max(ys) + 0.62, "← gradients flow left", color=BLUE, fontsize=9, ha="right")


def _places(nodes: list[Scalar]) -> dict[int, tuple[float, float]]:
    """A column by a number's distance from the leaves; within a column, from top to bottom in order."""
    depth: dict[int, int] = {}
    for node in nodes:  # parents come first
        known = [depth[id(parent)] for parent in node.parents if id(parent) in depth]
        depth[id(node)] = 1 + max(known) if known else 0
    columns: dict[int, list[int]] = {}
    for node in nodes:
        columns.setdefault(depth[id(node)], []).append(id(node))
    return {
        key: (1.35 * column, (len(keys) - 1) / 2 - row)
        for column, keys in columns.items()
        for row, key in enumerate(keys)
    }


PICTURES = (
    Picture(
        name="autograd",
        title="Backward through a cross-entropy, number by number",
        caption=(
            "Each box: what it is, its value, and the loss's derivative by it. Every box sums, over the boxes it "
            "feeds, their gradient times the slope on the way. At the logits the derivatives come out as softmax "
            "minus one for the target and softmax for the others, which the chunked loss writes down at once."
        ),
        used_in=("model/loss.py", "_LinearCrossEntropy"),
        draw=_draw_autograd,
        height=4.4,
    ),
)
