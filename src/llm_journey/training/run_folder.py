"""A run's folder and its run.json: name, status, figures, lineage. Written whole at each change of state.

recipe.yaml  run.json  metrics.jsonl  samples.jsonl  vocabulary.json  preparation.json
checkpoints/step-00000100/  model/  report.html
"""

import datetime
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_journey.core import config as configuration
from llm_journey.core import files, lineage
from llm_journey.core.errors import BadInputError
from llm_journey.training.recipe import RECIPE_FILE, Recipe

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
MODEL = "model"
BEST = "best"
SAMPLES = "samples.jsonl"


class RunFolder:
    """The folder of one run. `information` is what run.json holds."""

    def __init__(self, directory: Path, information: dict[str, Any]) -> None:
        self.directory, self.information = directory, information

    @classmethod
    def create(cls, directory: Path, recipe: Recipe) -> "RunFolder":
        """A new run. Raises BadInputError where the folder already holds one."""
        if (directory / RUN_FILE).exists():
            raise BadInputError(f"{directory}: holds a run already; choose another name, or resume it with --resume")
        directory.mkdir(parents=True, exist_ok=True)
        files.write_text(directory / RECIPE_FILE, configuration.to_yaml(configuration.dump(recipe)))
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        folder = cls(directory, {"name": directory.name, "status": "running", "created": now})
        folder.update(figures={}, lineage=lineage.describe(), seed=recipe.seed)
        return folder

    @classmethod
    def open(cls, directory: Path) -> "RunFolder":
        """A run that is there. Raises BadInputError where it is none, or its run.json is damaged."""
        path = directory / RUN_FILE
        if not path.is_file():
            raise BadInputError(f"{directory}: no run here; `journey runs list` shows the runs there are")
        return cls(directory, files.read_json(path))

    def update(self, *, figures: Mapping[str, Any] | None = None, **values: Any) -> None:
        """Merge values (and figures) into run.json. A figure that is not finite becomes null."""
        merged = {**self.information.get("figures", {}), **(figures or {})}
        clean = {key: _finite(value) for key, value in merged.items()}
        self.information = {**self.information, **values, "figures": clean}
        files.write_json(self.directory / RUN_FILE, self.information)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.directory / CHECKPOINTS

    @property
    def model(self) -> Path:
        """Folder of the final model."""
        return self.directory / MODEL


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
