"""Speeds of backends as bars: tokens read and tokens written a second, each with its quartiles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_journey.core import files

_COLOUR, _INK = "#2f6f9f", "#333333"
_PANELS = (
    ("decode_tokens_per_second", "decode, tokens/s"),
    ("prefill_tokens_per_second", "prefill, tokens/s"),
)


def save_speeds(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """A PNG of `rows`, which hold "backend" and, for each speed, its "lower", "median" and "upper"."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.36 * len(rows) + 1.3), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2, sharey=True)
    names = [row["backend"] for row in rows]
    for axis, (key, label) in zip(axes, _PANELS, strict=True):
        medians = [row[key]["median"] for row in rows]
        below = [row[key]["median"] - row[key]["lower"] for row in rows]
        above = [row[key]["upper"] - row[key]["median"] for row in rows]
        axis.barh(names, medians, xerr=[below, above], color=_COLOUR, ecolor=_INK, capsize=2, height=0.7)
        for place, (value, more) in enumerate(zip(medians, above, strict=True)):
            text = f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
            axis.annotate(text, (value + more, place), xytext=(4, 0), textcoords="offset points", va="center", size=8.5)
        axis.set_xlabel(label)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, size=9.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    files.write_bytes(path, buffer.getvalue())
