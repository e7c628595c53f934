"""How a command ended, as the `journey` fixture gives it, and what a folder holds."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)


Journey = Callable[..., Outcome]


def files_under(folder: Path) -> list[str]:
    """Names of all files under a folder, which need not exist."""
    return sorted(os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file())
