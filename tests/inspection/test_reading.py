"""A reading's words and figures, as JSON, in a terminal and as pictures."""

import io
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from readings import reading

from llm_journey.inspection import pixels, terminal
from llm_journey.inspection.reading import label, spelled


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"plain word", "plain word"),
        (b"\n\t", "⏎⇥"),
        ("\u202e\x1b[31m".encode(), "⟨U+202E⟩⟨U+001B⟩[31m"),
        ("a\u00a0b".encode(), "a⟨U+00A0⟩b"),
        (b"\xe2\x80", "⟨e2 80⟩"),
        ("é 漢 🎉".encode(), "é 漢 🎉"),
        (b"", ""),
    ],
)
def test_tokens_show_as_themselves(data: bytes, shown: str) -> None:
    assert spelled(data) == shown


def test_labels_are_short_and_show_their_spaces() -> None:
    assert (label(" the"), label("  "), label("a b "), label("x" * 20, 8)) == ("·the", "··", "a b·", "xxxxxxx…")


def test_facts_stand_at_the_token_that_was_judged() -> None:
    found = reading(12)
    facts, predicted = found.token_facts(), found.inspection.predicted
    assert predicted is not None and len(facts) == 13
    assert (facts[0].probability, facts[0].expected) == (None, ())
    for position in range(1, 12):
        assert facts[position].probability == pytest.approx(float(predicted.probability[position - 1]), abs=1e-6)
        assert facts[position].expected[0][0] == found.word(int(predicted.kept_ids[position - 1, 0]))
    assert (facts[12].text, facts[12].bits) == (None, None) and facts[12].expected
    assert found.bits == pytest.approx(sum(fact.bits or 0 for fact in facts) / 11, abs=1e-5)


def test_json_holds_everything_and_no_nan() -> None:
    found = reading(6)
    described = json.loads(json.dumps(found.describe(), allow_nan=False))
    np.testing.assert_allclose(described["attention"]["layers"]["1"], found.inspection.maps[1], atol=1e-6)
    assert [len(row["tokens"]) for row in described["lens"]] == [6] * 4
    assert described["lens"][-1]["tokens"][-1]["target_probability"] is None
    assert len(described["heads"]) == 12 and described["left_out"] == []
    one = json.loads(json.dumps(reading(1).describe(), allow_nan=False))
    assert one["bits_per_token"] is None and one["attention"]["layers"]["0"][0] == [[1.0]]


def test_too_many_weights_for_json_are_left_out_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_journey.inspection.reading.MAX_JSON_WEIGHTS", 10)
    described = reading(6).describe()
    assert described["attention"]["layers"] is None and "--layer" in described["left_out"][0]


def test_the_terminals_map_is_dark_where_the_weight_is() -> None:
    found = reading(12)
    lines = terminal.heat_map(found, 1, 2)
    assert len(lines) == 12
    shades = " ·░▒▓█"
    for row, line in enumerate(lines):
        cells = line[13:].ljust(24)[::2]
        for column, cell in enumerate(cells):
            weight = float(found.attention(1, 2)[row, column])
            assert abs(shades.index(cell) - math.sqrt(weight) * 6) <= 1 + 1e-6, (row, column, weight)
    pooled_lines = terminal.heat_map(found, 1, 2, most=4)
    assert [line.split()[0] for line in pooled_lines] == ["0–2", "3–5", "6–8", "9–11"]


def test_the_terminals_tables_end_with_what_comes_next_and_count_what_is_missing() -> None:
    found = reading(12)
    head, rows, before = terminal.token_table(found, most=5)
    assert (before, len(rows), rows[-1][1], rows[0][0]) == (7, 6, "(next)", "7") and len(head) == len(rows[0])
    head, rows, before = terminal.lens_table(found, 50)
    assert before == 10 and [row[0] for row in rows] == ["input", "0", "1", "2", "came"]
    assert rows[-1][1] == label(found.tokens[11], 12)
    head, rows = terminal.head_table(found)
    assert len(rows) == 3 and all(len(row) == len(head) for row in rows)


def test_pictures_in_few_colours_are_read_back_by_pillow() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, size=(37, 53)).astype(np.uint8)
    opened = Image.open(io.BytesIO(pixels.png(picture)))
    np.testing.assert_array_equal(np.asarray(opened), picture)
    np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), pixels.palette()[picture])


def test_the_colours_differ_and_darken_steadily() -> None:
    colors = pixels.palette().astype(float)
    assert len({tuple(color) for color in colors.tolist()}) == 256
    lightness = colors[: pixels.LEVELS + 1] @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) < 0.5).all() and lightness[0] > 250 and lightness[-1] < 30
    assert pixels.shades(np.float32([0, 0.25, 1, 1.1])).tolist() == [0, 127, 254, 254]


@pytest.mark.parametrize("length", [5, 48, 60])
def test_the_overview_has_a_tile_for_each_head(length: int) -> None:
    found = reading(length)
    sheet = pixels.overview(list(found.inspection.maps.values()))
    assert sheet.shape == (3 * 52 + 4, 4 * 52 + 4)
    tile = sheet[4 + 52 : 52 + 52, 4 + 2 * 52 : 52 + 2 * 52]
    assert tile[0, 0] == pixels.shades(found.attention(1, 2)[:1, :1])[0, 0] or length > 48
    assert (sheet[::52] == pixels.LINE).all() and tile.max() < pixels.LINE
    assert not tile[0, 24:].any()  # a causal map: nothing above its diagonal


@pytest.mark.parametrize(("length", "layers"), [(9, None), (64, [1])])
def test_pictures_are_written_without_a_warning(length: int, layers: list[int] | None, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = reading(length, layers=layers).write_png(tmp_path / "pictures")
    names = [path.name for path in written]
    wanted = [f"attention-layer-{layer:02}.png" for layer in layers or range(3)]
    assert names == ["tokens.png", "lens.png", "attention.png", *wanted]
    for path in written:
        picture = Image.open(path).convert("L")
        assert min(picture.size) > 150 and np.asarray(picture).std() > 5
