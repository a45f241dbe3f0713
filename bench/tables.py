"""A comparison as tables for people."""

from __future__ import annotations

from statistics import median

from rich.table import Table

from mlxfleet.bench.comparison import Comparison, Median
from mlxfleet.bench.records import Distribution

MB = 1e6


def load_table(comparison: Comparison) -> Table:
    """Medians for each server and concurrency."""
    table = Table(
        title="Closed-loop streaming, medians over the rounds; times in ms; others: their CPU"
    )
    table.add_column("server")
    for heading in (
        "c",
        "tokens/s",
        "range",
        "TTFT p50",
        "p99",
        "ITL p50",
        "p99",
        "max",
        "tokens",
        "others",
        "errors",
    ):
        table.add_column(heading, justify="right")
    last = None
    for row in comparison.medians:
        if last is not None and last != row.concurrency:
            table.add_section()
        last = row.concurrency
        table.add_row(*load_cells(row))
    return table


def load_cells(row: Median) -> list[str]:
    """One line of the table of loads."""
    errors = ", ".join(f"{kind} x{count}" for kind, count in row.errors.items()) or "0"
    return [
        row.server,
        str(row.concurrency),
        f"{row.output_tokens_per_s:,.0f}",
        f"{row.lowest_output_tokens_per_s:,.0f}-{row.highest_output_tokens_per_s:,.0f}",
        *times(row.ttft_ms)[:2],
        *times(row.itl_ms),
        f"{row.output_tokens:,}",
        f"{row.other_cpu_share:.0%}",
        errors,
    ]


def times(distribution: Distribution | None) -> list[str]:
    """Median, 99th percentile and maximum, in ms."""
    if distribution is None:
        return ["-"] * 3
    return [f"{ms:,.1f}" for ms in (distribution.p50, distribution.p99, distribution.max)]


def ratio_table(comparison: Comparison) -> Table:
    """Our figures by those of the best peer."""
    table = Table(title="mlxfleet / best peer")
    for heading in ("figure", "c", "ratio", "better is", "best peer"):
        table.add_column(heading, justify="right" if heading in ("c", "ratio") else "left")
    for row in comparison.ratios:
        better = "higher" if row.higher_is_better else "lower"
        concurrency, ratio = str(row.concurrency), f"{row.ratio:.2f}"
        table.add_row(row.figure, concurrency, ratio, better, row.best_peer)
    return table


def start_table(comparison: Comparison) -> Table:
    """How long each server takes to start, and what its processes hold after the last load."""
    table = Table(title="Start and resident memory after the last load")
    table.add_column("server")
    table.add_column("ready, s", justify="right")
    table.add_column("MB", justify="right")
    table.add_column("processes, MB")
    for server in dict.fromkeys(start.server for start in comparison.starts):
        ready = [
            start.ready_s
            for start in comparison.starts
            if start.server == server and start.ready_s is not None
        ]
        last = [m.processes for m in comparison.measurements if m.server == server][-1:]
        uses = last[0] if last else []
        table.add_row(
            server,
            f"{median(ready):.1f}" if ready else "-",
            f"{sum(use.rss_bytes for use in uses) / MB:,.0f}",
            ", ".join(f"{use.name} {use.rss_bytes / MB:,.0f}" for use in uses),
        )
    return table
