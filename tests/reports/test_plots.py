"""Pictures: averaging keeps what it must, names cannot break a drawing, the README's picture is a real PNG."""

import base64
import io
import warnings
from pathlib import Path
from typing import Any

import pytest

from llm_journey.core.errors import BadInputError
from llm_journey.reports import plots
from llm_journey.reports.run_data import read_run


def test_thinning_averages_neighbours_and_keeps_short_curves() -> None:
    assert plots.thinned([1, 2, 3], [4, 5, 6], most=3) == ([1, 2, 3], [4, 5, 6])
    x, y = plots.thinned(list(range(1000)), [float(v) for v in range(1000)], most=10)
    assert x == y == [49.5 + 100 * index for index in range(10)]


def test_smoothing_keeps_ends_and_straight_lines_and_does_not_lag() -> None:
    line = [10.0 - index for index in range(100)]
    assert plots.smoothed(line) == pytest.approx(line)
    assert plots.smoothed([]) == []
    noisy = [1.0 + (-1) ** index for index in range(400)]
    middle = plots.smoothed(noisy)[50:350]
    assert max(middle) - min(middle) < 0.2


def test_the_readme_picture_is_a_png_on_white(make_run: Any, tmp_path: Path) -> None:
    from PIL import Image

    plots.save_png(make_run(), tmp_path / "deep" / "picture.png")
    with Image.open(tmp_path / "deep" / "picture.png") as image:
        assert image.format == "PNG"
        assert image.size == (1680, 624)
        pixels = image.convert("RGB")
        assert pixels.getpixel((0, 0)) == (255, 255, 255)
        colours = {colour for _, colour in pixels.getcolors(1 << 24)}
    assert (213, 94, 0) in colours  # the model's bar
    assert (0, 114, 178) in colours  # the training curve


def test_a_run_without_baselines_still_has_a_picture_and_one_without_rows_none(make_run: Any, tmp_path: Path) -> None:
    plots.save_png(make_run(baselines={}), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    empty = make_run(name="empty")
    (empty / "metrics.jsonl").write_text("")
    with pytest.raises(BadInputError, match="nothing was measured"):
        plots.save_png(empty, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize("name", ["$\\frac{$", "_hidden", "a\x00b\nc", "名前", "x" * 300, "$a$ & <b>"])
def test_no_name_breaks_a_drawing(make_run: Any, name: str) -> None:
    first = read_run(make_run(name="one"))
    second = read_run(make_run(name="two"))
    second.information["name"] = name
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        light, dark = plots.svg_pair(plots.overlay_picture([first, second], "loss", "step", name[:60], "step"))
        bars, _ = plots.svg_pair(plots.bars_picture([(name[:60], 3.0), ("b", 0.0)], "title"))
    assert light != dark
    assert light.startswith("data:image/svg+xml;base64,")
    assert bars.startswith("data:image/svg+xml;base64,")


def test_a_steep_start_does_not_flatten_the_curve(make_run: Any) -> None:
    run = read_run(make_run())
    run.training[0]["loss"] = 500.0
    [axis] = plots.loss_picture(run)(plots.LIGHT).axes
    assert axis.get_ylim()[1] < 12
    assert axis.get_legend().get_texts()[1].get_text() == (
        f"validation, {run.validation[-1]['validation_loss']:.3f} at the end"
    )


def test_a_curve_of_one_step_can_be_drawn(make_run: Any) -> None:
    run = read_run(make_run(steps=1))
    buffer = io.BytesIO()
    plots.loss_picture(run)(plots.LIGHT).savefig(buffer, format="png")
    assert buffer.getvalue().startswith(b"\x89PNG")
    progress = plots.progress_picture(run)
    assert progress is not None
    assert len(progress(plots.DARK).axes) == 4


def test_the_dark_picture_holds_the_dark_colours_only(make_run: Any) -> None:
    run = read_run(make_run())
    light, dark = (
        base64.b64decode(uri.partition(",")[2]).decode()
        for uri in plots.svg_pair(plots.bits_picture(1.8, run.baselines))
    )
    for theme, svg, other in ((plots.LIGHT, light, plots.DARK), (plots.DARK, dark, plots.LIGHT)):
        assert theme.bar in svg
        assert theme.ink in svg
        assert theme.cycle[1] in svg
        assert not any(colour in svg for colour in (other.bar, other.ink, other.faint, other.grid, other.cycle[1]))


def test_every_measured_baseline_has_a_name_for_people() -> None:
    from llm_journey.evaluation.baselines import NAMES

    assert set(NAMES) == set(plots.BASELINE_LABELS)
    assert plots.baseline_label("some_other") == "some other"


def test_bars_stand_in_order_with_the_model_among_them(make_run: Any) -> None:
    run = read_run(make_run())
    figure = plots.bits_picture(1.8, run.baselines)(plots.LIGHT)
    [axis] = figure.axes
    labels = [tick.get_text() for tick in axis.get_yticklabels()]
    widths = [bar.get_width() for bar in axis.patches]
    assert widths == sorted(widths, reverse=True)
    assert labels[widths.index(1.8)] == "this model"
    assert labels[0] == "gzip −9"
    assert len(labels) == 9
