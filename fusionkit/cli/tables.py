"""Tables in the terminal and in a pipe."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Sequence

WIDE = 200  # a file or a pipe has no width of its own


def print_table(
    rows: Sequence[Sequence[str]],
    header: Sequence[str] = (),
    width: int = WIDE,
    wrapped: Collection[str] = (),
) -> None:
    """Print rows as columns; the first never wraps.

    Args:
        rows: Cells, printed as they are.
        header: Column titles, if any.
        width: Where there is no terminal, the width to wrap at.
        wrapped: Titles of the columns that may wrap; all but the first if empty.
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
        fixed = number == 0 or (bool(wrapped) and title not in wrapped)
        table.add_column(title, no_wrap=fixed, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else width)
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def terminal_width() -> int:
    """Columns of the terminal; :data:`WIDE` where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
