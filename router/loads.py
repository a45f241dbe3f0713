"""How much each node has to do: what it has reported, and what it was sent since.

A request counts as sent until a report covers it, its first token comes, or it is over: so a burst
between two reports is seen at once, and nothing is counted for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.common.messages import NodeStatus
from mlxfleet.router.policies.base import Candidate

# Reports come four times a second; one that does not cover a request by then never saw it.
LOST_AFTER_S = 2.0
# No machine computes prompts faster; whoever claims that gets no more for it.
FASTEST_TOKENS_PER_S = 1e6


@dataclass
class Sent:
    """A request that no report covers: the `number`th to its node, with so many prompt tokens to
    be computed."""

    number: int
    tokens: int
    at_s: float


@dataclass
class Load:
    """One node, which last reported at `at_s`. `lost` of the messages that were sent have never
    been received."""

    at_s: float
    sent: int
    lost: int = 0
    pending: dict[str, Sent] = field(default_factory=dict)
    pending_tokens: int = 0


class Loads:
    """The load of every node. `now` is time.monotonic()."""

    def __init__(self) -> None:
        self._loads: dict[str, Load] = {}
        self._nodes: dict[str, str] = {}

    def report(self, status: NodeStatus, now: float, *, fresh: bool) -> None:
        """Take in a report; `fresh` is a node's first since it started."""
        load = self._loads.get(status.name)
        if load is None or fresh:
            if load is not None:
                self.forget(status.name)
            self._loads[status.name] = Load(now, status.received)
            return
        load.at_s = now
        for rid, sent in list(load.pending.items()):
            if sent.number > status.received + load.lost:
                if now - sent.at_s <= LOST_AFTER_S:
                    break
                load.lost = sent.number - status.received
            self.over(rid)

    def forget(self, node: str) -> None:
        """A node is gone."""
        load = self._loads.pop(node, None)
        for rid in load.pending if load is not None else ():
            del self._nodes[rid]

    def keep(self, alive: set[str]) -> None:
        """Forget every node that is not among these."""
        for node in self._loads.keys() - alive:
            self.forget(node)

    def sent(self, node: str, rid: str, tokens: int, now: float) -> None:
        """A request was sent to a node, with so many prompt tokens that are not cached there."""
        self.over(rid)
        load = self._loads.get(node)
        if load is not None:
            load.sent += 1
            load.pending[rid] = Sent(load.sent, tokens, now)
            load.pending_tokens += tokens
            self._nodes[rid] = node

    def answered(self, rid: str) -> None:
        """A request's first token is here: its prompt is computed."""
        node = self._nodes.get(rid)
        if node is not None:
            load = self._loads[node]
            load.pending_tokens -= load.pending[rid].tokens
            load.pending[rid].tokens = 0

    def over(self, rid: str) -> None:
        """A request is covered by a report, refused, or at its end."""
        node = self._nodes.pop(rid, None)
        if node is not None:
            load = self._loads[node]
            load.pending_tokens -= load.pending.pop(rid).tokens

    def pending(self, node: str) -> int:
        """How many requests a node was sent that no report covers."""
        load = self._loads.get(node)
        return len(load.pending) if load is not None else 0

    def candidate(
        self,
        status: NodeStatus,
        cached_tokens: int,
        prompt_tokens: int,
        now: float,
        weight: float = 1.0,
    ) -> Candidate:
        """A node as a policy sees it, for a prompt of which so many tokens are cached there."""
        load = self._loads.get(status.name)
        pending = len(load.pending) if load is not None else 0
        sent_tokens = load.pending_tokens if load is not None else 0
        since_s = now - load.at_s if load is not None else 0.0
        reported = status.queued_prefill_tokens + status.running_prefill_tokens
        rate = min(status.prefill_tokens_per_s, FASTEST_TOKENS_PER_S)
        done = int(since_s * rate)
        model = status.model
        used = status.cold_blocks_used + sent_tokens // BLOCK_TOKENS
        kv_full = model is not None and (
            status.kv_used_bytes + model.kv_bytes(prompt_tokens) > model.kv_budget_bytes
        )
        return Candidate(
            name=status.name,
            cached_tokens=cached_tokens,
            sequences=status.running + status.queued + pending,
            queued=status.queued,
            slots=status.max_running,
            room=status.max_running + status.max_queue,
            waiting_tokens=max(reported - done, 0) + sent_tokens,
            prefill_tokens_per_s=rate,
            decode_step_s=status.decode_step_s + pending * status.decode_row_s,
            sequence_s=status.sequence_s,
            kv_full=kv_full,
            cache_blocks=model.cold_blocks if model is not None else 0,
            free_blocks=max(model.cold_blocks - used, 0) if model is not None else 0,
            cache_age_s=status.cold_age_s,
            weight=weight,
            slowdown=status.slowdown,
        )
