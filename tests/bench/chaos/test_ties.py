"""Which differences are ties, and which are errors however small they look."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mlxfleet.bench.chaos.answers import Answer, Choice, Entry, Usage
from mlxfleet.bench.chaos.cases import Case
from mlxfleet.bench.chaos.client import Attempt
from mlxfleet.bench.chaos.faults import Journal
from mlxfleet.bench.chaos.load import Load, Tally

UNDISTURBED = "one two three four five"
OTHERWISE = "one two seven eight nine"
PARAMETERS: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 0.9, "seed": 1}]


class Server:
    """Answers a request by what its temperature and seed make of it, but the first one with what a
    disturbed server said."""

    def __init__(self, disturbed: Answer, text: Callable[[dict[str, Any]], str]) -> None:
        self._disturbed: Answer | None = disturbed
        self._text = text
        self.asked: list[dict[str, Any]] = []

    async def attempt(self, case: Case) -> Attempt:
        """The answer."""
        self.asked.append(case.body)
        answer, self._disturbed = self._disturbed, None
        return Attempt("answered", 0.0, 0.0, answer or said(self._text(case.body)))


def said(text: str, tokens: int = 5) -> Answer:
    """An answer of one choice."""
    entries = [Entry("x", -1.0)] * tokens
    return Answer([Choice(text, "length", entries)], Usage(1, tokens, 1 + tokens))


def judged(body: dict[str, Any], server: Server, *, exact: bool = True) -> Tally:
    """What is written down about the disturbed answer."""
    full = {"max_tokens": 5, **body}
    case = Case(name="a", endpoint="completions", body=full, key=0, exact=exact)
    client: Any = server
    load = Load(client, [case], Journal())
    asyncio.run(load.ask(case, said(UNDISTURBED)))
    return load.tally


@pytest.mark.parametrize("body", PARAMETERS)
def test_two_tokens_tie_if_the_least_change_gives_the_same_other_text(body: dict[str, Any]) -> None:
    def least_change(asked: dict[str, Any]) -> str:
        return OTHERWISE if asked["temperature"] > body["temperature"] else UNDISTURBED

    tally = judged(body, Server(said(OTHERWISE), least_change))
    assert (tally.ties, tally.findings) == (1, [])


@pytest.mark.parametrize("body", PARAMETERS)
@pytest.mark.parametrize("other", [UNDISTURBED, "one two three five", "one two six seven eight"])
def test_what_no_small_change_gives_is_wrong(body: dict[str, Any], other: str) -> None:
    tally = judged(body, Server(said(OTHERWISE), lambda asked: other))
    assert [finding.kind for finding in tally.findings] == ["wrong"]
    assert tally.ties == 0


@pytest.mark.parametrize("body", PARAMETERS)
def test_changes_are_as_small_as_rounding(body: dict[str, Any]) -> None:
    server = Server(said(OTHERWISE), lambda asked: UNDISTURBED)
    judged(body, server)
    changed = [asked["temperature"] for asked in server.asked[1:]]
    assert len(changed) > 1
    assert all(0 < abs(t - body["temperature"]) <= 1e-4 for t in changed)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (said(OTHERWISE, tokens=6), "doubled"),
        (said(UNDISTURBED + " five", tokens=5), "doubled"),
        (said("one two", tokens=5), "wrong"),
    ],
)
def test_more_or_fewer_tokens_are_never_a_tie(answer: Answer, kind: str) -> None:
    server = Server(answer, lambda asked: answer.choices[0].text)
    tally = judged(PARAMETERS[1], server)
    assert [finding.kind for finding in tally.findings] == [kind]
    assert len(server.asked) == 1


def test_without_a_seed_there_is_nothing_to_compare_with() -> None:
    answer = said(OTHERWISE, tokens=4)
    server = Server(answer, lambda asked: OTHERWISE)
    tally = judged(PARAMETERS[1], server, exact=False)
    assert [finding.kind for finding in tally.findings] == ["wrong"]
    assert len(server.asked) == 1
