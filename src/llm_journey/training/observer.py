"""What watches a run: a live view, a notebook, a test. The base class watches nothing."""

from typing import Any


class Observer:
    """Every method is a no-op here; override what is wanted. Called from the training thread, so be quick."""

    def message(self, text: str) -> None:
        """Something a person should read, one line."""

    def stage(self, name: str) -> None:
        """A stage of the run begins ("preparing data", "training", ...)."""

    def progress(self, done: float, total: float | None, unit: str) -> None:
        """How far the present stage is; `total` is None where it is not known."""

    def step(self, row: dict[str, Any]) -> None:
        """A logged training step: the row that metrics.jsonl gets."""

    def validation(self, row: dict[str, Any]) -> None:
        """A validation: the row that metrics.jsonl gets."""

    def sample(self, row: dict[str, Any]) -> None:
        """Text that the model wrote during training: step, prompt, text."""
