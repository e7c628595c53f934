"""What the shell offers after Tab: names of runs, recipes and catalog items. Loads nothing heavy."""

from pathlib import Path


def runs(incomplete: str) -> list[str]:
    """Runs that begin like this."""
    from llm_journey.core.paths import runs_dir

    try:
        names = sorted(path.parent.name for path in runs_dir().glob("*/run.json"))
    except OSError:
        names = []
    return [name for name in names if name.startswith(incomplete)]


def recipes(incomplete: str) -> list[str]:
    """Shipped recipes and runs that begin like this."""
    folder = Path(__file__).parents[1] / "recipes"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    return [name for name in names if name.startswith(incomplete)] + runs(incomplete)


def models(incomplete: str) -> list[str]:
    """Runs and catalog models that begin like this."""
    return runs(incomplete) + _items(incomplete, ("model",))


def catalog_models(incomplete: str) -> list[str]:
    """Catalog models that begin like this."""
    return _items(incomplete, ("model",))


def catalog_data(incomplete: str) -> list[str]:
    """Corpora and test sets that begin like this."""
    return _items(incomplete, ("corpus", "testset"))


def _items(incomplete: str, kinds: tuple[str, ...]) -> list[str]:
    from llm_journey.datasets.catalog import CATALOG

    return [name for name, entry in CATALOG.items() if entry.kind in kinds and name.startswith(incomplete)]
