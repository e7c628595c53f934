"""What `data` and `models` share: catalog items as a table, and pulling one. Loaded only when such a command runs."""

from collections.abc import Sequence

from llm_journey.cli.live import view
from llm_journey.cli.output import megabytes, say, show_table
from llm_journey.core.console import output, print_json
from llm_journey.core.errors import BadInputError
from llm_journey.datasets.catalog import find, list_items
from llm_journey.datasets.pull import Progress
from llm_journey.datasets.pull import pull as pull_entry

_STATES = {"local": "in JOURNEY_DATA_DIR", "cached": "yes", "available": "no", "unavailable": "no, cannot be pulled"}


def show_items(kinds: Sequence[str], as_json: bool) -> None:
    """The catalog's items of some kinds with their state on this machine."""
    items = [item for kind in kinds for item in list_items(kind)]
    if as_json:
        print_json(
            [
                {
                    "name": item.entry.name,
                    "kind": item.entry.kind,
                    "title": item.entry.title,
                    "licence": item.entry.licence,
                    "bytes": item.entry.size(),
                    "state": item.state,
                    "path": str(item.path) if item.path else None,
                    "note": item.entry.note,
                }
                for item in items
            ]
        )
        return
    rows = [
        [item.entry.name, item.entry.title, megabytes(item.entry.size()), item.entry.licence, _STATES[item.state]]
        for item in items
    ]
    show_table(["name", "what it is", "size", "licence", "on this machine"], rows, right=[2])


def pull_item(name: str, kinds: Sequence[str], as_json: bool) -> None:
    """Pull an item of the given kinds and print where it lies. Its licence is said first."""
    entry = find(name)
    if entry.kind not in kinds:
        noun = "models" if entry.kind == "model" else "data"
        raise BadInputError(f"{name!r} is a {entry.kind}; use `journey {noun} pull {name}`")
    say(f"{entry.title}; licence: {entry.licence}" + (f"; {entry.note}" if entry.note else ""))
    with view() as watching:
        watching.stage(f"pulling {name}")

        def on_progress(progress: Progress) -> None:
            if progress.action.startswith(("pulling from", "failed", "waiting")):
                watching.message(progress.action)
            if progress.total:
                watching.progress(progress.done, progress.total, "bytes")

        path = pull_entry(name, on_progress=on_progress)
    if as_json:
        print_json({"name": name, "path": str(path), "licence": entry.licence})
    else:
        output().print(str(path), markup=False, soft_wrap=True)
