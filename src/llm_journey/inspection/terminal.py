"""An inspection in a terminal: tables as rows of text, and one head as a map of characters.

A long text is shown from its end, since that is where a model goes on; what is left out is counted for the person.
"""

import math

from llm_journey.inspection.maps import pooled
from llm_journey.inspection.reading import Reading, label

MOST_TOKENS = 40
MOST_CELLS = 32
_SHADES = " ·░▒▓█"
_LENS_CELL = 12


def token_table(reading: Reading, most: int = MOST_TOKENS) -> tuple[list[str], list[list[str]], int]:
    """Head, rows, and how many tokens are left out at the start."""
    facts = reading.token_facts()
    left_out = max(0, reading.inspection.length - most)
    head = ["#", "token", "probability", "bits", "rank", "entropy", "expected here"]
    rows = [
        [
            str(fact.position) if fact.text is not None else "",
            label(fact.text, 20) if fact.text is not None else "(next)",
            _form(fact.probability, "{:.4f}"),
            _form(fact.bits, "{:.2f}"),
            _form(fact.rank, "{:,}"),
            _form(fact.entropy, "{:.2f}"),
            "  ".join(f"{label(text)} {probability:.2f}" for text, probability in fact.expected[:3]),
        ]
        for fact in facts[left_out:]
    ]
    return head, rows, left_out


def lens_table(reading: Reading, width: int | None) -> tuple[list[str], list[list[str]], int]:
    """Head, rows (a layer each, then what really came) for the last positions that fit `width` characters (None: no
    terminal, eight), and how many positions are left out."""
    found = reading.inspection
    fitting = 8 if width is None else max(1, (width - 8) // (_LENS_CELL + 7))
    tokens = reading.lens_tokens
    columns = min(len(tokens), fitting)
    left_out = len(tokens) - columns
    places = range(left_out, len(tokens))
    head = ["layer", *(label(tokens[at], _LENS_CELL) for at in places)]
    rows = []
    for name, layer in zip(reading.lens_labels(), found.lens, strict=True):
        best = [next(reading.expected(layer, at)) for at in places]
        rows.append([name, *(f"{label(text, _LENS_CELL)} {probability:.2f}" for text, probability in best)])
    if found.causal:
        came = [label(tokens[at + 1], _LENS_CELL) if at + 1 < len(tokens) else "" for at in places]
        rows.append(["came", *came])
    return head, rows, left_out


def head_table(reading: Reading) -> tuple[list[str], list[list[str]]]:
    """Head and rows: for each layer its sharpest head, and where its heads look on average."""
    found, figures = reading.inspection, reading.inspection.heads
    sees_later = not found.causal or len(found.parts) > 1
    head = ["layer", "sharpest head", "its entropy", "mean entropy", "on first", "on previous", "on itself", "distance"]
    if sees_later:
        head.insert(7, "on following")
    rows = []
    for layer in found.maps:
        sharpest = int(figures.entropy[layer].argmin())
        shares = [figures.first, figures.previous, figures.itself]
        if sees_later:
            shares.append(figures.following)
        rows.append(
            [
                found.layer_name(layer),
                str(sharpest),
                f"{figures.entropy[layer, sharpest]:.2f}",
                f"{figures.entropy[layer].mean():.2f}",
                *(_known(share[layer].mean(), "{:.0%}") for share in shares),
                _known(figures.distance[layer].mean(), "{:.1f}"),
            ]
        )
    return head, rows


def map_title(reading: Reading, layer: int, head: int) -> str:
    """Which head a map is of, and what looks at what."""
    found = reading.inspection
    part = found.part(layer)
    name = found.layer_name(layer) if part.name else f"layer {layer}"
    crosses = part.queries != part.keys
    looks = "the target's rows look at the source's columns" if crosses else "each row looks at the columns"
    return f"{name[:1].upper()}{name[1:]}, head {head}: {looks}"


def heat_map(reading: Reading, layer: int, head: int, most: int = MOST_CELLS) -> list[str]:
    """One head as lines of text: a line a query, two characters a key; darker where more weight lies.

    More positions than `most` are pooled. Shades go by the square root of the weight.
    """
    found = reading.inspection
    weights, queries = found.attention(layer, head), found.part(layer).queries
    factor = math.ceil(max(weights.shape) / most)
    cells = pooled(weights, factor)
    step = found.cell * factor
    lines = []
    for row, values in enumerate(cells):
        at = row * step
        name = label(reading.tokens[queries[at]], 12) if step == 1 else f"{at}–{min(at + step, len(queries)) - 1}"
        shown = "".join(2 * _SHADES[min(int(math.sqrt(value) * len(_SHADES)), len(_SHADES) - 1)] for value in values)
        lines.append(f"{name:>12} {shown}".rstrip())
    return lines


def legend() -> str:
    """What the characters of a heat map mean."""
    edges = [(index / len(_SHADES)) ** 2 for index in range(1, len(_SHADES))]
    return "weight: " + "  ".join(f"{shade} from {edge:.2f}" for shade, edge in zip(_SHADES[1:], edges, strict=True))


def _known(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)


def _form(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
