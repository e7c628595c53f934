"""The Hugging Face cache and hub, used by our pulls: where a snapshot lies, whether the hub may and can be asked.

Nothing here opens a socket where `HF_HUB_OFFLINE` is set. The cache's layout
(`models--owner--name/snapshots/<commit>/<file>`) is the one that huggingface_hub documents under "Manage your cache".
"""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_journey.datasets.sources import HubSource

_TRUE = {"1", "ON", "YES", "TRUE"}
_PROBE_SECONDS = 4.0


def hub_is_offline() -> bool:
    """Whether the environment forbids calls to the hub."""
    return any(os.environ.get(name, "").upper() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


@contextmanager
def hub_switched_off() -> Iterator[None]:
    """Inside, neither we nor any library asks the hub; afterwards all is as it was.

    huggingface_hub reads the environment once, when it is loaded, and other libraries ask it: both are set.
    """
    from huggingface_hub import constants

    before, loaded = os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE
    os.environ["HF_HUB_OFFLINE"], constants.HF_HUB_OFFLINE = "1", True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = loaded
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before


def hub_cache_dir() -> Path:
    """The folder that all Hugging Face libraries share: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(name):
            return Path(value).expanduser()
    if value := os.environ.get("HF_HOME"):
        return Path(value).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "huggingface" / "hub"


def hub_snapshot(source: HubSource) -> Path:
    """Where the files of `source` lie once they are in the Hugging Face cache (they need not be there)."""
    folder = f"{source.repository_type}s--{source.repository.replace('/', '--')}"
    return hub_cache_dir() / folder / "snapshots" / source.revision


def hub_is_reachable(seconds: float = _PROBE_SECONDS) -> bool:
    """Whether the hub answers at all within `seconds`, name lookup included (a lookup alone can hang for longer)."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    answered, finished = threading.Event(), threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - the user's own endpoint
            with urllib.request.urlopen(request, timeout=seconds):  # noqa: S310
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except Exception:  # noqa: S110 - whatever the reason, there was no answer
            pass
        finally:
            finished.set()

    threading.Thread(target=ask, daemon=True, name="hub-probe").start()
    finished.wait(seconds)
    return answered.is_set()


def download_file(source: HubSource, name: str) -> Path:
    """One file of `source`, fetched into the Hugging Face cache by huggingface_hub. Raises what that library raises."""
    import huggingface_hub
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    path = huggingface_hub.hf_hub_download(
        source.repository,
        name,
        repo_type=source.repository_type,
        revision=source.revision,
        cache_dir=hub_cache_dir(),
        etag_timeout=5,
        endpoint=os.environ.get("HF_ENDPOINT") or None,
    )
    return Path(path)
