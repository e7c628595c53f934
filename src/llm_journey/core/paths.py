"""Where things lie on this machine. One place decides, so that nothing is written anywhere else.

`JOURNEY_HOME` overrides everything; without it the platform's own folders are used (XDG on Linux).
`JOURNEY_DATA_DIR` points at a folder that already holds catalog data sets; it is only ever read.
"""

import os
from pathlib import Path

import platformdirs

from llm_journey.core.errors import BadInputError

_APP = "llm-journey"


def cache_dir() -> Path:
    """Folder for what can be fetched or computed again: pulled models and corpora, prepared token shards."""
    home = os.environ.get("JOURNEY_HOME")
    return Path(home) / "cache" if home else Path(platformdirs.user_cache_dir(_APP))


def runs_dir() -> Path:
    """Folder for training runs, one folder a run."""
    home = os.environ.get("JOURNEY_HOME")
    return Path(home) / "runs" if home else Path(platformdirs.user_data_dir(_APP)) / "runs"


def indexes_dir() -> Path:
    """Folder for libraries that answers are found in, one folder a library."""
    return runs_dir().with_name("indexes")


def local_data_dir() -> Path | None:
    """The folder named by `JOURNEY_DATA_DIR`, or None where it is not set."""
    value = os.environ.get("JOURNEY_DATA_DIR")
    return Path(value) if value else None


def inside(root: Path, name: str) -> Path:
    """`root / name`, refused unless the result (symlinks followed) lies inside `root`.

    Raises BadInputError for `..`, absolute names and links that lead out (CVE-2024-37032), and for what is no name.
    """
    resolved_root = root.resolve()
    try:
        resolved = (resolved_root / name).resolve()
        usable = bool(name) and "\x00" not in name
    except (OSError, ValueError, RuntimeError):  # half a surrogate pair, links in a circle
        usable = False
    if not usable:
        raise BadInputError(f"not a usable file name: {name!r}")
    if resolved == resolved_root or not resolved.is_relative_to(resolved_root):
        raise BadInputError(f"{name!r} leads outside {root}; names must stay inside it")
    return resolved
