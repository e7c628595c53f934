"""`journey runs` and `journey report`: what was trained, beside each other, and as a page."""

from pathlib import Path
from typing import Annotated

import typer

from llm_journey.cli import completion
from llm_journey.cli.options import Json, RunName, examples

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Training runs: list, show, compare.",
    epilog=examples("journey runs list", "journey runs compare quickstart small"),
)
REPORT_EXAMPLES = examples("journey report quickstart", "journey report quickstart --measure --json")


@app.command(name="list", epilog=examples("journey runs list", "journey runs list --json"))
def list_runs(as_json: Json = False) -> None:
    """List the training runs, oldest first."""
    from llm_journey.app.runs import list_runs as find_runs
    from llm_journey.cli.output import say, show_table
    from llm_journey.core.console import print_json

    runs = find_runs(on_damaged=say)
    if as_json:
        print_json([run.describe() for run in runs])
        return
    if not runs:
        say("There is no run yet; `journey quickstart` makes one.")
        return
    rows = []
    for run in runs:
        parameters = run.figures.get("parameters")
        rows.append(
            [
                run.name,
                run.status,
                run.result,
                f"{parameters:,.0f}" if parameters is not None else "",
                run.created[:16].replace("T", " "),
            ]
        )
    show_table(["name", "status", "result", "parameters", "begun (UTC)"], rows, right=[2, 3])


@app.command(epilog=examples("journey runs show quickstart", "journey runs show quickstart --json"))
def show(run: RunName, as_json: Json = False) -> None:
    """Show one run: figures, baselines, recipe."""
    from llm_journey.app.runs import find_run
    from llm_journey.cli.output import show_facts
    from llm_journey.core.config import read_yaml, to_yaml
    from llm_journey.core.console import output, print_json

    found = find_run(run)
    recipe = read_yaml(found.directory / "recipe.yaml")
    if as_json:
        print_json(found.describe() | {"failures": found.failures, "recipe": recipe})
        return
    show_facts([*found.rows(), ("Folder", str(found.directory))])
    output().print(to_yaml(recipe), markup=False, soft_wrap=True)


@app.command(epilog=examples("journey runs compare quickstart small", "journey runs compare a b c --to page.html"))
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...", help="Two or more runs.", show_default=False, autocompletion=completion.runs
        ),
    ],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write a page with the curves over each other.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs: figures and recipes."""
    from llm_journey.app.runs import find_run
    from llm_journey.cli.output import say, show_table
    from llm_journey.core.console import print_json
    from llm_journey.reports.compare import compare as compare_runs

    comparison = compare_runs([find_run(name).directory for name in runs])
    if to is not None:
        say(f"written: {comparison.write(to)}")
    if as_json:
        print_json({"runs": comparison.rows, "recipe_differences": comparison.differences})
        return
    head, cells = comparison.table
    show_table(head, cells, right=range(1, len(head)))
    if comparison.differences:
        rows = [[key, *map(str, values)] for key, values in comparison.differences.items()]
        show_table(["recipe key", *(str(row["name"]) for row in comparison.rows)], rows)


def report(
    run: RunName,
    measure: Annotated[bool, typer.Option("--measure", help="Measure baselines, export and card again first.")] = False,
    as_json: Json = False,
) -> int:
    """Write a run's report as one HTML file.

    Prints its path. The file holds everything that it shows.
    """
    from llm_journey.app.measure import measure as measure_run
    from llm_journey.app.runs import find_run, working_on
    from llm_journey.cli.live import view
    from llm_journey.core.console import output, print_json
    from llm_journey.reports.run_report import write_report

    found = find_run(run)
    failures: dict[str, str] = {}
    if measure:
        with working_on(found.directory), view() as watching:
            failures = measure_run(found, watching)
    path = write_report(found.directory)
    if as_json:
        print_json({"run": found.name, "report": str(path), "failures": failures})
    else:
        output().print(str(path), markup=False, soft_wrap=True)
    return int(bool(failures))
