"""Shows what happens on which host: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

STYLES = {"ok": "green", "failed": "bold red", "busy": "yellow"}
WIDEST = 100


class Board:
    """The current step of every host or unit."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, tuple[str, str]] = {}
        self._live: Live | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show it meanwhile; what it says last stays."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=8, transient=False) as live:
            self._live = live
            yield
            live.update(self._table())
        self._live = None
        self._rows.clear()

    def set(self, name: str, text: str, state: str = "busy") -> None:
        """Say what `name` is at."""
        changed = self._rows.get(name) != (text, state)
        self._rows[name] = (text, state)
        if self._live is not None:
            self._live.update(self._table())
        elif changed:
            self._console.print(line(name, text, state), highlight=False, soft_wrap=True)

    def fine(self, name: str, text: str) -> None:
        """Only for a terminal: steps too small for a line of their own."""
        if self._live is not None:
            self.set(name, text[:WIDEST])

    def shower(self, name: str) -> Callable[[str], None]:
        """`fine` for one name."""
        return lambda text: self.fine(name, text)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, (text, state) in self._rows.items():
            table.add_row(escape(name), f"[{STYLES[state]}]{escape(text)}[/]")
        return table


def line(name: str, text: str, state: str) -> str:
    """A row as a line with markup."""
    return f"{escape(name)}: [{STYLES[state]}]{escape(text)}[/]"
