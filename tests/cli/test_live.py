"""What a person sees during a run, drawn into a file and into a made-up terminal, with a clock of the test's own."""

import io

import pytest
from rich.console import Console

from llm_journey.cli.live import LiveView, PlainView, StageView, view

STEP = {"step": 40, "loss": 4.25, "learning_rate": 0.002, "tokens_per_second": 5400.0, "mfu": 0.31, "tokens": 40960}
VALIDATION = {"step": 40, "validation_loss": 4.1, "bits_per_byte": 2.034, "perplexity": 60.3}
SAMPLE = {"step": 40, "prompt": "The city of", "text": " stone [red]\nby the river"}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain() -> tuple[PlainView, io.StringIO, Clock]:
    written, clock = io.StringIO(), Clock()
    return PlainView(Console(file=written, width=200, color_system=None), clock), written, clock


def train_for_a_while(watching: StageView, clock: Clock) -> None:
    watching.stage("training")
    for second in range(31):
        clock.now = 100.0 + second
        watching.step({**STEP, "step": second})
        watching.progress(float(second), 90.0, "seconds")


def test_plain_lines_come_every_five_seconds() -> None:
    watching, written, clock = plain()
    train_for_a_while(watching, clock)
    lines = written.getvalue().splitlines()
    assert len(lines) == 6
    assert lines[-1] == (
        "training: 30 of 90 seconds; step 30, loss 4.250, learning rate 2.00e-03, tokens/s 5,400, MFU 31%, left 60 s"
    )


def test_a_stage_ends_with_its_time_and_messages_stay() -> None:
    watching, written, clock = plain()
    watching.stage("preparing")
    clock.now += 12.34
    watching.message("only 1 document is held out [really]")
    watching.stage("training")
    watching.validation(VALIDATION)
    watching.close_stage()
    watching.close_stage()
    assert written.getvalue().splitlines() == [
        "only 1 document is held out [really]",
        "   12.3 s  preparing",
        "step 40: validation loss 4.100, 2.034 bits per byte",
        "    0.0 s  training",
    ]


def test_unknown_totals_and_bytes_are_said_as_they_are() -> None:
    watching, _, _ = plain()
    watching.stage("reading")
    watching.progress(1200, None, "documents")
    assert (watching.amount(), watching.seconds_left()) == ("1,200 documents", None)
    watching.progress(2_500_000, 5_000_000, "bytes")
    assert watching.amount() == "2 of 5 MB"


def test_the_live_view_shows_bar_figures_and_sample() -> None:
    drawn, clock = io.StringIO(), Clock()
    console = Console(file=drawn, width=120, force_terminal=True, color_system=None)
    watching = LiveView(console, clock)
    console.print(watching.render())
    train_for_a_while(watching, clock)
    watching.validation(VALIDATION)
    watching.sample(SAMPLE)
    console.print(watching.render())
    text = drawn.getvalue()
    for part in (
        "training",
        "30 of 90 seconds",
        "loss 4.250",
        "bits/byte 2.034",
        "learning rate 2.00e-03",
        "left 60 s",
    ):
        assert part in text, part
    assert "written at step 40" in text and "The city of stone [red] by the river" in text


def test_the_view_suits_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with view() as watching:
        assert isinstance(watching, PlainView)
        watching.stage("training")
    assert capsys.readouterr().err.endswith("s  training\n")
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    monkeypatch.setattr("llm_journey.cli.live.messages", lambda: console)
    with view() as watching:
        assert isinstance(watching, LiveView)
        watching.stage("training")
        watching.step(STEP)
