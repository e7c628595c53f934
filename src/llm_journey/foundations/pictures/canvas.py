"""What every picture of the foundations shares: its description, its paper, its caption, and the way to a PNG file.

Matplotlib without a screen, imported inside the functions, so that listing the pictures starts quickly. Colours are
those of M. Okabe and K. Ito ("Color universal design", 2008), which readers with colour-blindness tell apart. Labels
are plain text: nothing is parsed as mathematics.
"""

import io
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

INK, FAINT, GRID, PAPER = "#1c2430", "#5c6773", "#dde2e8", "#ffffff"
BLUE, ORANGE, GREEN, PINK, GOLD, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"

_WIDTH = 10.0  # inches
_CAPTION_SIZE, _LINE = 9.5, 0.185  # points, and inches from one line of the caption to the next
_CHARACTERS = 136  # that a line of the caption holds
_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with Matplotlib: the same picture everywhere
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One idea, drawn. `used_in` names where the transformer uses it: a file of the package, and what in that file.

    `draw` fills an empty Matplotlib figure. `height` is that of the drawing, without title and caption, in inches.
    """

    name: str
    title: str
    caption: str
    used_in: tuple[str, str]
    draw: Callable[[Any], None]
    height: float = 3.6

    @property
    def place(self) -> str:
        """Where the idea is used, as one text."""
        file, symbol = self.used_in
        return f"{file}, {symbol}"

    @property
    def full_caption(self) -> str:
        """The caption with the place in the transformer at its end."""
        return f"{self.caption} In the transformer: {self.place}."

    def describe(self) -> dict[str, str]:
        """Everything but the drawing, for `--json`."""
        file, symbol = self.used_in
        return {"name": self.name, "title": self.title, "caption": self.caption, "file": file, "symbol": symbol}

    def png(self) -> bytes:
        """The picture as a PNG file, its caption below it."""
        import matplotlib
        from matplotlib.figure import Figure

        lines = textwrap.wrap(self.full_caption, _CHARACTERS)
        foot = _LINE * len(lines) + 0.22
        height = self.height + foot + 0.45
        buffer = io.BytesIO()
        with matplotlib.rc_context(_SETTINGS):
            figure = Figure(figsize=(_WIDTH, height), layout="constrained", facecolor=PAPER)
            margin = (0.015, foot / height, 0.97, (self.height + 0.02) / height)
            figure.get_layout_engine().set(rect=margin, wspace=0.06)  # type: ignore[call-arg,union-attr]
            self.draw(figure)
            for axis in figure.axes:
                _name_powers_of_ten(axis)
            figure.text(0.02, 1 - 0.13 / height, self.title, fontsize=13, fontweight="bold", va="top", color=INK)
            caption: dict[str, Any] = {"fontsize": _CAPTION_SIZE, "va": "bottom", "color": FAINT, "linespacing": 1.35}
            figure.text(0.02, 0.1 / height, "\n".join(lines), **caption)
            figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
        return buffer.getvalue()


def dress(axis: Any, title: str, x_label: str = "", y_label: str = "") -> None:
    """A plain panel: a small title, no frame, a faint grid."""
    axis.set_title(title, loc="left", fontsize=10, fontweight="bold", color=INK, pad=7)
    axis.set_axisbelow(True)
    axis.set_anchor("N")  # where an equal aspect makes panels smaller, their titles stay in line
    axis.grid(color=GRID, linewidth=0.7)
    for side in axis.spines.values():
        side.set_visible(False)
    axis.tick_params(colors=FAINT, labelsize=8.5, length=0)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)


def legend(axis: Any, place: str = "best") -> None:
    """A legend without a frame, on a little white so that lines below it do not cross the words."""
    axis.legend(loc=place, fontsize=8.5, labelcolor=INK, frameon=True, framealpha=0.85, edgecolor="none")


def note(axis: Any, text: str, x: float, y: float, **options: Any) -> None:
    """Words at a point of the panel, in its data's coordinates."""
    axis.annotate(text, (x, y), **({"fontsize": 8.5, "color": INK} | options))


def arrow(axis: Any, start: Any, end: Any, color: str, **options: Any) -> None:
    """A straight arrow from one point of the data to another."""
    style = {"arrowstyle": "-|>", "color": color, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 12}
    axis.annotate("", xy=tuple(end), xytext=tuple(start), arrowprops=style | options)


def _name_powers_of_ten(axis: Any) -> None:
    """1, 10, 1,000 and 10⁻⁴ along logarithmic scales: Matplotlib's own labels would need its mathematics parsed."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for scale in (axis.xaxis, axis.yaxis):
        if scale.get_scale() == "log" and not isinstance(scale.get_major_locator(), FixedLocator):
            scale.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
            scale.set_minor_locator(NullLocator())


def _power(value: float) -> str:
    if 0.0009 < value < 100_000:
        return f"{value:,.10g}"
    superscripts = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return "10" + str(round(math.log10(value))).translate(superscripts)
