"""The pictures: every one drawn, tied to a place that exists; the commands that list and draw them."""

import ast
import struct
from pathlib import Path

import pytest

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


def test_a_picture_is_the_same_every_time() -> None:
    assert PICTURES["sampling"].png() == PICTURES["sampling"].png()


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
