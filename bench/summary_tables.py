"""A run's summary for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mlxfleet.bench.records import Distribution, Request, Summary

FILE_WIDTH = 120
MOST_MESSAGES = 5

TIMES = {
    "TTFT": "ttft_ms",
    "TPOT": "tpot_ms",
    "ITL": "itl_ms",
    "end to end": "e2e_ms",
}


def times_table(summary: Summary) -> Table:
    """Distributions of times."""
    table = Table("ms", title="Times")
    for heading in Distribution.__struct_fields__:
        table.add_column(heading, justify="right")
    for name, field in TIMES.items():
        found: Distribution | None = getattr(summary, field)
        if found is None:
            continue
        values = (getattr(found, heading) for heading in Distribution.__struct_fields__)
        table.add_row(name, *(f"{value:,.2f}" for value in values))
    return table


def figures_table(title: str, summary: Summary) -> Table:
    """Everything else."""
    table = Table(title=title, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, value in figures(summary):
        table.add_row(name, value)
    return table


def figures(summary: Summary) -> list[tuple[str, str]]:
    """Names and values; those that are not known are left out."""
    rows = [
        ("requests", f"{summary.requests:,}, of which {summary.completed:,} completed"),
        ("duration", f"{summary.duration_s:.2f} s"),
        ("requests/s", f"{summary.requests_per_s:,.2f}"),
        ("input tokens/s", f"{summary.input_tokens_per_s:,.1f} ({summary.input_tokens:,} in all)"),
        ("output tokens/s", f"{summary.output_tokens_per_s:,.1f} ({summary.output_tokens:,})"),
    ]
    if summary.cached_tokens_per_s is not None:
        cached = f"{summary.cached_tokens_per_s:,.1f} ({summary.cached_tokens:,})"
        rows.append(("cached tokens/s", cached))
    rows.append(("tokens counted by", summary.tokens_counted_by))
    if summary.longest_gap_ms is not None:
        rows.append(("longest gap of a stream", f"{summary.longest_gap_ms:,.1f} ms"))
    if summary.goodput_per_s is not None and summary.within_slos is not None:
        kept = f"{summary.goodput_per_s:,.2f} requests/s, {summary.within_slos:.1%} of all"
        rows.append(("goodput", kept))
    if summary.fairness is not None:
        rows.append(("fairness (Jain)", f"{summary.fairness:.3f}"))
    rows.append(("finish reasons", counts(summary.finish_reasons)))
    rows.append(("errors", counts(summary.errors)))
    client = summary.client
    rows.append(
        (
            "this client",
            f"{client.cpu_share:.0%} of a core, loop late {client.event_lag_p99_ms:.1f} ms,"
            f" sends late {client.late_sends_p99_ms:.1f} ms (p99)",
        )
    )
    return rows


def counts(found: dict[str, int]) -> str:
    """Names and how often each was."""
    return ", ".join(f"{name} x{count:,}" for name, count in found.items()) or "none"


def warnings(summary: Summary) -> list[str]:
    """What speaks against the figures, most important first."""
    found = []
    if summary.client.saturated:
        found.append(
            f"The client may have been the bottleneck: {summary.client.why}. The server may be"
            f" better than these figures."
        )
    if summary.completed < summary.requests:
        failed = summary.requests - summary.completed
        found.append(f"{failed:,} of {summary.requests:,} requests failed.")
    if summary.tokens_counted_by == "chunks":
        found.append("The server does not count tokens, so chunks with text are counted.")
    return found


def length_warnings(requests: Sequence[Request]) -> list[str]:
    """Whether the server counts other prompt lengths than were made."""
    pairs = [(r.planned_input_tokens, r.input_tokens) for r in requests]
    known = [(planned, told) for planned, told in pairs if None not in (planned, told)]
    wrong = [(planned, told) for planned, told in known if planned != told]
    if not wrong:
        return []
    planned, told = wrong[0]
    return [
        f"The server counts other lengths of {len(wrong):,} of {len(known):,} prompts, the first"
        f" {told} tokens instead of {planned}: is --tokenizer that of its model?"
    ]


def print_report(title: str, summary: Summary, requests: Sequence[Request]) -> None:
    """Warnings first."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    for warning in [*warnings(summary), *length_warnings(requests)]:
        console.print(f"WARNING: {warning}", style="bold yellow", markup=False, highlight=False)
    console.print(figures_table(title, summary))
    console.print(times_table(summary))
    messages = {r.error.message for r in requests if r.error is not None}
    for message in sorted(messages)[:MOST_MESSAGES]:
        console.print(f"error: {message}", style="red", markup=False, highlight=False)
