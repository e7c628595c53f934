"""Comparisons: the best is marked, what differs in the recipes is listed, names are escaped."""

from pathlib import Path
from typing import Any

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.reports.compare import compare


def test_rows_differences_and_page(make_run: Any, tmp_path: Path) -> None:
    first = make_run(name="first")
    second = make_run(name="<b>second</b>", figures={"bits_per_byte": 1.2, "mfu": 0.3}, seconds=10.0)
    (second / "recipe.yaml").write_text((first / "recipe.yaml").read_text().replace("width: 192", "width: 256"))
    made = compare([first, second])
    assert [row["name"] for row in made.rows] == ["first", "<b>second</b>"]
    assert made.rows[0]["path"] == str(first)
    assert made.rows[1]["bits_per_byte"] == 1.2
    assert made.rows[1]["parameters"] is None
    assert made.differences == {"model.width": [192, 256]}
    assert made.table[0][:2] == ["run", "bits per byte"]
    assert made.table[1][1][:2] == ["<b>second</b>", "1.200"]
    html = made.write(tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "<td>● 1.200</td>" in html
    assert "<td>● 55.1%</td>" in html
    assert "<td>1.80 million</td>".replace(" m", "\u202fm") in html  # alone in its column: no best
    assert "&lt;b&gt;second&lt;/b&gt; needs the fewest bits per byte, 1.200." in html
    assert "<b>second" not in html
    assert html.count("<img") == 3
    assert made._repr_html_().startswith('<iframe srcdoc="&lt;!doctype html&gt;')


def test_runs_of_other_objectives_are_compared_by_their_own_measures(make_run: Any) -> None:
    """The column of a measure that no run has is not shown; more is better where the figure is a share."""
    first = make_run(name="first", figures={"exact_match": 0.982, "token_accuracy": 0.991})
    second = make_run(name="second", figures={"exact_match": 0.913, "masked_accuracy": 0.4})
    for folder in (first, second):  # the curves that come with the fixture are those of a decoder
        (folder / "metrics.jsonl").write_text("")
    made = compare([first, second])
    assert made.table[0][:4] == ["run", "exact match", "masked tokens right", "tokens right"]
    assert made.table[1][0][1:4] == ["98.2%", "–", "99.1%"]
    assert "<td>● 98.2%</td>" in made.html and "● 91.3%" not in made.html
    assert "first writes the most held-out answers without a fault, 98.2%." in made.html


def test_runs_without_validation_can_be_compared(make_run: Any) -> None:
    made = compare([make_run(name=name, steps=20, figures={}) for name in ("a", "b")])
    assert made.rows[0]["bits_per_byte"] is None
    assert "None is validated." in made.html


def test_a_recipe_that_cannot_be_read_is_left_out(make_run: Any) -> None:
    first, second = make_run(name="a"), make_run(name="b")
    (second / "recipe.yaml").write_text("a: [")
    assert compare([first, second]).differences["model.width"] == [192, None]


def test_one_run_is_too_few(make_run: Any) -> None:
    with pytest.raises(BadInputError, match="at least two"):
        compare([make_run()])
