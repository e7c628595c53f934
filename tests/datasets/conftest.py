"""What the tests of the pulls share."""

import pytest
from small_item import DATA

from llm_journey.datasets.catalog import CATALOG
from llm_journey.datasets.sources import Entry


@pytest.fixture
def home(monkeypatch, tmp_path):
    """An empty cache: the folder of the catalog's items, nothing of the environment left."""
    monkeypatch.setenv("JOURNEY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hugging-face"))
    for name in ("JOURNEY_DATA_DIR", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    # The library keeps what the environment said when it was first loaded, which another test may have caused.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path / "home" / "cache" / "catalog"


@pytest.fixture
def small(monkeypatch, home):
    """Puts an entry called `small` into the catalog."""

    def put(*sources, kind="corpus"):
        monkeypatch.setitem(CATALOG, "small", Entry("small", kind, "t", "MIT", (DATA,), sources))

    return put
