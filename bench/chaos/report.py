"""What is printed in the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from mlxfleet.bench.chaos.campaign import Result
from mlxfleet.bench.chaos.compare import KINDS, Finding
from mlxfleet.bench.chaos.faults import NOTICED_WITHIN_S, Journal

MOST_SHOWN = 50
SHOWN_CHARACTERS = 900


def show(results: Sequence[Result], console: Console) -> int:
    """Print everything; the number of findings."""
    for result in results:
        show_faults(result, console)
        tally = result.load.tally
        attempts = ", ".join(f"{count} {end}" for end, count in sorted(tally.attempts.items()))
        requests = f"{result.subject}: {tally.requests} requests ({attempts})"
        say(console, f"{requests}: {summary(result.findings)}; {tally.ties} parted at a tie")
    findings = [(result.subject, finding) for result in results for finding in result.findings]
    for subject, finding in findings[:MOST_SHOWN]:
        say(console, f"{subject}: {finding.kind}: {finding.what[:SHOWN_CHARACTERS]}")
    if len(findings) > MOST_SHOWN:
        say(console, f"... and {len(findings) - MOST_SHOWN} more")
    return len(findings)


def show_faults(result: Result, console: Console) -> None:
    """A table of the faults that were made."""
    table = Table(title=f"Faults: {result.subject}")
    for heading in ("fault", "made", "noticed: median, s", "worst, s", "findings"):
        table.add_column(heading, justify="left" if heading == "fault" else "right")
    journal, found = result.journal, by_kind(result.load.tally.findings_by_faults)
    for kind, count in sorted(journal.counts.items()):
        table.add_row(kind, str(count), *noticed(journal, kind), str(found[kind]))
    console.print(table)


def by_kind(found: Counter[str]) -> Counter[str]:
    """Findings by single faults; those during a pair count for both."""
    counts: Counter[str] = Counter()
    for kinds, count in found.items():
        for kind in set(kinds.split(" + ")):
            counts[kind] += count
    return counts


def noticed(journal: Journal, kind: str) -> tuple[str, str]:
    """How fast a kind of fault was seen in /fleet: the median, and the worst with its limit."""
    times = sorted(journal.noticed[kind])
    if not times:
        return "", ""
    words = kind.split()
    limit_s = NOTICED_WITHIN_S.get(kind) or NOTICED_WITHIN_S[words[0]]
    return f"{times[len(times) // 2]:.2f}", f"{times[-1]:.2f} of {limit_s:.0f}"


def say(console: Console, text: str) -> None:
    """A line as it is, however long."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def summary(findings: Sequence[Finding]) -> str:
    """Findings by kind."""
    counts = Counter(finding.kind for finding in findings)
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
