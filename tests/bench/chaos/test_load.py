"""What a client may be refused or cut off for, and what is a finding."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mlxfleet.bench.chaos.answers import Answer, Choice
from mlxfleet.bench.chaos.cases import Case
from mlxfleet.bench.chaos.client import Attempt, End
from mlxfleet.bench.chaos.faults import Journal
from mlxfleet.bench.chaos.load import Load
from mlxfleet.bench.chaos.plan import Fault, Step

CASE = Case(name="request 0", endpoint="completions", body={"max_tokens": 3}, key=0)
ANSWER = Answer([Choice("text", "length")])


class ScriptedClient:
    """Attempts that end as they are to, at a time when a fault was made."""

    def __init__(self, journal: Journal, *ends: End) -> None:
        self._ends = list(ends)
        self._journal = journal

    async def attempt(self, case: Case) -> Attempt:
        """The next one."""
        made = self._journal.made
        at = made[0].began if made else 0.0
        end = self._ends.pop(0)
        return Attempt(end, at, at, ANSWER if end == "answered" else None, "why")


def findings(fault: Fault | None, *ends: End) -> list[str]:
    """The kinds of findings when a request's attempts end like this during a fault."""
    journal = Journal()
    if fault is not None:
        with journal.step(Step(0.0, (fault,))):
            pass
    client: Any = ScriptedClient(journal, *ends)
    load = Load(client, [CASE], journal)
    asyncio.run(load.ask(CASE, ANSWER))
    return [finding.kind for finding in load.tally.findings]


KILL_ROUTER = Fault("kill", "router")
DRAIN = Fault("drain", "node-0", 1.0)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Come back at once."""
    monkeypatch.setattr("mlxfleet.bench.chaos.client.LONGEST_PAUSE_S", 0.0)


def test_a_connection_may_break_when_the_router_is_killed_and_is_made_again() -> None:
    assert findings(KILL_ROUTER, "broken", "answered") == []


def test_a_connection_may_not_break_for_anything_else() -> None:
    assert findings(DRAIN, "broken") == ["lost"]
    assert findings(None, "broken") == ["lost"]


def test_a_refusal_is_honest_only_while_something_is_broken() -> None:
    assert findings(DRAIN, "refused", "refused", "answered") == []
    assert findings(None, "refused") == ["refused"]


@pytest.mark.parametrize(
    ("end", "kind"), [("failed", "lost"), ("malformed", "malformed"), ("hung", "hung")]
)
def test_nothing_else_is_excused(end: End, kind: str) -> None:
    assert findings(KILL_ROUTER, end) == [kind]
