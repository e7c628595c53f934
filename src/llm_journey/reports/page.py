"""A self-contained HTML page from typed blocks: facts, tables, pictures, samples, code. No script, nothing fetched.

The template is autoescaped, so hostile text in a run shows as text. The content security policy forbids everything but
data-URI pictures and the one style sheet, which it names by its hash.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from jinja2 import Environment, StrictUndefined


@dataclass(frozen=True)
class Note:
    """A paragraph. `tone` is "plain", "good" or "warning"."""

    text: str
    tone: str = "plain"
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Facts:
    """Labelled values, one a line."""

    rows: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Table:
    """Rows under headings; columns after the first are aligned right, unless `is_text`. strong: indices of rows to
    stress."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = frozenset()
    is_text: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Picture:
    """A picture for light and for dark pages (data URIs), and its description for those who cannot see it."""

    light: str
    dark: str
    alternative: str
    caption: str = ""
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Sample:
    """Text that the model wrote, after its prompt."""

    stage: str
    prompt: str
    text: str
    kind: ClassVar[str] = "sample"


@dataclass(frozen=True)
class Code:
    """Preformatted text; folded away under its summary where it has one."""

    text: str
    summary: str = ""
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Chips:
    """Short texts side by side, such as tokens."""

    title: str
    texts: Sequence[str]
    kind: ClassVar[str] = "chips"


Block = Note | Facts | Table | Picture | Sample | Code | Chips


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it. `anchor` is its place in the page's address."""

    anchor: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page: title, status, one sentence under it, the figures that matter most (label, value, unit)."""

    title: str
    kicker: str
    lead: str
    status: str = ""
    figures: Sequence[tuple[str, str, str]] = ()
    sections: Sequence[Section] = field(default_factory=tuple)
    footer: str = ""


def render(page: Page) -> str:
    """The page as one HTML document."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TEMPLATE).render(page=page, policy=policy, style=_STYLE)


_STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfaf7; --card: #ffffff; --ink: #1c2430; --soft: #5c6773; --line: #e3e3dc;
  --accent: #b54a00; --good: #0b6e52; --good-back: #e6f4ee; --warn: #8a4b00; --warn-back: #fcf1dd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --card: #1a2027; --ink: #e6eaef; --soft: #9aa5b1; --line: #2c343d;
    --accent: #f0a35e; --good: #6fd3b0; --good-back: #14302a; --warn: #f0c27a; --warn-back: #352a17;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.6 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 58rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1, h2, .sample p { font-family: Charter, "Iowan Old Style", Palatino, Georgia, "DejaVu Serif", serif; }
h1, h2 { line-height: 1.2; }
h1 { font-size: 2.4rem; margin: .25rem 0 .6rem; overflow-wrap: anywhere; font-weight: 600; letter-spacing: -.01em; }
h2 { font-size: 1.45rem; margin: 0 0 1rem; font-weight: 600; }
.kicker { color: var(--soft); font-size: .85rem; margin: 0; display: flex; gap: .75rem; align-items: center; }
.status { border: 1px solid currentColor; border-radius: 1rem; padding: .02rem .65rem; font-size: .78rem; }
.status.finished { color: var(--good); } .status.failed, .status.interrupted, .status.running { color: var(--warn); }
.lead { font-size: 1.15rem; max-width: 46rem; margin: 0 0 2rem; overflow-wrap: anywhere; }
.figures {
  display: flex; flex-wrap: wrap; gap: 1px; margin: 0 0 1.5rem;
  background: var(--line); border: 1px solid var(--line); border-radius: .6rem; overflow: hidden;
}
.figures div { background: var(--card); padding: .85rem 1rem; flex: 1 1 auto; min-width: 7.4rem; }
.figures dt { color: var(--soft); font-size: .8rem; }
.figures dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.figures small { font-size: .78rem; font-weight: 400; color: var(--soft); display: block; line-height: 1.3; }
.figures div:first-child dd { color: var(--accent); }
nav { font-size: .88rem; margin: 0 0 1rem; display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: .2em; }
section { border-top: 1px solid var(--line); padding: 2rem 0 1.2rem; }
figure { margin: 0 0 1.25rem; } figure img { display: block; width: 100%; height: auto; }
figcaption, .caption { color: var(--soft); font-size: .85rem; max-width: 46rem; margin-top: .4rem; }
p { max-width: 46rem; margin: 0 0 1.1rem; overflow-wrap: anywhere; }
p.good, p.warning { border-radius: .5rem; padding: .6rem .9rem; max-width: none; }
p.good { color: var(--good); background: var(--good-back); }
p.warning { color: var(--warn); background: var(--warn-back); }
.scroll { overflow-x: auto; margin: 0 0 1.3rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .8rem .38rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
th:first-child, td:first-child { text-align: left; } th:last-child, td:last-child { padding-right: .2rem; }
tr.strong td { color: var(--accent); font-weight: 600; }
table.facts td { text-align: left; overflow-wrap: anywhere; }
table.text th, table.text td { text-align: left; vertical-align: top; overflow-wrap: anywhere; width: 33%; }
table.facts td:first-child { color: var(--soft); width: 14rem; }
.sample { border-left: 3px solid var(--line); padding: 0 0 0 1rem; margin: 0 0 1.3rem; }
.sample .stage { color: var(--soft); font-size: .82rem; display: block; }
.sample p { white-space: pre-wrap; margin: 0; line-height: 1.55; }
pre {
  background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .9rem 1rem; overflow-x: auto;
  font: .84rem/1.55 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; margin: 0 0 1.2rem;
}
summary { cursor: pointer; color: var(--soft); margin: 0 0 .8rem; }
p.caption { margin-bottom: .2rem; }
.chips { display: flex; flex-wrap: wrap; gap: .35rem; margin: .3rem 0 1.3rem; padding: 0; list-style: none; }
.chips li {
  background: var(--card); border: 1px solid var(--line); border-radius: .3rem; padding: .05rem .45rem;
  white-space: pre-wrap; font: .82rem/1.6 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere;
}
footer { color: var(--soft); font-size: .85rem; border-top: 1px solid var(--line); padding-top: 1.2rem; }
@media print { body { background: #fff; } nav { display: none; } section { break-inside: avoid; } }
"""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{{ page.title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<main>
<header>
<p class="kicker"><span>{{ page.kicker }}</span>
{% if page.status %}<span class="status {{ page.status }}">{{ page.status }}</span>{% endif %}</p>
<h1>{{ page.title }}</h1>
<p class="lead">{{ page.lead }}</p>
{% if page.figures %}
<dl class="figures">
{% for label, value, unit in page.figures %}
<div><dt>{{ label }}</dt><dd>{{ value }}{% if unit %}<small>{{ unit }}</small>{% endif %}</dd></div>
{% endfor %}
</dl>
{% endif %}
<nav aria-label="Sections">
{% for section in page.sections %}<a href="#{{ section.anchor }}">{{ section.title }}</a>
{% endfor %}
</nav>
</header>
{% for section in page.sections %}
<section id="{{ section.anchor }}">
<h2>{{ section.title }}</h2>
{% for block in section.blocks %}
{% if block.kind == "note" %}
<p class="{{ block.tone }}">{{ block.text }}</p>
{% elif block.kind == "facts" %}
<div class="scroll"><table class="facts">
{% for label, value in block.rows %}
<tr><td>{{ label }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
{% elif block.kind == "table" %}
<div class="scroll"><table{% if block.is_text %} class="text"{% endif %}>
<thead><tr>{% for cell in block.head %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in block.rows %}
<tr{% if loop.index0 in block.strong %} class="strong"{% endif %}>
{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table></div>
{% elif block.kind == "picture" %}
<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{{ block.dark }}">
<img src="{{ block.light }}" alt="{{ block.alternative }}"></picture>
{% if block.caption %}<figcaption>{{ block.caption }}</figcaption>{% endif %}</figure>
{% elif block.kind == "sample" %}
<div class="sample"><span class="stage">{{ block.stage }}</span><p><b>{{ block.prompt }}</b>{{ block.text }}</p></div>
{% elif block.kind == "chips" %}
<p class="caption">{{ block.title }}</p>
<ul class="chips">{% for text in block.texts %}<li>{{ text }}</li>{% endfor %}</ul>
{% elif block.summary %}
<details><summary>{{ block.summary }}</summary><pre>{{ block.text }}</pre></details>
{% else %}
<pre>{{ block.text }}</pre>
{% endif %}
{% endfor %}
</section>
{% endfor %}
<footer>{{ page.footer }}</footer>
</main>
</body>
</html>
"""
