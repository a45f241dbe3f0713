"""How far a comparison is."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from mlxfleet.bench.records import Round


class Shown:
    """A bar of turns on a terminal, a line for each turn elsewhere. It is drawn only when something
    happens, so that nothing draws while something is measured."""

    def __init__(self, turns: int, console: Console) -> None:
        self._turns = turns
        self._done = 0
        self._console = console
        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.description}"),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=turns)

    def step(self, text: str) -> None:
        """What goes on now."""
        self._bar.update(self._task, description=text)
        self._bar.refresh()

    def round(self, record: Round) -> None:
        """A turn is over."""
        value = "no figure" if record.value is None else f"{record.value:,.2f}"
        notes = [*record.remarks, *([f"thrown out: {record.thrown_out}"] * bool(record.thrown_out))]
        if not record.thrown_out:
            self._done += 1
        self._bar.update(self._task, completed=self._done)
        if notes or not self._console.is_terminal:
            self._console.print(
                f"[{self._done}/{self._turns}] round {record.number + 1}, {record.side}: "
                + "; ".join([value, *notes]),
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def __enter__(self) -> Shown:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
