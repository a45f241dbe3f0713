"""Which requests are running, for who looks at the fleet: never what they say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from msgspec import Struct

from mlxfleet.common.messages import Priority
from mlxfleet.router.sequences import Sequence

Stage = Literal["waiting", "prefill", "decoding"]


class Running(Struct, frozen=True, kw_only=True):
    """A sequence as operators see it. It is `waiting` while it has no node that can go on with it,
    and in `prefill`, or queued for it on its node, until its first token."""

    id: str
    model: str
    node: str
    state: Stage
    priority: Priority
    prompt_tokens: int
    tokens: int
    max_tokens: int
    age_s: float
    moves: int


@dataclass(eq=False)
class Entry:
    """A request; its `sequences` are known when it is tokenized."""

    priority: Priority
    sequences: Many[Sequence] = ()


class InFlight:
    """All requests that hold room in the router, in order of arrival. Admission bounds them."""

    def __init__(self) -> None:
        self._entries: dict[Entry, None] = {}

    @contextmanager
    def entry(self, priority: Priority) -> Iterator[Entry]:
        """Have a request among them as long as it runs."""
        entry = Entry(priority)
        self._entries[entry] = None
        try:
            yield entry
        finally:
            del self._entries[entry]

    def total(self) -> int:
        """Sequences that have not ended."""
        return sum(1 for _ in self._sequences())

    def oldest(self, limit: int) -> list[Running]:
        """Those that arrived first."""
        now = time.perf_counter()
        found = islice(self._sequences(), limit)
        return [describe(sequence, priority, now) for sequence, priority in found]

    def _sequences(self) -> Iterator[tuple[Sequence, Priority]]:
        for entry in self._entries:
            for sequence in entry.sequences:
                if not sequence.ended:
                    yield sequence, entry.priority


def describe(sequence: Sequence, priority: Priority, now: float) -> Running:
    """A sequence at a time.perf_counter()."""
    return Running(
        id=sequence.rid,
        model=sequence.model,
        node=sequence.node,
        state=stage_of(sequence),
        priority=priority,
        prompt_tokens=len(sequence.prompt_ids),
        tokens=len(sequence.output_ids),
        max_tokens=sequence.sampling.max_tokens,
        age_s=round(now - sequence.arrived, 2),
        moves=sequence.moves,
    )


def stage_of(sequence: Sequence) -> Stage:
    """What a sequence is at."""
    if not sequence.node or sequence.stranded_since is not None:
        return "waiting"
    return "decoding" if sequence.output_ids else "prefill"
