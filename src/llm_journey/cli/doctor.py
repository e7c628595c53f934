"""`journey doctor` and `journey clean`: the state of this machine, and its disk space back."""

import sys
from typing import Annotated

import typer

from llm_journey.cli.options import Json, examples

DOCTOR_EXAMPLES = examples("journey doctor", "journey doctor --network --json")
CLEAN_EXAMPLES = examples("journey clean --dry-run", "journey clean --only prepared --yes")
_MARKS = {"ok": "ok", "missing": "MISSING", "note": "note"}


def doctor(
    network: Annotated[bool, typer.Option("--network", help="Also ask whether the Hugging Face hub answers.")] = False,
    as_json: Json = False,
) -> int:
    """Say what this machine has and lacks.

    Each lack comes with the command that mends it. No socket is opened without --network.
    """
    from llm_journey.app.doctor import as_json as findings_as_json
    from llm_journey.app.doctor import examine
    from llm_journey.cli.output import show_table
    from llm_journey.core.console import print_json

    findings = examine(network=network)
    summary = findings_as_json(findings)
    if as_json:
        print_json(summary)
    else:
        rows = [[_MARKS[item.state], item.area, item.name, item.value, item.fix] for item in findings]
        show_table(["", "area", "what", "found", "what to do"], rows)
    return 0 if summary["ok"] else 1


def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="KIND", help="leftovers, prepared, pulled, compiled, checkpoints; repeatable."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what can be made or pulled again.

    That is prepared data, pulled items, compiled steps, what killed processes left, and old checkpoints. Runs, their
    models and the shared Hugging Face cache are left alone.
    """
    from llm_journey.app.clean import find_removable, remove
    from llm_journey.cli.output import megabytes, say, show_table
    from llm_journey.core.console import print_json
    from llm_journey.core.errors import BadInputError

    items = find_removable(only or [])
    total = sum(item.size for item in items)
    if as_json and dry_run:
        print_json({"items": [item.describe() for item in items], "bytes": total})
        return
    if not as_json:
        rows = [[item.kind, megabytes(item.size), str(item.path)] for item in items]
        show_table(["kind", "size", "path"], [*rows, ["in all", megabytes(total), ""]], right=[1])
    if dry_run or (not items and not as_json):
        return
    if not yes and items:
        if not sys.stdin.isatty():
            raise BadInputError("nothing was removed: add --yes to remove these without being asked, or --dry-run")
        if not typer.confirm(f"Remove {len(items)} items, {megabytes(total)}?", err=True):
            say("nothing was removed")
            return
    freed = remove(items)
    if as_json:
        print_json({"items": [item.describe() for item in items], "bytes": freed})
    else:
        say(f"{megabytes(freed)} freed")
