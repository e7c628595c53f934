"""A run's folder and its run.json: name, status, figures, lineage. Written whole at each change of state.

recipe.yaml  run.json  metrics.jsonl  samples.jsonl  vocabulary.json  preparation.json
checkpoints/step-00000100/  adapter/ (where one was trained)  model/  report.html
"""

import datetime
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_journey.checkpoint.tensor_files import writing
from llm_journey.core import config as configuration
from llm_journey.core import files, lineage
from llm_journey.core.errors import BadInputError
from llm_journey.training.recipe import RECIPE_FILE, Recipe

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
MODEL = "model"
ADAPTER = "adapter"
BEST = "best"
SAMPLES = "samples.jsonl"
# What core.files leaves behind when it is killed: new content under a temporary name, an old folder on its way out.
_LEFTOVER = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.(?:tmp|old)")


class RunFolder:
    """The folder of one run. `information` is what run.json holds."""

    def __init__(self, directory: Path, information: dict[str, Any]) -> None:
        self.directory, self.information = directory, information

    @classmethod
    def new(cls, directory: Path) -> "RunFolder":
        """A run to be; nothing is written yet. Raises BadInputError where the folder already holds one."""
        if (directory / RUN_FILE).exists():
            raise BadInputError(f"{directory}: holds a run already; choose another name, or resume it with --resume")
        return cls(directory, {})

    @classmethod
    def open(cls, directory: Path) -> "RunFolder":
        """A run that is there. Raises BadInputError where it is none, or its run.json is damaged."""
        path = directory / RUN_FILE
        if not path.is_file():
            raise BadInputError(f"{directory}: no run here; `journey runs list` shows the runs there are")
        return cls(directory, files.read_json(path))

    def create(self, recipe: Recipe) -> None:
        """Make the folder of a new run, with its recipe and run.json."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.information = {"name": self.directory.name, "status": "running", "created": now}
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            files.write_text(self.directory / RECIPE_FILE, configuration.to_yaml(configuration.dump(recipe)))
        self.update(lineage=lineage.describe(), seed=recipe.seed)

    def update(self, *, figures: Mapping[str, Any] | None = None, **values: Any) -> None:
        """Merge values (and figures) into run.json. A figure that is not finite becomes null."""
        merged = {**self.information.get("figures", {}), **(figures or {})}
        clean = {key: _finite(value) for key, value in merged.items()}
        self.information = {**self.information, **values, "figures": clean}
        with writing(self.directory):
            files.write_json(self.directory / RUN_FILE, self.information)

    def sweep(self) -> None:
        """Remove what a killed process left half-written; a folder whose successor never came is put back."""
        for path in list(self.directory.iterdir()):
            if match := _LEFTOVER.fullmatch(path.name):
                target = self.directory / match[1]
                if (path / "old").is_dir() and not target.exists():
                    (path / "old").replace(target)
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.directory / CHECKPOINTS

    @property
    def adapter(self) -> Path:
        """Folder of the final adapter, in PEFT's layout."""
        return self.directory / ADAPTER

    @property
    def model(self) -> Path:
        """Folder of the final model."""
        return self.directory / MODEL


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
