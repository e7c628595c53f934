"""An inspection with its words: the text of each token, how likely it was, and what the model expected in its place.

Terminal, pictures, page and JSON are made from this one record. Text that a terminal or a page could take for
something else (control characters, direction marks, halves of characters) is spelled out here, once for all of them.
"""

import math
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_journey.inspection.inspection import Inspection
from llm_journey.inspection.lens import Predictions
from llm_journey.inspection.maps import FloatArray

# JSON with more weights than these is no longer read by anybody; a layer can be named instead.
MAX_JSON_WEIGHTS = 1_000_000
_SPELLED = {"\n": "⏎", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class TokenFacts:
    """One token: how likely the model held it, and the tokens that it held likeliest in this place.

    probability, bits (surprisal, -log2), rank (1: the likeliest), entropy (bits, of the whole distribution): None where
    nothing was predicted here (a text's first token; a model without a head). text None: the token that would come
    after the text. expected: (text, probability), best first.
    """

    position: int
    id: int | None
    text: str | None
    probability: float | None
    bits: float | None
    rank: int | None
    entropy: float | None
    expected: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class LensRow:
    """A layer over the whole text, means: bits that the right token costs, entropy in bits; share of positions where
    the likeliest token is the right one, and where it is the last layer's."""

    label: str
    bits: float | None
    entropy: float
    right: float | None
    as_last: float


@dataclass(frozen=True)
class Reading:
    """What a model did while it read `text`. `word` spells the id of any token. target: what an encoder-decoder was to
    write for it, None for other models."""

    model: str
    text: str
    inspection: Inspection
    tokens: tuple[str, ...]
    word: Callable[[int], str]
    left_out: tuple[str, ...] = ()
    target: str | None = None

    def attention(self, layer: int, head: int) -> FloatArray:
        """One head's weights: rows look at columns. Raises BadInputError for a layer or head that is not there."""
        return self.inspection.attention(layer, head)

    def token_facts(self) -> list[TokenFacts]:
        """Each token, and for what writes on the place behind the last one."""
        found, shift = self.inspection, int(self.inspection.causal)
        facts = []
        for position in range(found.length + (shift if found.lens else 0)):
            inside = position < found.length
            token = int(found.ids[position]) if inside else None
            at = position - shift - found.lens_start
            predicted = found.predicted if at >= 0 else None
            facts.append(
                TokenFacts(
                    position,
                    token,
                    self.tokens[position] if inside else None,
                    _number(predicted.probability[at]) if predicted and inside else None,
                    _number(predicted.surprisal[at]) if predicted and inside else None,
                    int(predicted.rank[at]) if predicted and inside else None,
                    _number(predicted.entropy[at]) if predicted else None,
                    tuple(self.expected(predicted, at)) if predicted else (),
                )
            )
        return facts

    def expected(self, predicted: Predictions, position: int) -> Iterator[tuple[str, float]]:
        """(text, probability) of the likeliest tokens at a position, best first."""
        ids, probabilities = predicted.kept_ids[position].tolist(), predicted.kept_probabilities[position].tolist()
        return zip(map(self.word, ids), probabilities, strict=True)

    def lens_rows(self) -> list[LensRow]:
        """One row a layer, the input first."""
        lens = self.inspection.lens
        rows = []
        for label, layer in zip(self.lens_labels(), lens, strict=True):
            judged = ~np.isnan(layer.surprisal)
            bits = float(layer.surprisal[judged].mean()) if judged.any() else None
            right = float((layer.rank[judged] == 1).mean()) if judged.any() else None
            as_last = float((layer.kept_ids[:, 0] == lens[-1].kept_ids[:, 0]).mean())
            rows.append(LensRow(label, bits, float(layer.entropy.mean()), right, as_last))
        return rows

    @property
    def lens_tokens(self) -> tuple[str, ...]:
        """The tokens at the lens's positions: all, or an encoder-decoder's target."""
        return self.tokens[self.inspection.lens_start :]

    def lens_labels(self) -> list[str]:
        """Names of the lens's rows: the input of the first layer, then each layer by its number."""
        return ["input", *map(str, range(len(self.inspection.lens) - 1))] if self.inspection.lens else []

    def figures(self) -> list[tuple[str, str]]:
        """(label, value) rows: the text as a whole."""
        found = self.inspection
        target = len(self.lens_tokens)
        tokens = f"{found.length:,}" if self.target is None else f"{found.length - target:,} in, {target:,} out"
        rows = [("Model", self.model), ("Tokens", tokens)]
        bits = self.bits
        if bits is not None and found.causal:
            rows += [("Bits per token", f"{bits:.3f}"), ("Perplexity", f"{2**bits:,.2f}")]
        if found.predicted is not None:
            rows.append(("Mean entropy", f"{float(found.predicted.entropy.mean()):.3f} bits"))
        layers = [f"{part.name} {len(part.layers)}".strip() for part in found.parts]
        rows.append(("Layers and heads", f"{', '.join(layers)} × {found.num_heads}"))
        return rows

    @property
    def bits(self) -> float | None:
        """Mean surprisal of the tokens that were predicted, in bits; None where none was."""
        predicted = self.inspection.predicted
        if predicted is None or np.isnan(predicted.surprisal).all():
            return None
        return float(np.nanmean(predicted.surprisal))

    def describe(self) -> dict[str, Any]:
        """Everything as JSON values; the weights themselves where they are not too many."""
        found = self.inspection
        weights, left_out = None, list(self.left_out)
        count = sum(maps.size for maps in found.maps.values())
        if count <= MAX_JSON_WEIGHTS:
            weights = {
                found.layer_name(layer): np.round(maps.astype(float), 6).tolist() for layer, maps in found.maps.items()
            }
        else:
            left_out.append(f"{count:,} attention weights: name a layer (--layer) for its own, or use --html")
        return {
            "model": self.model,
            "text": self.text,
            **({} if self.target is None else {"target": self.target}),
            "bits_per_token": self.bits,
            "tokens": [_token_json(facts) for facts in self.token_facts()],
            "lens": [
                {"layer": label, "tokens": [self._lens_json(layer, at) for at in range(len(self.lens_tokens))]}
                for label, layer in zip(self.lens_labels(), found.lens, strict=True)
            ],
            "heads": self._heads_json(),
            "attention": {"positions_per_cell": found.cell, "layers": weights},
            "largest_map_error": found.map_error,
            "left_out": left_out,
        }

    def write_png(self, folder: Path) -> list[Path]:
        """Pictures into a folder; returns their paths."""
        from llm_journey.inspection.pictures import write_pictures

        return write_pictures(self, folder)

    def write_html(self, path: Path) -> Path:
        """One self-contained page; returns its path."""
        from llm_journey.core.files import write_text
        from llm_journey.inspection.page import page

        write_text(path, page(self))
        return path

    def _repr_html_(self) -> str:
        from llm_journey.inspection.page import framed

        return framed(self)

    def _lens_json(self, layer: Predictions, at: int) -> dict[str, Any]:
        token = int(layer.kept_ids[at, 0])
        return {
            "id": token,
            "text": self.word(token),
            "probability": _number(layer.kept_probabilities[at, 0]),
            "entropy": _number(layer.entropy[at]),
            "target_probability": _number(layer.probability[at]),
            "target_rank": int(layer.rank[at]) or None,
        }

    def _heads_json(self) -> list[dict[str, Any]]:
        names = ("entropy", "first", "previous", "itself", "following", "distance")
        found = self.inspection
        return [
            {"layer": layer if self.target is None else found.layer_name(layer), "head": head}
            | {name: _number(getattr(found.heads, name)[layer, head]) for name in names}
            for layer in found.maps
            for head in range(found.num_heads)
        ]


def spelled(data: bytes) -> str:
    """A token's bytes as text that shows as itself: line ends as ⏎, halves of characters and controls as numbers."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return "⟨" + data.hex(" ") + "⟩"
    return "".join(map(_spelled_character, text))


def label(text: str, most: int = 14) -> str:
    """A token's text for a narrow place: spaces at its ends as ·, cut in the middle of a word with …"""
    inner = text.strip(" ")
    start = len(text) - len(text.lstrip(" "))
    shown = "·" * start + inner + "·" * (len(text) - start - len(inner))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _spelled_character(character: str) -> str:
    if character in _SPELLED:
        return _SPELLED[character]
    # Control, format (direction marks), surrogate, private and unassigned characters; spaces other than the usual one.
    if character != " " and unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}:
        return f"⟨U+{ord(character):04X}⟩"
    return character


def _number(value: Any) -> float | None:
    """A float that JSON can hold: six digits behind the point, None for not-a-number."""
    return None if math.isnan(value) else round(float(value), 6)


def _token_json(facts: TokenFacts) -> dict[str, Any]:
    return {
        "position": facts.position,
        "id": facts.id,
        "text": facts.text,
        "probability": facts.probability,
        "bits": facts.bits,
        "rank": facts.rank,
        "entropy": facts.entropy,
        "expected": [{"text": text, "probability": round(probability, 6)} for text, probability in facts.expected],
    }
