"""What happened in the last minutes: rates and short histories, for who looks at the fleet.

Prometheus remembers more and for longer; this is what a page can show at once without it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from operator import lt
from typing import NamedTuple

from msgspec import Struct
from prometheus_client import Counter, Histogram

from mlxfleet.router.metrics import Metrics
from mlxfleet.router.nodes import Nodes

SAMPLE_S = 2.0
# Samples of a history; three minutes.
KEPT = 90
RATE_SAMPLES = 3
# Samples over which shares and means are taken; a minute.
SHARE_SAMPLES = 30
FAILED = ("error", "backpressure")


class FleetCounts(NamedTuple):
    """Counts since the router's start; `first_tokens` came after `ttft_s` seconds in all."""

    requests: float
    failed: float
    tokens: float
    first_tokens: float
    ttft_s: float


class NodeCounts(NamedTuple):
    """A node's present rate, and its counts since its start."""

    tokens_per_s: float
    cached_tokens: int
    prefilled_tokens: int


class History(Struct, frozen=True):
    """One value each `sample_s`, the last one now."""

    requests_per_s: list[float]
    tokens_per_s: list[float]
    sample_s: float = SAMPLE_S


class RecentFleet(Struct, frozen=True, kw_only=True):
    """The fleet lately; None where nothing happened that could be measured. `failed` requests were
    refused for lack of room or ended with an error, as far back as the history goes."""

    requests_per_s: float
    tokens_per_s: float
    ttft_s: float | None
    cache_hit_share: float | None
    failed: int
    history: History


class RecentNode(Struct, frozen=True, kw_only=True):
    """A node lately: the share of prompt tokens that came out of its cache, and its tokens/s each
    `SAMPLE_S`, the last one now."""

    cache_hit_share: float | None
    tokens_per_s: list[float]


class Prompts(NamedTuple):
    """Prompt tokens over some time."""

    cached: int
    prefilled: int


class NodeTrack:
    """One node's samples."""

    def __init__(self) -> None:
        self.tokens_per_s: deque[float] = deque(maxlen=KEPT)
        self._prompts: deque[Prompts] = deque(maxlen=SHARE_SAMPLES + 1)

    def add(self, counts: NodeCounts) -> None:
        """Take in a sample."""
        self.tokens_per_s.append(round(counts.tokens_per_s, 1))
        prompts = Prompts(counts.cached_tokens, counts.prefilled_tokens)
        if self._prompts and any(map(lt, prompts, self._prompts[-1])):
            self._prompts.clear()  # The node has restarted, and counts from 0.
        self._prompts.append(prompts)

    def prompts(self) -> Prompts:
        """Prompt tokens of the last minute."""
        if not self._prompts:
            return Prompts(0, 0)
        first, last = self._prompts[0], self._prompts[-1]
        return Prompts(last.cached - first.cached, last.prefilled - first.prefilled)


class Recent:
    """Samples of the last minutes, of the fleet and of each node that is known."""

    def __init__(self) -> None:
        self._fleet: deque[FleetCounts] = deque(maxlen=KEPT + 1)
        self._nodes: dict[str, NodeTrack] = {}

    async def follow(self, metrics: Metrics, nodes: Nodes) -> None:
        """Take a sample each SAMPLE_S; runs until it is cancelled."""
        while True:
            self.sample(fleet_counts(metrics), node_counts(nodes))
            await asyncio.sleep(SAMPLE_S)

    def sample(self, fleet: FleetCounts, nodes: Mapping[str, NodeCounts]) -> None:
        """Take in the counts of now; nodes that are not among them are forgotten."""
        self._fleet.append(fleet)
        for name in self._nodes.keys() - nodes.keys():
            del self._nodes[name]
        for name, counts in nodes.items():
            self._nodes.setdefault(name, NodeTrack()).add(counts)

    def fleet(self) -> RecentFleet:
        """The fleet lately."""
        rate, minute, all_of_it = (self._since(n) for n in (RATE_SAMPLES, SHARE_SAMPLES, KEPT))
        rate_s = SAMPLE_S * max(min(RATE_SAMPLES, len(self._fleet) - 1), 1)
        first_tokens = minute.first_tokens
        return RecentFleet(
            requests_per_s=round(rate.requests / rate_s, 2),
            tokens_per_s=round(rate.tokens / rate_s, 1),
            ttft_s=round(minute.ttft_s / first_tokens, 4) if first_tokens else None,
            cache_hit_share=hit_share(track.prompts() for track in self._nodes.values()),
            failed=int(all_of_it.failed),
            history=History(
                requests_per_s=rates(counts.requests for counts in self._fleet),
                tokens_per_s=rates(counts.tokens for counts in self._fleet),
            ),
        )

    def node(self, name: str) -> RecentNode:
        """A node lately."""
        track = self._nodes.get(name) or NodeTrack()
        return RecentNode(
            cache_hit_share=hit_share([track.prompts()]), tokens_per_s=list(track.tokens_per_s)
        )

    def _since(self, samples: int) -> FleetCounts:
        """What was counted in so many samples, or in all there are."""
        if not self._fleet:
            return FleetCounts(0, 0, 0, 0, 0)
        first, last = self._fleet[-min(samples + 1, len(self._fleet))], self._fleet[-1]
        return FleetCounts(*(now - before for now, before in zip(last, first, strict=True)))


def hit_share(prompts: Iterable[Prompts]) -> float | None:
    """The share of prompt tokens that were cached, None without any."""
    counted = list(prompts)
    cached = sum(p.cached for p in counted)
    total = cached + sum(p.prefilled for p in counted)
    return round(cached / total, 4) if total else None


def rates(counts: Iterable[float]) -> list[float]:
    """How much a count grew in each sample, per second."""
    return [round((now - before) / SAMPLE_S, 2) for before, now in pairwise(counts)]


def fleet_counts(metrics: Metrics) -> FleetCounts:
    """The router's counts so far."""
    return FleetCounts(
        requests=summed(metrics.received, "_total"),
        failed=sum(summed(metrics.answered, "_total", outcome=outcome) for outcome in FAILED),
        tokens=summed(metrics.output_tokens, "_total"),
        first_tokens=summed(metrics.ttft, "_count"),
        ttft_s=summed(metrics.ttft, "_sum"),
    )


def node_counts(nodes: Nodes) -> dict[str, NodeCounts]:
    """The counts of every known node."""
    return {
        name: NodeCounts(nodes.tokens_per_s(name), status.cached_tokens, status.prefilled_tokens)
        for name, status in nodes.status.items()
    }


def summed(metric: Counter | Histogram, suffix: str, **labels: str) -> float:
    """The sum of a metric's samples with a suffix and these labels."""
    return sum(
        sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(suffix) and labels.items() <= sample.labels.items()
    )
