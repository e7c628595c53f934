"""Tables and facts on standard output. Scripts take `--json`; nothing that is printed here is ever cut off."""

from collections.abc import Iterable, Sequence

# Where the output is no terminal, tables may be as wide as they need.
_FILE_WIDTH = 10_000


def show_facts(rows: Iterable[tuple[str, str]]) -> None:
    """Labels and values in two columns."""
    show_table(None, [list(row) for row in rows])


def show_table(head: Sequence[str] | None, rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Rows under headings (none: without); the columns in `right` are aligned right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from llm_journey.core.console import output

    table = Table(box=SIMPLE_HEAD if head else None, show_header=head is not None, pad_edge=False, header_style="bold")
    columns = len(head) if head else max((len(row) for row in rows), default=0)
    for index in range(columns):
        table.add_column(
            head[index] if head else "",
            justify="right" if index in right else "left",
            overflow="fold",
            style="" if head or index else "dim",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = output() if output().is_terminal else Console(width=_FILE_WIDTH)
    console.print(table)


def say(text: str) -> None:
    """A line for the person, on standard error."""
    from llm_journey.core.console import messages

    messages().print(text, markup=False, soft_wrap=True)


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e6:,.1f} MB"


def shortened(text: str, most: int = 160) -> str:
    """A text as one line of about `most` characters, cut between words."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most].rsplit(' ', 1)[0]} ..."
