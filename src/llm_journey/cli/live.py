"""What a person sees while something takes long, on standard error: a live view in a terminal, plain lines elsewhere.

In a terminal: the stages done with their times, a bar in the budget's unit, the latest figures, the latest sample. In a
file or a pipe: one line every few seconds. Both are training observers; the work calls them and knows no more.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llm_journey.core.console import messages
from llm_journey.training.observer import Observer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_SECONDS_BETWEEN_LINES = 5.0
_REFRESHES_A_SECOND = 4
_SAMPLE_CHARACTERS = 300
Clock = Callable[[], float]


@contextmanager
def view() -> Iterator["StageView"]:
    """The view that suits standard error, open while the block runs."""
    console = messages()
    if not console.is_terminal:
        plain = PlainView(console)
        yield plain
        plain.close_stage()
        return
    from rich.live import Live

    shown = LiveView(console)
    with Live(get_renderable=shown.render, console=console, refresh_per_second=_REFRESHES_A_SECOND, transient=True):
        yield shown
        shown.close_stage()


class StageView(Observer):
    """What both views have in common: the present stage, how far it is, and the newest figures."""

    def __init__(self, console: "Console", clock: Clock = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.name, self.since = "", clock()
        self.done, self.unit = 0.0, ""
        self.total: float | None = None
        self.row: dict[str, Any] = {}
        self.validated: dict[str, Any] = {}
        self.latest_sample: dict[str, Any] = {}

    def stage(self, name: str) -> None:
        """Close the stage before with its time and begin another."""
        self.close_stage()
        self.name, self.since = name, self.clock()
        self.done, self.total, self.unit, self.row = 0.0, None, "", {}

    def close_stage(self) -> None:
        """Say how long the present stage took."""
        if self.name:
            self.message(f"{self.clock() - self.since:7.1f} s  {self.name}")
        self.name = ""

    def message(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    def progress(self, done: float, total: float | None, unit: str) -> None:
        """Keep how far the stage is."""
        self.done, self.total, self.unit = done, total, unit

    def step(self, row: dict[str, Any]) -> None:
        """Keep the newest figures."""
        self.row = row

    def validation(self, row: dict[str, Any]) -> None:
        """Keep the newest validation."""
        self.validated = row

    def sample(self, row: dict[str, Any]) -> None:
        """Keep the newest sample."""
        self.latest_sample = row

    def seconds_left(self) -> float | None:
        """Until the present stage ends at its pace so far; None where that cannot be said."""
        if not self.total or self.done <= 0:
            return None
        elapsed = self.clock() - self.since
        return max(elapsed * (self.total - self.done) / self.done, 0.0)

    def amount(self) -> str:
        """How far the stage is, in its unit."""
        scale, unit = (1e-6, "MB") if self.unit == "bytes" else (1.0, self.unit)
        done = f"{self.done * scale:,.0f}"
        return f"{done} of {self.total * scale:,.0f} {unit}" if self.total else f"{done} {unit}"

    def figures(self) -> list[tuple[str, str]]:
        """(label, value) of the newest figures, those that are known."""
        forms: list[tuple[str, dict[str, Any], str, str]] = [
            ("step", self.row, "step", "{:,.0f}"),
            ("loss", self.row, "loss", "{:.3f}"),
            ("bits/byte", self.validated, "bits_per_byte", "{:.3f}"),
            ("exact match", self.validated, "exact_match", "{:.1%}"),
            ("masked tokens right", self.validated, "masked_accuracy", "{:.1%}"),
            ("learning rate", self.row, "learning_rate", "{:.2e}"),
            ("tokens/s", self.row, "tokens_per_second", "{:,.0f}"),
            ("MFU", self.row, "mfu", "{:.0%}"),
        ]
        known = [(label, form.format(row[key])) for label, row, key, form in forms if row.get(key) is not None]
        left = self.seconds_left()
        return known + ([("left", f"{left:,.0f} s")] if left is not None and self.row else [])


class PlainView(StageView):
    """One line every few seconds, for files, pipes and logs."""

    def __init__(self, console: "Console", clock: Clock = time.monotonic) -> None:
        super().__init__(console, clock)
        self._last_line = clock()

    def stage(self, name: str) -> None:
        super().stage(name)
        self._last_line = self.clock()

    def progress(self, done: float, total: float | None, unit: str) -> None:
        super().progress(done, total, unit)
        now = self.clock()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            figures = ", ".join(f"{label} {value}" for label, value in self.figures())
            self.message(f"{self.name}: {self.amount()}" + (f"; {figures}" if figures else ""))

    def validation(self, row: dict[str, Any]) -> None:
        super().validation(row)
        loss = row.get("validation_loss")
        if loss is None:
            return
        forms = (
            ("bits_per_byte", "{:.3f} bits per byte"),
            ("exact_match", "{:.1%} exact"),
            ("masked_accuracy", "{:.1%} of the masked tokens right"),
        )
        found = [form.format(row[key]) for key, form in forms if row.get(key) is not None]
        self.message(", ".join([f"step {row.get('step')}: validation loss {loss:.3f}", *found]))


class LiveView(StageView):
    """A view that is drawn anew several times a second."""

    def __init__(self, console: "Console", clock: Clock = time.monotonic) -> None:
        from rich.spinner import Spinner

        super().__init__(console, clock)
        self._spinner = Spinner("dots")

    def render(self) -> "RenderableType":
        """What stands below the messages at this moment."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if not self.name:
            return Text("")
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column()
        head.add_column(ratio=1)
        head.add_column(justify="right")
        bar = ProgressBar(total=self.total or 1, completed=self.done if self.total else 0, pulse=not self.total)
        elapsed = f"{self.clock() - self.since:.0f} s"
        self._spinner.update(text=Text(self.name, style="bold"))
        head.add_row(self._spinner, bar, f"{self.amount()}  {elapsed}")
        parts: list[RenderableType] = [head]
        if self.row:
            line = Text("   ").join(Text.assemble((label, "dim"), " ", value) for label, value in self.figures())
            parts.append(line)
        if self.row and self.latest_sample:
            prompt, text = str(self.latest_sample.get("prompt", "")), str(self.latest_sample.get("text", ""))
            written = Text.assemble((prompt, "bold"), " ".join(text[:_SAMPLE_CHARACTERS].split("\n")))
            title = f"written at step {self.latest_sample.get('step')}"
            parts.append(Panel(written, title=title, title_align="left", border_style="dim"))
        return Group(*parts)
