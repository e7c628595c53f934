"""An inspection as PNG files: the tokens, the lens, all heads at a glance, and each layer's heads large.

Matplotlib draws without a screen; text is never parsed as mathematics, and a character that its font lacks is drawn as
a box instead of being warned about.
"""

import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llm_journey.core.files import write_bytes
from llm_journey.inspection.maps import pooled
from llm_journey.inspection.pixels import GAP, LEVELS, TILE, overview, palette, shades
from llm_journey.inspection.reading import Reading, label

_INK, _FAINT, _BAR, _LINE = "#1c2430", "#5c6773", "#0072b2", "#d55e00"
_MOST_LABELS = 32
_LENS_COLUMNS = 12
_HEADS_ACROSS = 4
_MOST_PIXELS = 384


def write_pictures(reading: Reading, folder: Path) -> list[Path]:
    """tokens.png and lens.png (where the model predicts tokens), attention.png, attention-layer-00.png and so on; of an
    encoder-decoder attention-encoder-00.png, attention-decoder-00.png, attention-cross-00.png."""
    found = reading.inspection
    written = []
    if found.lens:
        written += [
            _save(_draw_tokens(reading), folder / "tokens.png"),
            _save(_draw_lens(reading), folder / "lens.png"),
        ]
    written.append(_save(_draw_overview(reading), folder / "attention.png"))
    digits = max(2, len(str(max(len(part.layers) for part in found.parts) - 1)))
    for layer in found.maps:
        part = found.part(layer)
        name = f"attention-{part.name or 'layer'}-{layer - part.layers.start:0{digits}}.png"
        written.append(_save(_draw_layer(reading, layer), folder / name))
    return written


def _draw_tokens(reading: Reading) -> Any:
    """Surprisal of each token as bars, entropy of the distribution that it was drawn from as dots."""
    facts = [fact for fact in reading.token_facts() if fact.bits is not None and fact.entropy is not None]
    labelled = len(facts) <= 2 * _MOST_LABELS
    figure = _figure(max(5.0, min(14.0, 1.2 + 0.24 * len(facts))), 3.6)
    axis = figure.subplots()
    places = np.arange(len(facts))
    axis.bar(places, [fact.bits for fact in facts], width=0.8, color=_BAR, alpha=0.75, label="surprisal of the token")
    dots = {"marker": "o", "markersize": 3.5, "linestyle": ""} if labelled else {"linewidth": 0.8}
    axis.plot(places, [fact.entropy for fact in facts], color=_LINE, label="entropy of what was expected", **dots)
    if labelled:
        axis.set_xticks(places, [_drawable(label(fact.text or "")) for fact in facts], rotation=90)
    else:
        axis.set_xlabel("position", color=_FAINT)
    axis.set_ylabel("bits", color=_FAINT)
    _plain(axis)
    axis.margins(x=0.01)
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    _title(axis, "Surprise")
    return figure


def _draw_lens(reading: Reading) -> Any:
    """Rows are layers, columns the last positions; each cell is the likeliest token, darker where it is likelier."""
    found, labels, tokens = reading.inspection, reading.lens_labels(), reading.lens_tokens
    columns = min(len(tokens), _LENS_COLUMNS)
    places = range(len(tokens) - columns, len(tokens))
    probabilities = np.array([layer.kept_probabilities[list(places), 0] for layer in found.lens])
    figure = _figure(1.4 + 1.12 * columns, 1.1 + 0.25 * len(labels))
    axis = figure.subplots()
    axis.imshow(_colors(probabilities**2), aspect="auto")
    for row, layer in enumerate(found.lens):
        for column, at in enumerate(places):
            word = _drawable(label(reading.word(int(layer.kept_ids[at, 0])), 13))
            ink = "white" if probabilities[row, column] > 0.6 else _INK
            weight = "bold" if layer.rank[at] == 1 else "normal"
            axis.text(column, row, word, ha="center", va="center", fontsize=7.5, color=ink, fontweight=weight)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylabel("layer", color=_FAINT)
    axis.set_xticks(range(columns), [_drawable(label(tokens[at])) for at in places], rotation=30, ha="left")
    axis.xaxis.tick_top()
    if found.causal:
        came = [tokens[at + 1] if at + 1 < len(tokens) else "" for at in places]
        below = axis.secondary_xaxis("bottom")
        below.set_xticks(range(columns), [_drawable(label(text)) for text in came])
        below.set_xlabel("the token that came (bold above: predicted by that layer)", color=_FAINT)
        _plain(below)
    _plain(axis)
    return figure


def _draw_overview(reading: Reading) -> Any:
    """All heads: a row a layer, a column a head."""
    found = reading.inspection
    sheet = overview(list(found.maps.values()))
    height, width = sheet.shape
    figure = _figure(1.0 + width / 100, 0.9 + height / 100)
    axis = figure.subplots()
    axis.imshow(palette()[sheet], interpolation="nearest")
    step, middle = TILE + GAP, GAP + TILE / 2
    axis.set_xticks([middle + step * head for head in range(found.num_heads)], map(str, range(found.num_heads)))
    axis.set_yticks([middle + step * row for row in range(len(found.maps))], map(found.layer_name, found.maps))
    axis.xaxis.tick_top()
    axis.set_xlabel("head", color=_FAINT)
    axis.xaxis.set_label_position("top")
    axis.set_ylabel("layer", color=_FAINT)
    _plain(axis)
    return figure


def _draw_layer(reading: Reading, layer: int) -> Any:
    """One layer's heads, each with its queries downwards and its keys across."""
    found = reading.inspection
    queries, keys = found.part(layer).queries, found.part(layer).keys
    longest = max(len(queries), len(keys))
    labelled = found.cell == 1 and longest <= _MOST_LABELS
    across = min(_HEADS_ACROSS, found.num_heads)
    down = -(-found.num_heads // across)
    side = max(2.6, min(4.4, 0.9 + 0.16 * longest)) if labelled else 3.4
    figure = _figure(side * across, side * down + 0.5)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    names = [_drawable(label(text, 12)) for text in reading.tokens] if labelled else []
    across_names, down_names = names[keys.start : keys.stop], names[queries.start : queries.stop]
    # A long text is pooled to what the picture can show: resampling it there costs seconds a layer.
    factor = -(-max(found.attention(layer, 0).shape) // _MOST_PIXELS)
    for head, axis in enumerate(axes):
        if head >= found.num_heads:
            axis.set_visible(False)
            continue
        weights = pooled(found.attention(layer, head), factor)
        bottom, right = (size * found.cell * factor for size in weights.shape)
        axis.imshow(_colors(weights), interpolation="nearest", extent=None if labelled else (0, right, bottom, 0))
        if labelled:
            axis.set_xticks(range(len(keys)), across_names, rotation=90)
            axis.set_yticks(range(len(queries)), down_names)
        else:
            axis.locator_params(nbins=4, integer=True)
        _plain(axis, 7.0 if labelled else 8.0)
        _title(axis, f"{'' if found.part(layer).name else 'layer '}{found.layer_name(layer)}, head {head}")
    _scale(figure, axes)
    return figure


def _scale(figure: Any, axes: Any) -> None:
    """A bar that says which colour is which weight; the colours go by the square root."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, PowerNorm

    mapping = ScalarMappable(PowerNorm(0.5, 0, 1), ListedColormap(palette()[: LEVELS + 1] / 255.0))
    bar = figure.colorbar(mapping, ax=axes, location="bottom", shrink=0.35, aspect=40, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.ax.set_xticklabels(["0", "0.05", "0.2", "0.5", "1"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=_FAINT)
    bar.set_label("weight", color=_FAINT)


def _colors(weights: Any) -> Any:
    return palette()[shades(weights)]


@cache
def _glyphs() -> frozenset[int]:
    """The characters of the font that comes with Matplotlib."""
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(findfont(FontProperties(family="DejaVu Sans"))).get_charmap())


def _drawable(text: str) -> str:
    return "".join(character if ord(character) in _glyphs() else "□" for character in text)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _title(axis: Any, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=9.5, fontweight="bold", color=_INK)


def _plain(axis: Any, size: float = 8.0) -> None:
    axis.tick_params(length=0, labelsize=size, labelcolor=_INK)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _save(figure: Any, path: Path) -> Path:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(
        {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "text.parse_math": False}
    ):
        figure.savefig(buffer, format="png", dpi=130)
    write_bytes(path, buffer.getvalue())
    return path
