"""Pictures of a run: loss, schedule, throughput, bits per byte beside the baselines. Matplotlib without a screen.

Each picture is drawn for a light and for a dark page. Colours are those of M. Okabe and K. Ito ("Color universal
design", 2008), which readers with colour-blindness tell apart. Text from runs is never parsed as mathematics.
Matplotlib is imported inside the functions, so that commands which draw nothing start quickly.
"""

import base64
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_journey.core import files
from llm_journey.core.errors import BadInputError
from llm_journey.reports.run_data import SHARES, Run, read_run, series

_MAX_POINTS = 600  # a curve with more is averaged down to this many
_SMOOTHING = 0.05  # share of all logged steps that one smoothed point averages over
BASELINE_LABELS = {
    "gzip": "gzip −9",
    "xz": "xz −9e",
    "xz_primed": "xz primed with training text",
    "kneser_ney_1": "unigram",
    "kneser_ney_2": "Kneser-Ney bigram",
    "kneser_ney_3": "Kneser-Ney trigram",
    "kneser_ney_4": "Kneser-Ney 4-gram",
    "kneser_ney_5": "Kneser-Ney 5-gram",
}


@dataclass(frozen=True)
class Theme:
    """The colours of a picture; `page` is None where the page behind shows through."""

    ink: str
    faint: str
    grid: str
    page: str | None
    bar: str
    cycle: tuple[str, ...]


_OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LIGHT = Theme(ink="#1c2430", faint="#5c6773", grid="#dde2e8", page=None, bar="#b9c2cc", cycle=_OKABE_ITO)
DARK = Theme(
    ink="#e6eaef", faint="#9aa5b1", grid="#2f3944", page=None, bar="#4a5663",
    cycle=("#56b4e9", "#e69f00", "#2fc39a", "#e39ac4", "#f0e442", "#5b9bd5"),
)  # fmt: skip
PAPER = Theme(ink="#1c2430", faint="#5c6773", grid="#dde2e8", page="#ffffff", bar="#b9c2cc", cycle=_OKABE_ITO)

Draw = Callable[[Theme], Any]


def svg_pair(draw: Draw) -> tuple[str, str]:
    """A picture for light and for dark pages, each as a data URI of an SVG. It is drawn once and then recoloured."""
    buffer = io.BytesIO()
    _save(draw, LIGHT, buffer, format="svg", metadata={"Date": None, "Creator": None})
    light = buffer.getvalue().decode("utf-8")
    return _svg_uri(light), _svg_uri(_recoloured(light, LIGHT, DARK))


def save_png(run_directory: Path, path: Path) -> None:
    """One picture of a run on white, for a README: its loss curve and its bits per byte beside the baselines.

    Raises BadInputError where the run has no measurement yet.
    """
    run = read_run(run_directory)
    if not run.training and not run.validation:
        raise BadInputError(f"{run_directory}: nothing was measured in this run yet, so there is no picture of it")

    def draw(theme: Theme) -> Any:
        bits = run.figures.get("bits_per_byte")
        figure = _figure(10.5, 3.9, theme)
        if bits is None or not run.baselines:
            _draw_loss(figure.subplots(), run, theme)
            return figure
        left, right = figure.subplots(1, 2, width_ratios=[1.05, 1])
        _draw_loss(left, run, theme)
        _draw_bits(right, bits, run.baselines, theme)
        return figure

    buffer = io.BytesIO()
    _save(draw, PAPER, buffer, format="png", dpi=160)
    files.write_bytes(path, buffer.getvalue())


def loss_picture(run: Run) -> Draw:
    """Training loss (each logged step, and smoothed) and validation loss, in nats a token, by step."""

    def draw(theme: Theme) -> Any:
        figure = _figure(8.6, 3.7, theme)
        _draw_loss(figure.subplots(), run, theme)
        return figure

    return draw


def bits_picture(bits_per_byte: float, baselines: Mapping[str, float]) -> Draw:
    """Bits per byte of the model (highlighted) and of every baseline, as bars; shorter is better."""

    def draw(theme: Theme) -> Any:
        figure = _figure(8.6, 0.36 * (len(baselines) + 1) + 0.75, theme)
        _draw_bits(figure.subplots(), bits_per_byte, baselines, theme)
        return figure

    return draw


def progress_picture(run: Run) -> Draw | None:
    """Learning rate, gradient norm, throughput and MFU by step, small and side by side; None where none was logged."""
    panels = [
        ("learning_rate", "Learning rate", 1.0),
        ("gradient_norm", "Gradient norm", 1.0),
        ("tokens_per_second", "Tokens a second", 1.0),
        ("mfu", "MFU, %", 100.0),
    ]
    found = [(title, series(run.training, key), scale) for key, title, scale in panels]
    found = [panel for panel in found if panel[1][0]]
    if not found:
        return None

    def draw(theme: Theme) -> Any:
        rows = (len(found) + 1) // 2
        figure = _figure(8.6, 2.25 * rows, theme)
        axes = figure.subplots(rows, 2, squeeze=False).ravel()
        for axis, (title, (steps, values), scale) in zip(axes, found, strict=False):
            _dress(axis, theme, title)
            x, y = thinned(steps, [scale * value for value in values])
            axis.plot(x, y, color=theme.cycle[0], linewidth=1.3)
            axis.set_ylim(bottom=0)
            _plain_numbers(axis.yaxis)
            _plain_numbers(axis.xaxis)
        for axis in axes[len(found) :]:
            axis.set_visible(False)
        return figure

    return draw


def shares_picture(run: Run) -> Draw | None:
    """Share of the held-out answers that is right, by step; None where the objective has no right answers."""
    found = [(label, series(run.validation, key)) for key, label in SHARES.items()]
    found = [curve for curve in found if curve[1][0]]
    if not found:
        return None

    def draw(theme: Theme) -> Any:
        figure = _figure(8.6, 3.2, theme)
        axis = figure.subplots()
        _dress(axis, theme, "Right answers on held-out data, %")
        for index, (label, (steps, shares)) in enumerate(found):
            percents = [100 * share for share in shares]
            shown = f"{label}, {percents[-1]:.1f} at the end"
            axis.plot(steps, percents, "o-", color=theme.cycle[index], linewidth=1.6, markersize=4, label=shown)
        axis.set_ylim(0, 103)
        axis.set_xlabel("step")
        _thousands(axis)
        axis.legend(frameon=False, labelcolor=theme.ink, fontsize=9, loc="lower right")
        return figure

    return draw


def bars_picture(values: Sequence[tuple[str, float]], title: str, width: float = 8.6) -> Draw:
    """Named amounts as horizontal bars, in the order given."""

    def draw(theme: Theme) -> Any:
        figure = _figure(width, 0.3 * len(values) + 0.75, theme)
        axis = figure.subplots()
        labels = [label for label, _ in values]
        _bars(axis, labels, [value for _, value in values], [theme.cycle[0]] * len(values), "{:,.0f}", theme)
        _dress(axis, theme, title, grid=False)
        _hide_value_axis(axis)
        return figure

    return draw


def overlay_picture(runs: Sequence[Run], key: str, by: str, title: str, by_label: str) -> Draw:
    """One curve a run over each other; runs that share a name are told apart by their legend's order."""

    def draw(theme: Theme) -> Any:
        figure = _figure(8.6, 3.7, theme)
        axis = figure.subplots()
        _dress(axis, theme, title)
        axis.set_xlabel(by_label)
        for index, run in enumerate(runs):
            x, y = series(run.validation if key == "validation_loss" else run.training, key, by)
            if not x:
                continue
            x, y = thinned(x, smoothed(y) if key == "loss" else y)
            marker = "o" if len(x) < 25 else ""
            style = ("-", "--", ":", "-.")[index // len(theme.cycle) % 4]
            color = theme.cycle[index % len(theme.cycle)]
            axis.plot(x, y, style, color=color, linewidth=1.6, marker=marker, markersize=3.5, label=_short(run.name))
        _thousands(axis)
        if axis.lines:
            _legend(axis, theme)
        return figure

    return draw


def thinned(x: Sequence[float], y: Sequence[float], most: int = _MAX_POINTS) -> tuple[list[float], list[float]]:
    """At most `most` points: means over neighbouring points where there are more."""
    if len(x) <= most:
        return list(x), list(y)
    edges = [len(x) * index // most for index in range(most + 1)]
    spans = list(itertools.pairwise(edges))
    return [sum(x[a:b]) / (b - a) for a, b in spans], [sum(y[a:b]) / (b - a) for a, b in spans]


def smoothed(values: Sequence[float], share: float = _SMOOTHING) -> list[float]:
    """Means over a window around each point, narrower at both ends: it smooths without lagging behind a steep start."""
    sums = [0.0, *itertools.accumulate(values)]
    result = []
    for index in range(len(values)):
        half = min(int(share * len(values) / 2), index, len(values) - 1 - index)
        result.append((sums[index + half + 1] - sums[index - half]) / (2 * half + 1))
    return result


def baseline_label(name: str) -> str:
    """A baseline's name for people."""
    return BASELINE_LABELS.get(name, name.replace("_", " "))


def _draw_loss(axis: Any, run: Run, theme: Theme) -> None:
    _dress(axis, theme, "Loss, nats a token")
    steps, losses = series(run.training, "loss")
    if steps:
        axis.plot(*thinned(steps, losses), color=theme.cycle[0], alpha=0.28, linewidth=0.9)
        axis.plot(*thinned(steps, smoothed(losses)), color=theme.cycle[0], linewidth=1.8, label="training (smoothed)")
    validation_steps, validations = series(run.validation, "validation_loss")
    if validation_steps:
        label = f"validation, {validations[-1]:.3f} at the end"
        axis.plot(validation_steps, validations, "o-", color=theme.cycle[1], linewidth=1.4, markersize=4, label=label)
    if len(losses) > 1:
        # The first few steps would flatten all that follows: cut them where they lie far above.
        ordered = sorted([*losses, *validations])
        settled = ordered[int(0.95 * (len(ordered) - 1))]
        axis.set_ylim(top=min(axis.get_ylim()[1], settled + 0.6 * (settled - ordered[0]) + 0.05))
    axis.set_xlabel("step")
    _thousands(axis)
    if axis.lines:
        _legend(axis, theme)


def _draw_bits(axis: Any, bits: float, baselines: Mapping[str, float], theme: Theme) -> None:
    ranked = sorted([("this model", bits, True), *((baseline_label(k), v, False) for k, v in baselines.items())],
                    key=lambda item: (-item[1], item[2]))  # fmt: skip
    colors = [theme.cycle[1] if ours else theme.bar for _, _, ours in ranked]
    _bars(axis, [label for label, _, _ in ranked], [value for _, value, _ in ranked], colors, "{:.2f}", theme)
    _dress(axis, theme, "Bits per byte of held-out text (less is better)", grid=False)
    _hide_value_axis(axis)
    for tick, (_, _, ours) in zip(axis.get_yticklabels(), ranked, strict=True):
        tick.set_color(theme.cycle[1] if ours else theme.ink)
        tick.set_fontweight("bold" if ours else "normal")


def _bars(
    axis: Any, labels: Sequence[str], values: Sequence[float], colors: Sequence[str], form: str, theme: Theme
) -> None:
    positions = range(len(values))
    drawn = axis.barh(positions, values, color=colors, height=0.68)
    axis.set_yticks(positions, labels)
    axis.invert_yaxis()
    axis.bar_label(drawn, [form.format(value) for value in values], padding=4, color=theme.ink, fontsize=9)
    axis.set_xlim(0, 1.1 * max([*values, 1e-9]))


def _hide_value_axis(axis: Any) -> None:
    axis.xaxis.set_visible(False)
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _dress(axis: Any, theme: Theme, title: str, grid: bool = True) -> None:
    axis.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=theme.ink, pad=8)
    axis.set_axisbelow(True)
    if grid:
        axis.grid(axis="y", color=theme.grid, linewidth=0.8)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(theme.grid)
    axis.tick_params(colors=theme.faint, labelsize=9, length=0)
    axis.xaxis.label.set_color(theme.faint)
    axis.margins(x=0.015)


def _legend(axis: Any, theme: Theme) -> None:
    """Inside, at the top right: every curve here falls from the left."""
    axis.legend(frameon=False, labelcolor=theme.ink, fontsize=9, loc="upper right")


def _thousands(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    _plain_numbers(axis.xaxis)


def _plain_numbers(axis: Any) -> None:
    """12,000 and 0.0005 instead of powers of ten in a corner."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"))


def _short(name: str, most: int = 40) -> str:
    # A leading underscore would keep a curve out of the legend.
    printable = "".join(character if character.isprintable() else "?" for character in name).lstrip("_") or "run"
    return printable if len(printable) <= most else printable[: most - 1] + "…"


def _figure(width: float, height: float, theme: Theme) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.page or "none")
    margin = 0.14 if theme.page else 0.04  # inches; a page gives its own margin
    figure.get_layout_engine().set(w_pad=margin, h_pad=margin, wspace=0.03, hspace=0.07)  # type: ignore[call-arg,union-attr]
    return figure


def _svg_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")


def _recoloured(svg: str, old: Theme, new: Theme) -> str:
    """An SVG drawn in one theme, in another's colours. Its identifiers start with p or m, so none reads as one."""
    pairs = {
        old.ink: new.ink, old.faint: new.faint, old.grid: new.grid, old.bar: new.bar,
        **dict(zip(old.cycle, new.cycle, strict=True)),
    }  # fmt: skip
    pattern = re.compile("|".join(f"{colour}(?![0-9a-fA-F])" for colour in pairs))
    return pattern.sub(lambda found: pairs[found[0]], svg)


def _save(draw: Draw, theme: Theme, buffer: io.BytesIO, **options: Any) -> None:
    import matplotlib

    settings: Any = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # comes with Matplotlib: the same picture everywhere
        "font.size": 9.5,
        "text.parse_math": False,
        "text.color": theme.ink,
        "axes.facecolor": "none",
        "axes.unicode_minus": True,
        "svg.hashsalt": "llm-journey",
        "path.simplify": True,
    }
    with matplotlib.rc_context(settings):
        draw(theme).savefig(buffer, facecolor=theme.page or "none", **options)
