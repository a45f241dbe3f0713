"""Side-by-side measurements, their medians over the rounds, and ratios to the best peer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from msgspec import Struct

from mlxfleet.bench.machine import Machine
from mlxfleet.bench.processes import ProcessUse
from mlxfleet.bench.records import Distribution, Request, Summary


class Start(Struct, kw_only=True):
    """One life of a server."""

    server: str
    round: int
    command: list[str]
    log: str
    ready_s: float | None = None
    """From the start of the process to the end of its first answer."""
    versions: dict[str, str] = {}
    exit_status: int | None = None
    was_killed: bool = False
    error: str | None = None


class Measurement(Struct, kw_only=True):
    """One load on one server."""

    server: str
    round: int
    concurrency: int
    summary: Summary
    processes: list[ProcessUse]
    """The server's, right after the load; they shared the cores with the client."""
    served_cpu_s: float
    """CPU time of the server and the client during the load."""
    other_cpu_s: float
    """CPU time of all other processes of the machine during the load."""
    other_cpu_share: float
    """The same as a share of all that the cores had to give."""
    failures: list[str]
    """Texts of failed requests, each once."""
    requests: list[Request] | None = None


class Median(Struct, kw_only=True):
    """A server at one concurrency: medians over the rounds, each field for itself."""

    server: str
    concurrency: int
    rounds: int
    output_tokens: int
    output_tokens_per_s: float
    lowest_output_tokens_per_s: float
    highest_output_tokens_per_s: float
    requests_per_s: float
    ttft_ms: Distribution | None
    itl_ms: Distribution | None
    tpot_ms: Distribution | None
    rss_bytes: int
    other_cpu_share: float
    """How busy other processes kept the cores."""
    errors: dict[str, int]
    """Of all rounds together."""


class Ratio(Struct, kw_only=True):
    """Our median by that of the peer that is best in this figure."""

    figure: str
    higher_is_better: bool
    concurrency: int
    ours: float
    best_peer: str
    best: float
    ratio: float


class Comparison(Struct, kw_only=True):
    """Everything that a run leaves behind."""

    began: str
    """UTC, ISO 8601."""
    command_line: list[str]
    options: dict[str, Any]
    machine: Machine
    versions: dict[str, str]
    """Of the Python that ran mlxfleet and the client."""
    peers_script_sha256: str
    shares_the_cores: list[str]
    starts: list[Start]
    measurements: list[Measurement]
    medians: list[Median]
    ratios: list[Ratio]


FIGURES: list[tuple[str, bool, Callable[[Median], float | None]]] = [
    ("output tokens/s", True, lambda m: m.output_tokens_per_s),
    ("TTFT p50", False, lambda m: m.ttft_ms.p50 if m.ttft_ms else None),
    ("TTFT p99", False, lambda m: m.ttft_ms.p99 if m.ttft_ms else None),
    ("ITL p50", False, lambda m: m.itl_ms.p50 if m.itl_ms else None),
    ("ITL p99", False, lambda m: m.itl_ms.p99 if m.itl_ms else None),
]
"""What is compared: name, whether higher is better, and where it stands."""


def medians(measurements: Sequence[Measurement]) -> list[Median]:
    """One row for each server and concurrency, in the order of appearance by concurrency."""
    keys = dict.fromkeys((m.concurrency, m.server) for m in measurements)
    order = list(dict.fromkeys(m.server for m in measurements if m.round == measurements[0].round))
    rank = {server: position for position, server in enumerate(order)}
    return [
        median_of([m for m in measurements if (m.concurrency, m.server) == key])
        for key in sorted(keys, key=lambda key: (key[0], rank.get(key[1], len(rank))))
    ]


def median_of(runs: Sequence[Measurement]) -> Median:
    """Medians of the same load on the same server."""
    summaries = [run.summary for run in runs]
    rates = [summary.output_tokens_per_s for summary in summaries]
    errors: Counter[str] = Counter()
    for summary in summaries:
        errors.update(summary.errors)
    return Median(
        server=runs[0].server,
        concurrency=runs[0].concurrency,
        rounds=len(runs),
        output_tokens=int(median(summary.output_tokens for summary in summaries)),
        output_tokens_per_s=median(rates),
        lowest_output_tokens_per_s=min(rates),
        highest_output_tokens_per_s=max(rates),
        requests_per_s=median(summary.requests_per_s for summary in summaries),
        ttft_ms=median_distribution([summary.ttft_ms for summary in summaries]),
        itl_ms=median_distribution([summary.itl_ms for summary in summaries]),
        tpot_ms=median_distribution([summary.tpot_ms for summary in summaries]),
        rss_bytes=int(median(sum(use.rss_bytes for use in run.processes) for run in runs)),
        other_cpu_share=median(run.other_cpu_share for run in runs),
        errors=dict(errors),
    )


def median_distribution(found: Sequence[Distribution | None]) -> Distribution | None:
    """Field by field; None if no run has any."""
    known = [distribution for distribution in found if distribution is not None]
    if not known:
        return None
    fields = Distribution.__struct_fields__
    return Distribution(**{name: median(getattr(d, name) for d in known) for name in fields})


def ratios(rows: Sequence[Median], ours: str) -> list[Ratio]:
    """`ours` against the best of the others, for each concurrency and figure."""
    found = []
    for row in rows:
        others = [r for r in rows if r.concurrency == row.concurrency and r.server != ours]
        for name, higher_is_better, figure in FIGURES if row.server == ours else []:
            known = [(value, r.server) for r in others if (value := figure(r))]
            own = figure(row)
            if not known or own is None:
                continue
            best, server = max(known) if higher_is_better else min(known)
            found.append(
                Ratio(
                    figure=name,
                    higher_is_better=higher_is_better,
                    concurrency=row.concurrency,
                    ours=own,
                    best_peer=server,
                    best=best,
                    ratio=own / best,
                )
            )
    return found
