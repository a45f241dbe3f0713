"""Conversations of many turns over nodes whose caches hold half of them, in simulated time: how
much of their prompts each policy finds cached."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from mlxfleet.common.block_hashes import block_hashes
from mlxfleet.common.config import Routing as RoutingName
from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.common.messages import Sampling
from mlxfleet.router.routing import Routing
from mlxfleet.router.sequences import Sequence
from mlxfleet.router.wakeup import Wakeup
from mlxfleet.workers.kv_events import KvJournal
from mlxfleet.workers.prefix_tree import Lease, PrefixTree
from tests.router.reports import make_status

NODES = 4
CONVERSATIONS = 64
TURNS = 8
SYSTEM_TOKENS = 200
REPORT_S = 0.25
EVENTS_S = 0.02
PREFILL_TOKENS_PER_S = 2000.0
DECODE_STEP_S = 0.02
ROW_S = 0.0005
POLICIES: tuple[RoutingName, ...] = ("ttft", "round_robin", "least_loaded", "power_of_two")


@dataclass
class Trace:
    """How conversations come: so many are under way at a time, and users think for so long."""

    at_once: int
    think_s: float
    seed: int
    cache_share: float = 0.5


@dataclass
class Result:
    """Prompt tokens that were cached, and that one endless cache would have had; TTFTs."""

    cached: int = 0
    possible: int = 0
    prompt: int = 0
    ttfts: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of what an endless cache would serve."""
        return self.cached / self.possible

    @property
    def p99_s(self) -> float:
        """All but one in a hundred get their first token sooner."""
        return sorted(self.ttfts)[int(len(self.ttfts) * 0.99)]


class Clock:
    """Simulated time, and what happens when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._count), event))

    def run(self, until: Callable[[], bool]) -> None:
        """Let it all happen, one after the other."""
        while not until():
            self.now, _, event = heapq.heappop(self._events)
            event()


class Node:
    """A real prefix tree in front of a worker that prefills one prompt after the other, and decodes
    all rows at once."""

    def __init__(self, name: str, blocks: int, clock: Clock, routing: Routing) -> None:
        self.name, self._clock, self._routing = name, clock, routing
        self._blocks = blocks
        self._journal = KvJournal()
        self._tree = PrefixTree(blocks, self._journal, lambda: clock.now)
        self._queue: list[tuple[list[int], int, Callable[[int], None], Callable[[], None]]] = []
        self._busy = False
        self._left = 0
        self._rows = 0
        self._received = 0
        self._report(fresh=True)
        self._tell()

    def take(
        self,
        prompt: list[int],
        answer: list[int],
        first: Callable[[int], None],
        last: Callable[[], None],
    ) -> None:
        """Queue a request; `first` is called with its cached tokens when its first token is there,
        `last` when all are."""
        self._received += 1
        self._queue.append((prompt, answer, first, last))
        self._next()

    def _next(self) -> None:
        if self._busy or not self._queue:
            return
        prompt, answer, first, last = self._queue.pop(0)
        lease = self._tree.begin("", self._tree.match(prompt[:-1]), prompt[:-1])
        self._busy, self._left = True, len(prompt) - lease.cached_tokens
        seconds = self._left / PREFILL_TOKENS_PER_S + self._step_s()

        def prefilled() -> None:
            self._busy, self._left = False, 0
            self._rows += 1
            lease.computed = len(prompt) - 1
            self._tree.store_computed(lease)
            first(lease.cached_tokens)
            self._clock.after(
                len(answer) * self._step_s(), lambda: self._end(lease, prompt + answer, last)
            )
            self._next()

        self._clock.after(seconds, prefilled)

    def _end(self, lease: Lease, tokens: list[int], last: Callable[[], None]) -> None:
        self._rows -= 1
        self._tree.end(lease, tokens[:-1])
        last()

    def _step_s(self) -> float:
        return DECODE_STEP_S + self._rows * ROW_S

    def _tell(self) -> None:
        self._tell_now()
        self._clock.after(EVENTS_S, self._tell)

    def _tell_now(self) -> None:
        for message in self._journal.take(self._tree.stored_hashes):
            assert not self._routing.on_cache(self.name, message)

    def _report(self, fresh: bool = False) -> None:
        self._tell_now()
        self.status = make_status(
            self.name,
            cold_blocks=self._blocks,
            running=self._rows + self._busy,
            queued=len(self._queue),
            received=self._received,
            queued_prefill_tokens=sum(
                len(prompt) - self._tree.expected(prompt) for prompt, *_ in self._queue
            ),
            running_prefill_tokens=self._left,
            prefill_tokens_per_s=PREFILL_TOKENS_PER_S,
            decode_step_s=self._step_s() + ROW_S,
            decode_row_s=ROW_S,
            cold_blocks_used=self._tree.used,
            cold_age_s=self._tree.age_s,
            kv_sequence=self._journal.sequence,
        )
        assert not self._routing.on_status(self.status, fresh=fresh)
        self._clock.after(REPORT_S, self._report)


class Replay:
    """One trace under one policy."""

    def __init__(self, policy: RoutingName, trace: Trace) -> None:
        self._rng = random.Random(trace.seed)
        self._trace = trace
        self._clock = Clock()
        self._routing = Routing(
            policy,
            max_index_blocks=100_000,
            rng=random.Random(trace.seed),
            now=lambda: self._clock.now,
        )
        self._system = self._tokens(SYSTEM_TOKENS)
        self._conversations = [
            [(self._tokens(150, 350), self._tokens(60, 140)) for _ in range(TURNS)]
            for _ in range(CONVERSATIONS)
        ]
        total = sum(
            SYSTEM_TOKENS + sum(len(said) + len(answer) for said, answer in turns)
            for turns in self._conversations
        )
        blocks = int(total * trace.cache_share / NODES / BLOCK_TOKENS)
        self._nodes = {
            name: Node(name, blocks, self._clock, self._routing)
            for name in (f"node-{number}" for number in range(NODES))
        }
        self._endless = PrefixTree(10 * total // BLOCK_TOKENS)
        self._rids = itertools.count()
        self.result = Result()

    def run(self) -> Result:
        """Talk all conversations to their ends."""
        waiting = list(range(CONVERSATIONS))
        done: list[int] = []

        def begin() -> None:
            if waiting:
                self._turn(waiting.pop(0), 0, list(self._system), finished)

        def finished(conversation: int) -> None:
            done.append(conversation)
            begin()

        for _ in range(self._trace.at_once):
            self._clock.after(self._rng.uniform(0, 2 * self._trace.think_s), begin)
        self._clock.run(until=lambda: len(done) == CONVERSATIONS)
        return self.result

    def _turn(
        self, number: int, turn: int, history: list[int], finished: Callable[[int], None]
    ) -> None:
        said, answer = self._conversations[number][turn]
        prompt = history + said
        began_s = self._clock.now
        sequence = Sequence(
            rid=str(next(self._rids)),
            prompt_ids=prompt,
            sampling=Sampling(seed=0, max_tokens=len(answer)),
            stop=[],
            wakeup=Wakeup(),
            block_hashes=block_hashes(prompt),
            session=str(number),
        )
        nodes = [node.status for node in self._nodes.values()]
        sequence.node = self._routing.choose(sequence, nodes)
        self._routing.sent(sequence)
        endless = self._endless.begin("", self._endless.match(prompt[:-1]), prompt[:-1])
        self._endless.end(endless, (prompt + answer)[:-1])
        self.result.prompt += len(prompt)
        self.result.possible += endless.cached_tokens

        def first(cached: int) -> None:
            self.result.cached += cached
            self.result.ttfts.append(self._clock.now - began_s)
            sequence.output_ids = answer[:1]
            self._routing.answered(sequence)

        def last() -> None:
            self._routing.over(sequence)
            if turn + 1 == TURNS:
                finished(number)
                return
            think_s = self._rng.expovariate(1 / self._trace.think_s)
            self._clock.after(
                think_s, lambda: self._turn(number, turn + 1, prompt + answer, finished)
            )

        self._nodes[sequence.node].take(prompt, answer, first, last)

    def _tokens(self, least: int, most: int | None = None) -> list[int]:
        return self._rng.choices(range(50_000), k=self._rng.randint(least, most or least))


@pytest.mark.parametrize("trace", [Trace(24, 2.0, 1), Trace(32, 0.2, 1)], ids=["calm", "busy"])
def test_conversations_stay_where_their_prefixes_are(trace: Trace) -> None:
    results = {name: Replay(name, trace).run() for name in POLICIES}
    shares = {name: round(result.share, 3) for name, result in results.items()}
    p99_s = {name: round(result.p99_s, 2) for name, result in results.items()}
    print(f"{trace}: of what an endless cache serves {shares}, p99 TTFT in s {p99_s}")
    assert shares["ttft"] >= 0.95
    assert shares["ttft"] > shares["round_robin"] + 0.3
    assert p99_s["ttft"] < p99_s["round_robin"]


def test_a_known_session_is_as_good_as_a_known_prefix() -> None:
    assert Replay("session", Trace(24, 2.0, 1)).run().share >= 0.95
