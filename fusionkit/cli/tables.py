"""Tables in the terminal and in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def print_table(
    rows: Sequence[Sequence[str]], header: Sequence[str] = (), width: int = 200
) -> None:
    """Print rows as columns; the first never wraps.

    Args:
        rows: Cells, printed as they are.
        header: Column titles, if any.
        width: Where there is no terminal, the width to wrap at.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        show_header=bool(header),
        header_style="bold",
    )
    for number, _ in enumerate(rows[0] if rows else header):
        title = header[number] if header else ""
        table.add_column(title, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else width)
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))
