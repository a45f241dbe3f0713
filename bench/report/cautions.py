"""What a reader has to know before believing a figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from mlxfleet.bench.records import Summary
from mlxfleet.bench.report.groups import load_of, side_of
from mlxfleet.bench.report.loaded import Loaded, LoadedRun
from mlxfleet.common.messages import Telemetry

# Other processes that take more than this share of the cores disturb a measurement.
BUSY_SHARE = 0.1


def cautions(loaded: Loaded) -> list[str]:
    """Sentences, the gravest first."""
    return [
        *saturated(loaded),
        *(
            f"{path.name} was cut off while it was written; what is whole is shown."
            for path in loaded.incomplete
        ),
        *(
            f"{name_of(one)} was cut short and has no summary; it is only in the timeline."
            for one in loaded.runs
            if one.summary is None
        ),
        *(
            f"{start.side} did not serve in round {start.round}: {start.error}"
            for start in loaded.starts
            if start.error
        ),
        *failures(loaded),
        *remarks(loaded),
        *sensors(loaded),
        *busy(loaded),
        *counted(loaded),
    ]


def name_of(one: LoadedRun) -> str:
    """A run in a sentence."""
    round_words = f", round {one.run.round}" if one.run.round else ""
    return f"{side_of(one.run)} ({load_of(one.run.arrival).words}{round_words})"


def saturated(loaded: Loaded) -> list[str]:
    """Sides in whose runs the figures may be the client's."""
    runs: dict[str, list[tuple[LoadedRun, Summary]]] = {}
    for one, summary in loaded.finished:
        runs.setdefault(side_of(one.run), []).append((one, summary))
    found = []
    for side, of_side in runs.items():
        late = [(one, summary) for one, summary in of_side if summary.client.saturated]
        if late:
            one, summary = late[0]
            found.append(
                f"The client was saturated in {len(late)} of {len(of_side)} runs of {side}; in that"
                f" of {name_of(one)}, {summary.client.why}."
                " What was measured there may be its own slowness."
            )
    return found


def failures(loaded: Loaded) -> list[str]:
    """Sides with failed requests, with the first message of each kind."""
    counts: dict[str, Counter[str]] = {}
    requests: Counter[str] = Counter()
    messages: dict[tuple[str, str], str] = {}
    for one, summary in loaded.finished:
        side = side_of(one.run)
        requests[side] += summary.requests
        counts.setdefault(side, Counter()).update(summary.errors)
        for request in one.requests:
            if (error := request.error) is not None:
                messages.setdefault((side, error.kind), f" ({error.message})")
    return [
        f"{side}: of {requests[side]:,} requests failed "
        + ", ".join(f"{n} with {kind}{messages.get((side, kind), '')}" for kind, n in kinds.items())
        + "."
        for side, kinds in counts.items()
        if kinds
    ]


def remarks(loaded: Loaded) -> list[str]:
    """What comparisons say of turns that count."""
    return [
        f"{one.side}, round {one.number}: {remark}."
        for found in loaded.comparisons
        for one in found.rounds
        for remark in one.remarks
        if not one.thrown_out
    ]


def sensors(loaded: Loaded) -> list[str]:
    """Runs that count although memory pressure or the thermal state rose in them."""
    thrown_out = loaded.thrown_out()
    watched: dict[str, Callable[[Telemetry], int | None]] = {
        "memory pressure": lambda telemetry: telemetry.memory_pressure,
        "the thermal state": lambda telemetry: telemetry.thermal_state,
    }
    found = []
    for one in loaded.runs:
        for name, reading in watched.items():
            levels = [level for s in one.samples if (level := reading(s.telemetry)) is not None]
            if levels and max(levels) > levels[0] and one.run.id not in thrown_out:
                found.append(
                    f"During {name_of(one)} {name} rose from {levels[0]} to {max(levels)}."
                )
    return found


def busy(loaded: Loaded) -> list[str]:
    """Whether other processes took the cores."""
    uses = [(one.use.other_cpu_share, name_of(one)) for one in loaded.runs if one.use is not None]
    disturbed = [share for share, _ in uses if share > BUSY_SHARE]
    if not disturbed:
        return []
    worst, name = max(uses)
    return [
        f"Other processes took more than {BUSY_SHARE:.0%} of the cores in {len(disturbed)} of"
        f" {len(uses)} runs, {worst:.0%} in that of {name}."
    ]


def counted(loaded: Loaded) -> list[str]:
    """Runs whose tokens are guessed."""
    by = Counter(side_of(one.run) for one, s in loaded.finished if s.tokens_counted_by == "chunks")
    return [
        f"{side} does not report how many tokens it generated: chunks with text are counted, of"
        " which each may hold several tokens."
        for side in by
    ]
