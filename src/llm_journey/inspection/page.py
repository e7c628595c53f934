"""An inspection as one HTML file that holds everything it shows, and as a frame in a notebook.

Without script one still sees the text coloured by surprise, all heads at a glance and the lens in figures; the script
adds single maps, the text coloured by where a token looks, and the lens token by token. The template is autoescaped,
the data block cannot end early, and the security policy allows data-URI pictures, the one style sheet and the one
script, both named by their hash: nothing is fetched and nothing in a text runs.
"""

import base64
import hashlib
import json
import math
import zlib
from html import escape
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from llm_journey.inspection.maps import FloatArray, cell_size, pooled
from llm_journey.inspection.page_script import SCRIPT, STYLE
from llm_journey.inspection.pixels import LEVELS, overview, palette, png, shades
from llm_journey.inspection.reading import Reading, TokenFacts, label, spelled

# Cells of all maps together. 512 positions of a model with 30 layers of 9 heads are 79 million.
MAX_CELLS = 1 << 27
# A notebook keeps its outputs in its file.
MAX_FRAME_CELLS = 1 << 22
_BITS_PER_LEVEL = 1.5


def page(reading: Reading, max_cells: int = MAX_CELLS) -> str:
    """The page as one HTML document. Maps with more than `max_cells` in all are pooled."""
    found = reading.inspection
    factor = _factor(reading, max_cells)
    maps = [_with_mean(np.stack([pooled(one, factor) for one in found.maps[layer]])) for layer in found.maps]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TEMPLATE).render(
        reading=reading,
        found=found,
        policy=_policy(),
        style=STYLE,
        script=SCRIPT,
        data=_json_block(_data(reading, maps, factor)),
        texts=_texts(reading),
        sheet=_png_uri(png(overview(maps))),
        scale=_png_uri(png(np.arange(LEVELS + 1, dtype=np.uint8)[None])),
        heads=_head_names(found.num_heads),
        rows=_lens_rows(reading),
        left_out=[*reading.left_out, *_pooling_note(found.cell * factor, factor)],
        title=_title(reading),
    )


def _title(reading: Reading) -> str:
    texts = [reading.text, *([] if reading.target is None else [reading.target])]
    shown = [label(spelled(" ".join(text[:200].split()).encode("utf-8", "replace")), 70) for text in texts]
    return " → ".join(text or "(no text)" for text in shown)


def _texts(reading: Reading) -> list[tuple[str, list[tuple[str, str]]]]:
    """(heading, tokens) of each text that is shown; a token is (text, class)."""
    tokens = [
        (text, _surprise_class(facts)) for text, facts in zip(reading.tokens, reading.token_facts(), strict=False)
    ]
    if reading.target is None:
        return [("", tokens)]
    start = reading.inspection.lens_start
    return [("Source", tokens[:start]), ("Target", tokens[start:])]


def framed(reading: Reading) -> str:
    """The page in a frame of its own, for a notebook: it can neither read the notebook nor be styled by it."""
    document = escape(page(reading, MAX_FRAME_CELLS), quote=True)
    return f'<iframe sandbox="allow-scripts" srcdoc="{document}" width="100%" height="900" frameborder="0"></iframe>'


def _factor(reading: Reading, max_cells: int) -> int:
    found = reading.inspection
    side = math.ceil(max(len(part.queries) for part in found.parts) / found.cell)
    return cell_size(side, len(found.maps) * (found.num_heads + 1), 4 * max_cells)


def _with_mean(maps: FloatArray) -> FloatArray:
    result: FloatArray = np.concatenate([maps, maps.mean(0, keepdims=True)])
    return result


def _head_names(num_heads: int) -> list[str]:
    return [*(f"head {head}" for head in range(num_heads)), "mean"]


def _data(reading: Reading, maps: list[FloatArray], factor: int) -> dict[str, Any]:
    """All that the script reads."""
    found = reading.inspection
    layer, head = found.sharpest_head()
    figures = [
        getattr(found.heads, name) for name in ("entropy", "first", "previous", "itself", "following", "distance")
    ]
    return {
        "tokens": reading.tokens,
        "causal": found.causal,
        "facts": [_facts_json(facts) for facts in reading.token_facts()],
        "lens": _lens_json(reading),
        "layers": [found.layer_name(layer) for layer in found.maps],
        "spans": [
            [part.queries.start, len(part.queries), part.keys.start, len(part.keys)]
            for part in map(found.part, found.maps)
        ],
        "heads": _head_names(found.num_heads),
        "figures": [
            [*([_rounded(figure[at, index]) for figure in figures] for index in range(found.num_heads)), None]
            for at in found.maps
        ],
        "cell": found.cell * factor,
        "levels": LEVELS,
        "palette": base64.b64encode(palette().tobytes()).decode("ascii"),
        "maps": [[_packed(one) for one in heads] for heads in maps],
        "start": {
            "row": list(found.maps).index(layer),
            "head": head,
            "token": found.part(layer).queries.stop - 1,
        },
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 4)


def _packed(weights: FloatArray) -> str:
    return base64.b64encode(zlib.compress(shades(weights).tobytes(), 6)).decode("ascii")


def _facts_json(facts: TokenFacts) -> dict[str, Any]:
    return {
        "p": facts.probability,
        "bits": facts.bits,
        "rank": facts.rank,
        "entropy": facts.entropy,
        "expected": [[text, round(probability, 3)] for text, probability in facts.expected],
    }


def _lens_json(reading: Reading) -> dict[str, Any]:
    """Each layer's likeliest token at each position: words by number, probabilities x 1000, bits x 100."""
    lens = reading.inspection.lens
    ids = sorted({int(token) for layer in lens for token in layer.kept_ids[:, 0]})
    number = {token: index for index, token in enumerate(ids)}
    return {
        "start": reading.inspection.lens_start,
        "labels": reading.lens_labels(),
        "words": [reading.word(token) for token in ids],
        "top": [[number[token] for token in layer.kept_ids[:, 0].tolist()] for layer in lens],
        "p": [np.rint(1000 * layer.kept_probabilities[:, 0]).astype(int).tolist() for layer in lens],
        "entropy": [np.rint(100 * layer.entropy).astype(int).tolist() for layer in lens],
        "rank": [layer.rank.tolist() for layer in lens],
    }


def _json_block(value: Any) -> str:
    """JSON that cannot end its script element, whatever the texts in it hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _surprise_class(facts: TokenFacts) -> str:
    return "s0" if facts.bits is None else f"s{min(9, int(facts.bits / _BITS_PER_LEVEL))}"


def _lens_rows(reading: Reading) -> list[dict[str, Any]]:
    rows = reading.lens_rows()
    # The input of the first layer is no prediction yet: it may cost ten times the rest, and would flatten it.
    most = max((row.bits or row.entropy for row in rows[1:]), default=1.0) or 1.0
    return [
        {
            "label": row.label,
            "bar": round(160 * min(1.0, (row.entropy if row.bits is None else row.bits) / most), 1),
            "bits": "" if row.bits is None else f"{row.bits:.2f}",
            "entropy": f"{row.entropy:.2f}",
            "right": "" if row.right is None else f"{row.right:.0%}",
            "as_last": f"{row.as_last:.0%}",
        }
        for row in rows
    ]


def _pooling_note(cell: int, factor: int) -> list[str]:
    """What the page leaves out beyond what the reading has left out already."""
    if factor == 1:
        return []
    return [f"one cell of a map stands for {cell} × {cell} positions; name a layer (--layer) to see its maps finer"]


def _policy() -> str:
    digests = {name: hashlib.sha256(text.encode("utf-8")).digest() for name, text in (("s", STYLE), ("j", SCRIPT))}
    style, script = (base64.b64encode(digests[name]).decode("ascii") for name in ("s", "j"))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _png_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{{ reading.model }}: {{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<main>
<p class="soft">Inside {{ reading.model }}</p>
<h1>{{ title }}</h1>
<dl>
{% for name, value in reading.figures() %}
<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl>
{% for note in left_out %}
<p class="soft">Left out: {{ note }}.</p>
{% endfor %}
<div class="panel">
<fieldset><legend hidden>Colour of the text</legend>
{% if found.lens %}
<label><input type="radio" name="mode" value="surprise" checked> surprise (bits)</label>
{% endif %}
<label><input type="radio" name="mode" value="from"{% if not found.lens %} checked{% endif %}>
where the chosen token looks</label>
<label><input type="radio" name="mode" value="to"> which tokens look at it</label>
<small>Click a token.</small></fieldset>
<div class="text">
{%- for heading, tokens in texts -%}
{%- if heading %}<p class="soft">{{ heading }}</p>{% endif -%}
{%- for text, kind in tokens -%}
<button type="button" class="token {{ kind }}" data-surprise="{{ kind }}">{{ text }}</button>
{%- if text.endswith("⏎") %}<br>{% endif %}
{%- endfor -%}
{%- endfor -%}
</div>
<p class="now" id="now" aria-live="polite"></p>
</div>
<h2>Attention</h2>
<p class="soft">All heads at a glance (a row a layer, a column a head), and one of them large: rows are queries, columns
the keys that they look at. Colours go by the square root of the weight. Every map was checked: times the values, it
gives what the model's own kernel gave, to within {{ "%.1e" | format(found.map_error) }}.</p>
<div class="maps">
<div class="sheet"><div class="grid">
<ol class="across">{% for name in heads %}<li>{{ name | replace("head ", "") }}</li>{% endfor %}</ol>
<ol class="down">{% for layer in found.maps %}<li>{{ found.layer_name(layer) }}</li>{% endfor %}</ol>
<img id="sheet" class="pixels" src="{{ sheet }}" alt="Attention maps of every head, layers from top to bottom">
<div class="mark" id="mark" hidden></div>
</div></div>
<div>
<fieldset><label>layer <select id="layer">
{% for layer in found.maps %}<option value="{{ loop.index0 }}">{{ found.layer_name(layer) }}</option>{% endfor %}
</select></label> <label>head <select id="head">
{% for name in heads %}<option value="{{ loop.index0 }}">{{ name | replace("head ", "") }}</option>{% endfor %}
</select></label>
<span class="scale">0 <img class="pixels" src="{{ scale }}" alt="from white, weight 0, to dark, weight 1"> 1</span>
</fieldset>
<canvas id="map" class="pixels" width="640" height="640" role="img" aria-label="Map of the chosen head"></canvas>
<p class="now" id="reading" aria-live="polite"></p>
</div>
</div>
{% if found.lens %}
<h2>Logit lens</h2>
<p class="soft">The model's final norm and head on what each layer leaves behind: what it would predict if it ended
there. {% if reading.target is not none %}Of the target, which the decoder writes. {% endif -%}
{% if found.causal %}Each column predicts the token after it; a bar at the left marks the right one.
{% else %}Each column predicts its own token, which the model sees.{% endif %}
The stronger the colour, the more probable.</p>
<fieldset><button type="button" class="step" id="lens-back">‹ earlier</button>
<button type="button" class="step" id="lens-on">later ›</button> <span id="lens-at"></span></fieldset>
<div class="scroll"><table id="lens"></table></div>
<noscript><p class="soft">Token by token it needs the page's script.</p></noscript>
<h2>Layer by layer</h2>
<div class="scroll"><table>
<thead><tr><th>layer</th><th colspan="2">bits for the right token</th><th>entropy, bits</th><th>right at once</th>
<th>same as the last layer</th></tr></thead>
<tbody>
{% for row in rows %}
<tr><td>{{ row.label }}</td><td>{{ row.bits }}</td><td><svg width="160" height="10" aria-hidden="true">
<rect width="{{ row.bar }}" height="10"></rect></svg></td><td>{{ row.entropy }}</td><td>{{ row.right }}</td>
<td>{{ row.as_last }}</td></tr>
{% endfor %}
</tbody>
</table></div>
{% endif %}
</main>
<script type="application/json" id="data">{{ data | safe }}</script>
<script>{{ script | safe }}</script>
</body>
</html>
"""
