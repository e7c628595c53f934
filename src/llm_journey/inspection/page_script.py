"""The style sheet and the script of the page (page), which names both by their hash in its security policy.

The script reads one JSON block, writes text by textContent only, fetches nothing, and keeps nothing. Maps lie in the
JSON as base64 of zlib-compressed shades (pixels) and are unpacked when they are looked at.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfaf7; --card: #ffffff; --ink: #1c2430; --soft: #5c6773; --line: #e3e3dc; --accent: #b54a00;
  --surprise: 0, 114, 178; --weight: 213, 94, 0; --right: 11, 110, 82;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --card: #1a2027; --ink: #e6eaef; --soft: #9aa5b1; --line: #2c343d; --accent: #f0a35e;
    --surprise: 86, 180, 233; --weight: 240, 163, 94; --right: 111, 211, 176;
  }
  .pixels { filter: invert(1) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 1rem/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1, h2 { font-family: Charter, "Iowan Old Style", Palatino, Georgia, "DejaVu Serif", serif; font-weight: 600; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .8rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 2.2rem 0 .3rem; }
p { margin: .2rem 0 .8rem; max-width: 52rem; } .soft, small { color: var(--soft); font-size: .86rem; }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: 0 0 .6rem; }
dt { color: var(--soft); font-size: .8rem; } dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; }
.mono, .text, td.word, th.word { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.panel { position: sticky; top: 0; z-index: 2; background: var(--page); padding: .5rem 0 .3rem;
  border-bottom: 1px solid var(--line); }
.text { position: relative; max-height: 9.6rem; overflow-y: auto; background: var(--card);
  border: 1px solid var(--line); border-radius: .4rem; padding: .45rem .6rem; font-size: .9rem; line-height: 1.75; }
.token { border: 0; padding: .08rem 0; margin: 0; font: inherit; color: inherit; background: none; cursor: pointer;
  white-space: pre-wrap; overflow-wrap: anywhere; border-radius: .15rem; box-shadow: inset -1px 0 0 var(--line); }
.token.chosen { outline: 2px solid var(--accent); outline-offset: 0; }
fieldset { border: 0; padding: 0; margin: 0 0 .35rem; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem;
  font-size: .88rem; color: var(--soft); align-items: center; }
.now { min-height: 1.5em; margin: .3rem 0 0; font-size: .9rem; max-width: none; }
.now b { font-weight: 600; }
.maps { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 1.2rem; align-items: start; }
@media (max-width: 60rem) { .maps { grid-template-columns: minmax(0, 1fr); } }
.sheet { overflow: auto; max-height: 41rem; max-width: min(36rem, 100%); border: 1px solid var(--line);
  border-radius: .4rem; background: var(--card); }
.sheet .grid { position: relative; display: grid; grid-template-columns: minmax(2.4rem, auto) auto;
  width: max-content; }
.sheet ol { list-style: none; margin: 0; padding: 4px 0 0; color: var(--soft); font-size: .75rem; }
.sheet ol.down li { height: 52px; line-height: 48px; text-align: right; padding: 0 .45rem; white-space: nowrap; }
.sheet ol.across { grid-column: 2; display: flex; padding: 0 0 0 4px; }
.sheet ol.across li { width: 52px; text-align: center; padding-right: 4px; }
.sheet img { display: block; image-rendering: pixelated; cursor: crosshair; }
.mark { position: absolute; width: 52px; height: 52px; border: 3px solid var(--accent); border-radius: 3px;
  pointer-events: none; }
select, button.step { font: inherit; font-size: .88rem; color: inherit; background: var(--card); padding: .1rem .4rem;
  border: 1px solid var(--line); border-radius: .3rem; }
canvas { display: block; width: 100%; max-width: 40rem; cursor: crosshair; }
.scale { display: flex; gap: .6rem; align-items: center; font-size: .78rem; color: var(--soft); margin: .3rem 0; }
.scale img { width: 12rem; height: .8rem; display: block; border: 1px solid var(--line); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .16rem .5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; color: var(--soft); }
td.word, th.word { text-align: left; min-width: 6.4rem; max-width: 9rem; overflow: hidden; text-overflow: ellipsis;
  white-space: pre; font-size: .8rem; }
td.right { box-shadow: inset 3px 0 0 rgb(var(--right)); font-weight: 700; }
svg { display: block; } svg rect { fill: rgba(var(--surprise), .55); }
""" + "".join(
    f".s{level} {{ background: rgba(var(--surprise), {0.075 * level:.3f}); }}\n"
    f".w{level} {{ background: rgba(var(--weight), {0.08 * level:.3f}); }}\n"
    for level in range(10)
)

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const number = (value, digits) => value === null ? "–" : value.toFixed(digits);
const state = { row: data.start.row, head: data.start.head, token: data.start.token, lens: 0, map: null };
const size = (length) => Math.ceil(length / data.cell);
const LENS_COLUMNS = 8;

function label(text, most = 14) {
  const inner = text.replace(/^ +| +$/g, "");
  const start = text.length - text.replace(/^ +/, "").length;
  const shown = "·".repeat(start) + inner + "·".repeat(text.length - start - inner.length);
  return shown.length <= most ? shown : shown.slice(0, most - 1) + "…";
}

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function level(weight) { return Math.min(9, Math.round(9 * Math.sqrt(weight))); }

async function unpack(base64) {
  const packed = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/* Whose queries (rows, downwards) and keys (columns, across) the shown map is about. */
function spans() {
  const [queries, down, keys, across] = data.spans[state.row];
  return { queries: { start: queries, length: down }, keys: { start: keys, length: across },
    down: size(down), across: size(across) };
}

/* The cell of a span in which a token lies; -1 outside. */
function cellOf(span, token) {
  const at = token - span.start;
  return at >= 0 && at < span.length ? Math.floor(at / data.cell) : -1;
}

function weight(query, key) {
  return query < 0 || key < 0 ? 0 : (state.map[query * spans().across + key] / data.levels) ** 2;
}

function place(span, cell) {
  const first = cell * data.cell, last = Math.min(first + data.cell, span.length) - 1;
  const words = data.tokens.slice(span.start + first, span.start + last + 1).map((text) => label(text)).join(" ");
  return "“" + (words.length > 40 ? words.slice(0, 39) + "…" : words) + "” (" +
    (first === last ? first : first + "–" + last) + ")";
}

/* The text, coloured by surprise or by where one token looks. */
const chips = Array.from(document.querySelectorAll(".token"));
function colourText() {
  const mode = document.querySelector("input[name=mode]:checked").value;
  const { queries, keys } = spans();
  const query = cellOf(queries, state.token), key = cellOf(keys, state.token);
  chips.forEach((chip, at) => {
    let kind = "token ";
    if (mode === "surprise") kind += chip.dataset.surprise;
    else if (state.map)
      kind += "w" + level(mode === "from" ? weight(query, cellOf(keys, at)) : weight(cellOf(queries, at), key));
    chip.className = kind + (at === state.token ? " chosen" : "");
  });
}

function describeToken() {
  const facts = data.facts[state.token], line = find("now");
  line.replaceChildren(element("b", label(data.tokens[state.token], 40)), " at " + state.token);
  if (facts.p !== null)
    line.append(": probability " + number(facts.p, 4) + ", " + number(facts.bits, 2) + " bits, rank " + facts.rank +
      (facts.entropy === null ? "" : ", entropy " + number(facts.entropy, 2) + " bits"));
  if (facts.expected.length)
    line.append(" · expected here: " + facts.expected.map((e) => label(e[0]) + " " + e[1].toFixed(2)).join(", "));
  const next = data.facts[state.token + 1];
  if (data.causal && next && next.expected.length)
    line.append(" · expects next: " + next.expected.map((e) => label(e[0]) + " " + e[1].toFixed(2)).join(", "));
}

/* One head's map. Labels stand beside it where there is room for them. */
const canvas = find("map"), brush = canvas.getContext("2d");
const colours = (() => {
  const bytes = atob(data.palette);
  return (shade, channel) => bytes.charCodeAt(3 * shade + channel);
})();
let frame = null, picture = null, hovered = null;

function paint() {
  const { queries, keys, down, across } = spans(), longest = Math.max(down, across);
  const labelled = data.cell === 1 && longest <= 48, ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, margin = labelled ? 104 : 44, unit = (width - margin - 6) / longest;
  const wide = across * unit, high = down * unit;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round((margin + high + 6) * ratio);
  brush.setTransform(ratio, 0, 0, ratio, 0, 0);
  frame = { margin, unit };
  brush.fillStyle = "#ffffff";
  brush.fillRect(0, 0, width, margin + high + 6);
  if (!picture || picture.width !== across || picture.height !== down) return;
  brush.imageSmoothingEnabled = unit * ratio < 1;
  brush.drawImage(picture, margin, margin, wide, high);
  brush.strokeStyle = "#8a8f96";
  brush.strokeRect(margin, margin, wide, high);
  brush.fillStyle = "#1c2430";
  brush.font = (labelled ? Math.max(8, Math.min(12, unit - 1)) : 11) + "px ui-monospace, 'DejaVu Sans Mono', monospace";
  const every = labelled ? 1 : 2 ** Math.max(0, Math.ceil(Math.log2(46 / unit)));
  const name = (span, cell) => labelled ? label(data.tokens[span.start + cell]) : String(cell * data.cell);
  for (let cell = 0; cell < longest; cell += every) {
    const at = margin + (cell + .5) * unit;
    brush.textAlign = "right"; brush.textBaseline = "middle";
    if (cell < down) brush.fillText(name(queries, cell), margin - 5, at, margin - 8);
    if (cell >= across) continue;
    brush.save();
    brush.translate(at, margin - 5);
    if (labelled) { brush.rotate(-Math.PI / 2); brush.textAlign = "left"; } else brush.textAlign = "center";
    brush.textBaseline = labelled ? "middle" : "bottom";
    brush.fillText(name(keys, cell), 0, 0, margin - 8);
    brush.restore();
  }
  const chosen = cellOf(queries, state.token);
  brush.strokeStyle = "#0072b2"; brush.lineWidth = 1.5;
  if (chosen >= 0) brush.strokeRect(margin, margin + chosen * unit - 1, wide, unit + 2);
  if (hovered) {
    brush.strokeStyle = "#1c2430"; brush.lineWidth = 2;
    brush.strokeRect(margin + hovered.key * unit - 1, margin + hovered.query * unit - 1, unit + 2, unit + 2);
  }
  brush.lineWidth = 1;
}

function describeMap() {
  const line = find("reading");
  if (hovered && state.map) {
    const { queries, keys } = spans();
    line.textContent = place(queries, hovered.query) + " looks at " + place(keys, hovered.key) + " with weight " +
      weight(hovered.query, hovered.key).toFixed(3);
    return;
  }
  const figures = data.figures[state.row][state.head];
  line.textContent = "Layer " + data.layers[state.row] + ", " + data.heads[state.head] + ": " + (figures ?
    "entropy " + figures[0].toFixed(2) + " bits; on the first token " + Math.round(100 * figures[1]) + "%" +
    (figures[2] === null ? "" : ", on the one before " + Math.round(100 * figures[2]) + "%, on itself " +
    Math.round(100 * figures[3]) + "%; " + figures[5].toFixed(1) + " positions away on average") :
    "the mean over the layer's heads");
}

async function showMap() {
  const row = state.row, head = state.head;
  state.map = null;
  const map = await unpack(data.maps[row][head]);
  if (row !== state.row || head !== state.head) return;
  state.map = map;
  const { down, across } = spans();
  const pixels = new ImageData(across, down);
  map.forEach((shade, at) => {
    for (let channel = 0; channel < 3; channel++) pixels.data[4 * at + channel] = colours(shade, channel);
    pixels.data[4 * at + 3] = 255;
  });
  picture = document.createElement("canvas");
  picture.width = across;
  picture.height = down;
  picture.getContext("2d").putImageData(pixels, 0, 0);
  find("layer").value = row;
  find("head").value = head;
  const sheet = find("sheet"), mark = find("mark");
  mark.hidden = false;
  mark.style.left = sheet.offsetLeft + 2 + 52 * head + "px";
  mark.style.top = sheet.offsetTop + 2 + 52 * row + "px";
  hovered = null;
  paint(); describeMap(); colourText();
}

function cellUnder(event) {
  const { down, across } = spans(), box = canvas.getBoundingClientRect();
  const key = Math.floor((event.clientX - box.left - frame.margin) / frame.unit);
  const query = Math.floor((event.clientY - box.top - frame.margin) / frame.unit);
  return key >= 0 && key < across && query >= 0 && query < down ? { key, query } : null;
}

/* The logit lens: a window of positions around the chosen token. */
function showLens() {
  const table = find("lens");
  if (!table) return;
  const tokens = data.tokens.slice(data.lens.start), count = tokens.length;
  const last = Math.max(0, count - LENS_COLUMNS);
  state.lens = Math.min(Math.max(0, state.lens), last);
  const places = Array.from({ length: Math.min(LENS_COLUMNS, count) }, (_, index) => state.lens + index);
  const rows = [element("tr")];
  rows[0].append(element("th", "layer"), ...places.map((at) => element("th", label(tokens[at]), "word")));
  data.lens.labels.forEach((name, layer) => {
    const row = element("tr");
    row.append(element("td", name));
    for (const at of places) {
      const p = data.lens.p[layer][at] / 1000, word = data.lens.words[data.lens.top[layer][at]];
      const right = data.lens.rank[layer][at] === 1;
      const kind = "word w" + level(p * p) + (right ? " right" : ""), rank = data.lens.rank[layer][at];
      const cell = element("td", label(word, 11) + " " + p.toFixed(2), kind);
      cell.title = "likeliest: " + label(word, 40) + " " + p.toFixed(3) +
        "; entropy " + (data.lens.entropy[layer][at] / 100).toFixed(2) + " bits" +
        (rank ? "; the token that came has rank " + rank : "");
      row.append(cell);
    }
    rows.push(row);
  });
  if (data.causal) {
    const came = element("tr");
    came.append(element("th", "came"));
    for (const at of places) came.append(element("th", at + 1 < count ? label(tokens[at + 1]) : "", "word"));
    rows.push(came);
  }
  table.replaceChildren(...rows);
  find("lens-at").textContent = "positions " + places[0] + " to " + places[places.length - 1] + " of " + count;
}

function choose(token) {
  state.token = token;
  const at = token - data.lens.start;
  if (at >= 0 && (at < state.lens || at >= state.lens + LENS_COLUMNS)) state.lens = at - LENS_COLUMNS + 2;
  describeToken(); colourText(); paint(); showLens();
  const chip = chips[token], text = chip.parentElement;
  if (chip.offsetTop < text.scrollTop || chip.offsetTop > text.scrollTop + text.clientHeight - 24)
    text.scrollTop = chip.offsetTop - text.clientHeight / 2;
}

chips.forEach((chip, at) => chip.addEventListener("click", () => choose(at)));
document.querySelectorAll("input[name=mode]").forEach((input) => input.addEventListener("change", colourText));
find("sheet").addEventListener("click", (event) => {
  const box = event.currentTarget.getBoundingClientRect();
  state.head = Math.min(Math.max(0, Math.floor((event.clientX - box.left - 4) / 52)), data.heads.length - 1);
  state.row = Math.min(Math.max(0, Math.floor((event.clientY - box.top - 4) / 52)), data.layers.length - 1);
  showMap();
});
find("layer").addEventListener("change", (event) => { state.row = Number(event.target.value); showMap(); });
find("head").addEventListener("change", (event) => { state.head = Number(event.target.value); showMap(); });
canvas.addEventListener("pointermove", (event) => { hovered = cellUnder(event); paint(); describeMap(); });
canvas.addEventListener("pointerleave", () => { hovered = null; paint(); describeMap(); });
canvas.addEventListener("click", (event) => {
  const cell = cellUnder(event);
  if (!cell) return;
  document.querySelector("input[name=mode][value=from]").checked = true;
  choose(spans().queries.start + cell.query * data.cell);
});
if (find("lens")) {
  find("lens-back").addEventListener("click", () => { state.lens -= LENS_COLUMNS; showLens(); });
  find("lens-on").addEventListener("click", () => { state.lens += LENS_COLUMNS; showLens(); });
}
window.addEventListener("resize", paint);
choose(state.token);
showMap();
"""
