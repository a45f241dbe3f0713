"""Which node a sequence goes to: the policy, and all that it is told."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import NamedTuple

from mlxfleet.common.config import Routing as RoutingName
from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.common.messages import KvEvents, KvSnapshot, NodeStatus
from mlxfleet.router.cache_feed import CacheFeed
from mlxfleet.router.cache_index import CacheIndex
from mlxfleet.router.loads import Loads
from mlxfleet.router.policies.base import Candidate, Policy, Prompt
from mlxfleet.router.policies.least_loaded import LeastLoaded
from mlxfleet.router.policies.power_of_two import PowerOfTwo
from mlxfleet.router.policies.round_robin import RoundRobin
from mlxfleet.router.policies.session import Session
from mlxfleet.router.policies.ttft import Ttft
from mlxfleet.router.sequences import Sequence
from mlxfleet.router.weights import Weights

# A sequence's blocks count for so long after its end, until its node has told of them.
LINGER_S = 1.0
MAX_LINGERING = 1024


class Promise(NamedTuple):
    """Blocks that a node will have because it computes a prompt."""

    node: str
    blocks: list[int]


class Routing:
    """Chooses nodes, and follows what is sent to them. `now` is a clock in seconds."""

    def __init__(
        self,
        policy: RoutingName,
        *,
        max_index_blocks: int,
        node_weights: bool = True,
        rng: random.Random | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = make_policy(policy, rng or random.Random())
        self._now = now
        self.policy_name = policy
        self.index = CacheIndex(max_index_blocks)
        self.feed = CacheFeed(self.index)
        self.loads = Loads()
        self.weights = Weights(wanted=node_weights)
        # Nodes whose model's prefixes can be reused.
        self._reusing: set[str] = set()
        self._promises: dict[str, Promise] = {}
        self._lingering: deque[tuple[float, Promise]] = deque()

    # --- decisions ----------------------------------------------------------------------------

    def choose(self, sequence: Sequence, nodes: Many[NodeStatus]) -> str:
        """The node for a sequence, out of those that can take it; at least one."""
        now = self._now()
        self._let_go(now)
        tokens = len(sequence.prompt_ids) + len(sequence.output_ids)
        matched = self.index.matched_blocks(sequence.block_hashes)
        weights = self.weights.among(status.name for status in nodes)
        candidates = [
            self.loads.candidate(
                status,
                cached_tokens(tokens, matched.get(status.name, 0)),
                tokens,
                now,
                weights[status.name],
            )
            for status in nodes
        ]
        left = sequence.sampling.max_tokens - len(sequence.output_ids)
        prompt = Prompt(tokens, left, sequence.session)
        return self._policy.pick(prompt, with_room(candidates))

    def cached_on(self, node: str, sequence: Sequence) -> int:
        """How many tokens of a sequence a node need not compute, by what is known of its cache."""
        tokens = len(sequence.prompt_ids) + len(sequence.output_ids)
        matched = self.index.matched_blocks(sequence.block_hashes)
        return cached_tokens(tokens, matched.get(node, 0))

    def sent(self, sequence: Sequence) -> int:
        """A sequence was sent to its node; how many tokens that has to compute of it, by what is
        known of its cache."""
        node, blocks = sequence.node, sequence.block_hashes
        self._withdraw(sequence.rid)
        tokens = len(sequence.prompt_ids) + len(sequence.output_ids)
        cached = self.cached_on(node, sequence)
        self.loads.sent(node, sequence.rid, tokens - cached, self._now())
        self.index.use(node, blocks)
        if node in self._reusing:
            self.index.promise(node, blocks)
            self._promises[sequence.rid] = Promise(node, blocks)
        return tokens - cached

    def answered(self, sequence: Sequence) -> None:
        """A sequence's first token is here."""
        self.loads.answered(sequence.rid)

    def over(self, sequence: Sequence) -> None:
        """A sequence has left its node."""
        self.loads.over(sequence.rid)
        if not sequence.output_ids:
            self._withdraw(sequence.rid)
        elif (promise := self._promises.pop(sequence.rid, None)) is not None:
            self._lingering.append((self._now(), promise))
            self._let_go(self._now())

    # --- what nodes say -----------------------------------------------------------------------

    def on_status(self, status: NodeStatus, *, fresh: bool) -> bool:
        """A node's report; whether to ask it for a snapshot of its cache."""
        now = self._now()
        if fresh:
            self.feed.forget(status.name)
        self.loads.report(status, now, fresh=fresh)
        self.weights.report(status, now)
        if status.model is not None and status.model.cold_blocks:
            self._reusing.add(status.name)
        else:
            self._reusing.discard(status.name)
        return self.feed.on_status(status, now)

    def on_cache(self, node: str, message: KvEvents | KvSnapshot) -> bool:
        """News of a node's cache; whether to ask it for a snapshot."""
        match message:
            case KvEvents():
                return self.feed.on_events(node, message, self._now())
            case KvSnapshot():
                return self.feed.on_snapshot(node, message, self._now())

    def keep(self, alive: set[str]) -> None:
        """Forget every other node."""
        self.feed.keep(alive)
        self.loads.keep(alive)
        self.weights.keep(alive)
        self._reusing &= alive

    # --- promises -----------------------------------------------------------------------------

    def _withdraw(self, rid: str) -> None:
        if (promise := self._promises.pop(rid, None)) is not None:
            self.index.withdraw(*promise)

    def _let_go(self, now: float) -> None:
        while self._lingering and (
            now - self._lingering[0][0] > LINGER_S or len(self._lingering) > MAX_LINGERING
        ):
            self.index.withdraw(*self._lingering.popleft()[1])


def make_policy(name: RoutingName, rng: random.Random) -> Policy:
    """The policy of a name."""
    match name:
        case "ttft":
            return Ttft(rng)
        case "round_robin":
            return RoundRobin()
        case "least_loaded":
            return LeastLoaded(rng)
        case "power_of_two":
            return PowerOfTwo(rng)
        case "session":
            return Session(Ttft(rng))


def cached_tokens(tokens: int, blocks: int) -> int:
    """How many tokens need not be computed: a sequence's last one always is."""
    return max(min(blocks * BLOCK_TOKENS, tokens - 1), 0)


def with_room(candidates: list[Candidate]) -> list[Candidate]:
    """Those whose queues are not full; all if there is none."""
    return [node for node in candidates if node.sequences < node.room] or candidates
