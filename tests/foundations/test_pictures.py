"""The pictures: every one drawn, tied to a place that exists; the commands that list and draw them."""

import ast
import struct
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import llm_journey
from command_line import Journey
from llm_journey.foundations.index import MODULES, entries
from llm_journey.foundations.pictures import PICTURES

PACKAGE = Path(llm_journey.__file__).parent


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_drawn(name: str) -> None:
    png = PICTURES[name].png()
    width, height = struct.unpack(">II", png[16:24])
    assert png.startswith(b"\x89PNG") and width == 1500 and height > 400
    assert len(png) > 25_000  # an empty figure with its caption is smaller


def drawn(name: str) -> list[tuple[str, list[float]]]:
    """What a picture's panels show, in the coordinates of its data (their place on the page is the layout's, and may
    differ by a fraction of a pixel)."""
    figure = Figure()
    PICTURES[name].draw(figure)
    lines = [(line.get_label(), line.get_xydata()) for axis in figure.axes for line in axis.lines]
    bars = [(patch.get_label(), patch.get_path().vertices) for axis in figure.axes for patch in axis.patches]
    points = [(dots.get_label(), dots.get_offsets()) for axis in figure.axes for dots in axis.collections]
    return [(str(label), np.ravel(np.asarray(data)).tolist()) for label, data in lines + bars + points]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_shows_the_same_data_every_time(name: str) -> None:
    np.testing.assert_equal(drawn(name), drawn(name))


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_names_a_place_that_exists(name: str) -> None:
    file, symbol = PICTURES[name].used_in
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    assert symbol in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert f"In the transformer: {file}, {symbol}." in PICTURES[name].full_caption


def test_every_function_has_a_formula_and_the_list_holds_them_all() -> None:
    found = entries()
    assert {entry.module for entry in found} == set(MODULES)
    for module in MODULES:
        tree = ast.parse((PACKAGE / "foundations" / f"{module}.py").read_text(encoding="utf-8"))
        public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        names = [node.name for node in public if not node.name.startswith("_")]
        assert [entry.name for entry in found if entry.module == module] == names
    assert all(entry.formula for entry in found)


def test_foundations_list(journey: Journey) -> None:
    shown = journey("foundations", "list", "--json").json
    assert {"module": "linear_algebra", "name": "svd"}.items() <= shown["functions"][5].items()
    assert [picture["name"] for picture in shown["pictures"]] == list(PICTURES)
    text = journey("foundations", "list").out
    assert "A = U diag(s) V^T" in text and "model/norms.py, LayerNorm" in text


def test_foundations_plot(journey: Journey, tmp_path: Path) -> None:
    outcome = journey("foundations", "plot", "svd", "temperature", "svd", "--out", tmp_path / "new" / "pictures")
    assert outcome.code == 0, outcome.err
    paths = [tmp_path / "new" / "pictures" / f"{name}.png" for name in ("svd", "temperature")]
    assert outcome.out.split() == [str(path) for path in paths]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert "training/optim.py, orthogonalize" in outcome.err
    written = journey("foundations", "plot", "svd", "--out", tmp_path, "--json").json
    assert [row["path"] for row in written] == [str(tmp_path / "svd.png")]
    assert written[0]["file"] == "training/optim.py" and "half-axes" in written[0]["caption"]


def test_an_unknown_picture_is_bad_input_and_nothing_is_drawn(journey: Journey, tmp_path: Path) -> None:
    outcome = journey("foundations", "plot", "svd", "mona-lisa", "--out", tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: unknown picture 'mona-lisa'; known: attention_scale, autograd, bayes")
    assert not list(tmp_path.iterdir())
