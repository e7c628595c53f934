"""Runs beside each other: a table of their figures (best in each column marked) and their curves over each other."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_journey.core import files
from llm_journey.core.config import parse_yaml
from llm_journey.core.errors import BadInputError
from llm_journey.reports import formatting, plots
from llm_journey.reports.page import Block, Note, Page, Picture, Section, Table, render
from llm_journey.reports.run_data import Run, is_number, read_run

# key, heading, whether less is better (None: neither). A column that no run has a figure for is not shown.
_COLUMNS: tuple[tuple[str, str, bool | None], ...] = (
    ("bits_per_byte", "bits per byte", True),
    ("exact_match", "exact match", False),
    ("masked_accuracy", "masked tokens right", False),
    ("span_accuracy", "span tokens right", False),
    ("token_accuracy", "tokens right", False),
    ("validation_loss", "validation loss", True),
    ("perplexity", "perplexity", True),
    ("parameters", "parameters", None),
    ("tokens", "tokens", None),
    ("seconds", "time", None),
    ("tokens_per_second", "tokens/s", False),
    ("mfu", "MFU", False),
)


@dataclass(frozen=True)
class Comparison:
    """Compared runs: `rows` hold numbers for scripts (None: not measured), `html` is the page for people.

    `differences` maps each recipe key in which the runs differ to its values, run by run.
    """

    rows: list[dict[str, Any]]
    differences: dict[str, list[Any]]
    table: tuple[list[str], list[list[str]]]  # headings, cells
    html: str

    def write(self, path: Path) -> Path:
        """Write the page to a file, atomically."""
        files.write_text(path, self.html)
        return path

    def _repr_html_(self) -> str:
        """The page in a frame of its own, for notebooks."""
        return f'<iframe srcdoc="{html.escape(self.html)}" width="100%" height="900" frameborder="0"></iframe>'


def compare(run_directories: Sequence[Path]) -> Comparison:
    """Compare two or more runs. Raises BadInputError for fewer, or where a folder is no run."""
    if len(run_directories) < 2:
        raise BadInputError("a comparison needs at least two runs; `journey runs list` shows them")
    runs = [read_run(directory) for directory in run_directories]
    rows = [_row(run) for run in runs]
    head = ["run", *(heading for _, heading, _ in _columns(rows))]
    cells = [[row["name"], *(_cell(key, row[key]) for key, _, _ in _columns(rows))] for row in rows]
    differences = _recipe_differences(runs)
    return Comparison(rows, differences, (head, cells), _page(runs, rows, head, cells, differences))


def _row(run: Run) -> dict[str, Any]:
    figures = {**run.figures, **({} if run.seconds is None else {"seconds": run.seconds})}
    return {
        "name": run.name,
        "path": str(run.directory),
        "status": run.status,
        **{key: figures.get(key) for key, _, _ in _COLUMNS},
    }


def _columns(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, bool | None]]:
    """The columns that some run has a figure for: runs of one objective lack the figures of another."""
    return [column for column in _COLUMNS if any(row[column[0]] is not None for row in rows)]


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    match key:
        case "bits_per_byte" | "validation_loss":
            return f"{value:.3f}"
        case "seconds":
            return formatting.duration(value)
        case "mfu" | "exact_match" | "masked_accuracy" | "span_accuracy" | "token_accuracy":
            return formatting.percent(value)
        case "perplexity":
            return formatting.significant(value)
        case _:
            return formatting.count(value)


_LEADS = {
    "bits_per_byte": "needs the fewest bits per byte",
    "exact_match": "writes the most held-out answers without a fault",
    "masked_accuracy": "finds the most masked tokens",
    "span_accuracy": "finds the most tokens of spans that were cut out",
    "validation_loss": "has the lowest validation loss",
}


def _lead(rows: Sequence[dict[str, Any]]) -> str:
    """Which run is best, by the first measure that all have; else by the first that any has."""
    for judged in (all, any):
        for key, said in _LEADS.items():
            if judged(row[key] is not None for row in rows):
                known = [row for row in rows if row[key] is not None]
                less = next(less for name, _, less in _COLUMNS if name == key)
                best = (min if less else max)(known, key=lambda row: row[key])
                return f"{best['name']} {said}, {_cell(key, best[key])}."
    return "None is validated."


def _page(
    runs: Sequence[Run],
    rows: Sequence[dict[str, Any]],
    head: Sequence[str],
    cells: Sequence[Sequence[str]],
    differences: dict[str, list[Any]],
) -> str:
    marked = [_with_best_marked(rows, cells, index) for index in range(len(runs))]
    blocks: list[Block] = [Table(head, marked), Note("● marks the best of a column.")]
    curves: list[Block] = []
    for key, by, title, label in (
        ("validation_loss", "step", "Validation loss, nats a token", "step"),
        ("loss", "tokens", "Training loss, nats a token (smoothed)", "tokens"),
        ("loss", "seconds", "Training loss, nats a token (smoothed)", "seconds"),
    ):
        light, dark = plots.svg_pair(plots.overlay_picture(runs, key, by, title, label))
        curves.append(Picture(light, dark, f"{title} by {label}, one curve for each of {len(runs)} runs"))
    sections = [Section("figures", "Figures", blocks), Section("curves", "Curves", curves)]
    if differences:
        names = [run.name for run in runs]
        table = Table(["key", *names], [[key, *map(str, values)] for key, values in differences.items()])
        sections.append(Section("recipes", "Where the recipes differ", [table]))
    return render(Page(title=f"{len(runs)} runs compared", kicker="Comparison", lead=_lead(rows), sections=sections))


def _with_best_marked(rows: Sequence[dict[str, Any]], cells: Sequence[Sequence[str]], index: int) -> list[str]:
    marked = list(cells[index])
    for column, (key, _, less_is_better) in enumerate(_columns(rows), start=1):
        values = [row[key] for row in rows if is_number(row[key])]
        if less_is_better is None or len(values) < 2:
            continue
        if rows[index][key] == (min(values) if less_is_better else max(values)):
            marked[column] = f"● {marked[column]}"
    return marked


def _recipe_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    flat = [_flattened(_recipe(run)) for run in runs]
    keys = dict.fromkeys(key for recipe in flat for key in recipe if key != "name")
    values = {key: [recipe.get(key) for recipe in flat] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _recipe(run: Run) -> dict[str, Any]:
    try:
        return parse_yaml(run.recipe, "recipe.yaml")
    except BadInputError:
        return {}


def _flattened(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat.update(_flattened(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat
