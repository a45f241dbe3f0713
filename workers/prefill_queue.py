"""The order in which an engine runs prompt tokens, which the scheduler decides pass by pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from mlxfleet.common.messages import Prefill


class PrefillingRow(Protocol):
    """A sequence in an engine; `prefilled` tokens of its prompt have been run or are about to be,
    of `prefill_tokens`."""

    prefilled: int
    done: bool

    @property
    def prefill_tokens(self) -> int:
        """Tokens to prefill: all but the last, which is the first decode input."""


R = TypeVar("R", bound=PrefillingRow)


class PrefillQueue(Generic[R]):
    """Prefill commands, with the rows that they meant when they came."""

    def __init__(self) -> None:
        self._commands: deque[tuple[Prefill, list[R | None]]] = deque()
        self._rests = 0

    def __bool__(self) -> bool:
        """Whether there are commands left."""
        return bool(self._commands)

    def add(self, message: Prefill, rows: Mapping[str, R]) -> None:
        """Queue a pass's prefill."""
        self._commands.append((message, [rows.get(rid) for rid in message.rids]))

    def take(self, *, decoding: bool) -> tuple[list[tuple[R, int, int]], list[tuple[str, int]]]:
        """The prefill of the next pass, as (row, from, to), and the report on it. Nothing if the
        pass should rest, which it does only for rows that are decoding.

        Each row of a command is reported once, with 0 tokens if it is gone (also if another has
        come by the same name) or needs no more.
        """
        if self._rests and decoding:
            self._rests -= 1
            return [], []
        if not self._commands:
            return [], []
        message, rows = self._commands.popleft()
        self._rests = message.rests
        pieces: list[tuple[R, int, int]] = []
        report = []
        seen: set[int] = set()
        for row, rid, wanted in zip(rows, message.rids, message.tokens, strict=True):
            if row is None or row.done or id(row) in seen:
                report.append((rid, 0))
                continue
            start = row.prefilled
            end = min(start + wanted, row.prefill_tokens)
            report.append((rid, end - start))
            if end > start:
                seen.add(id(row))
                pieces.append((row, start, end))
                row.prefilled = end
        return pieces, report
