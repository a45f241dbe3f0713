"""The load: what each request is answered undisturbed, and whether that holds under faults."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from dataclasses import dataclass, field

import msgspec

from mlxfleet.bench.chaos.answers import Answer
from mlxfleet.bench.chaos.cases import Case
from mlxfleet.bench.chaos.client import Attempt, Client, End, ask_until_answered
from mlxfleet.bench.chaos.compare import Finding, Kind, compare, compare_beginning, over_limit
from mlxfleet.bench.chaos.faults import Journal
from mlxfleet.bench.chaos.ties import nudged, parting
from mlxfleet.bench.servers import ServerError

STOP_CHARACTERS = 4
BODY_CHARACTERS = 300
KIND_OF_END: dict[End, Kind] = {
    "refused": "refused",
    "broken": "lost",
    "failed": "lost",
    "malformed": "malformed",
    "hung": "hung",
}


@dataclass
class Tally:
    """How many attempts ended in each way, requests by the faults they met, answers that part from
    the undisturbed one only where two tokens tie, and findings."""

    attempts: Counter[End] = field(default_factory=Counter)
    requests: int = 0
    ties: int = 0
    met: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    findings_by_faults: Counter[str] = field(default_factory=Counter)


class Load:
    """Requests of a mix, what they should be answered, and loops that ask them."""

    def __init__(self, client: Client, cases: list[Case], journal: Journal) -> None:
        self.tally = Tally()
        self._client = client
        self._cases = cases
        self._journal = journal
        self._expected: list[Answer] = []
        self._ended = asyncio.Event()

    async def learn(self, at_once: int) -> None:
        """Ask everything undisturbed. ServerError if that fails already."""
        places = asyncio.Semaphore(at_once)

        async def one(index: int) -> Answer:
            async with places:
                case = await self._with_stop(staying(self._cases[index]))
                self._cases[index] = msgspec.structs.replace(self._cases[index], body=case.body)
                return await self._undisturbed(case)

        async with asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(one(index)) for index in range(len(self._cases))]
        self._expected = [task.result() for task in found]

    async def _with_stop(self, case: Case) -> Case:
        """The case with a stop string that comes in its own text."""
        if case.stop_at is None:
            return case
        text = (await self._undisturbed(case)).choices[0].text
        at = int(case.stop_at * len(text))
        stop = text[at : at + STOP_CHARACTERS]
        # A replacement character stands for bytes that a stop string cannot have.
        if not stop or "\ufffd" in stop:
            return case
        return msgspec.structs.replace(case, body={**case.body, "stop": [stop, "never said"]})

    async def _undisturbed(self, case: Case) -> Answer:
        attempt = await self._client.attempt(case)
        if attempt.end != "answered" or attempt.answer is None:
            why = f"{case.name} {attempt.end} without a fault: {attempt.why}"
            raise ServerError(f"{why}; {str(case.body)[:BODY_CHARACTERS]}")
        return attempt.answer

    async def run(self, rng: random.Random, over: asyncio.Event) -> None:
        """Ask in random order until it is over."""
        while not over.is_set():
            index = rng.randrange(len(self._cases))
            await self.ask(self._cases[index], self._expected[index])

    async def moves(self, answers: int, timeout_s: float) -> None:
        """Wait until so many more requests have ended, so that the next fault meets new ones; not
        longer than that, because it may be the fault that none ends."""
        self._ended.clear()
        goal = self.tally.requests + answers
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.tally.requests < goal:
                    await self._ended.wait()
                    self._ended.clear()

    async def ask_all(self) -> None:
        """Ask everything once, at once."""
        async with asyncio.TaskGroup() as tasks:
            for case, expected in zip(self._cases, self._expected, strict=True):
                tasks.create_task(self.ask(case, expected))

    async def ask(self, case: Case, expected: Answer) -> None:
        """Ask one request until it is answered, and write down what is wrong with the answer."""
        counted = self.tally.attempts
        attempt = await ask_until_answered(
            self._client, case, self._excused, lambda end: counted.update([end])
        )
        self.tally.requests += 1
        self._ended.set()
        met = sorted({made.kinds for made in self._journal.during(attempt.began, attempt.ended)})
        self.tally.met.update(met)
        finding = judge(case, attempt, expected)
        if finding is None:
            return
        if attempt.answer is not None and await self._ties(case, attempt.answer, expected):
            self.tally.ties += 1
        else:
            during = ", ".join(met) or "no fault"
            body = str(case.body)[:BODY_CHARACTERS]
            finding = Finding(finding.kind, f"{finding.what} (during {during}); {body}")
            self.tally.findings.append(finding)
            self.tally.findings_by_faults.update(met or ["no fault"])

    async def _ties(self, case: Case, answer: Answer, expected: Answer) -> bool:
        """Whether an answer differs only because of two tokens that tie."""
        where = parting(answer, expected)
        if where is None or not case.exact or over_limit(case, answer):
            return False
        for other in nudged(staying(case)):
            attempt = await ask_until_answered(self._client, other, self._excused, lambda end: None)
            if attempt.answer is not None and where.shared_by(attempt.answer, expected):
                return True
        return False

    def _excused(self, attempt: Attempt) -> bool:
        """Whether there was a reason to refuse it, or to break its connection."""
        met = self._journal.during(attempt.began, attempt.ended)
        if attempt.end == "broken":
            return any(made.router_killed for made in met)
        return bool(met)


def staying(case: Case) -> Case:
    """The same request of a client that does not leave."""
    return msgspec.structs.replace(case, leaves_after_events=None, leaves_after_s=None)


def judge(case: Case, attempt: Attempt, expected: Answer) -> Finding | None:
    """What is wrong with how a request ended."""
    match attempt.end, attempt.answer:
        case "answered", Answer() as answer:
            return compare(case, answer, expected)
        case "left", Answer() as answer:
            return compare_beginning(case, answer, expected)
        case "left", None:
            return None
        case end, _:
            return Finding(KIND_OF_END[end], f"{case.name}: {attempt.why}")
