"""`mlxfleet bench compare`."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence

import uvloop
from rich.console import Console

from mlxfleet.bench.compare.gate import Gate, Outcome
from mlxfleet.bench.compare.intervals import least_blocks
from mlxfleet.bench.compare.options import CompareOptions
from mlxfleet.bench.compare.run import Found, compare_sides
from mlxfleet.bench.compare.sides import Side, parse_sides, sharing
from mlxfleet.bench.compare.tables import sides_table, verdict_table
from mlxfleet.bench.records import Verdict
from mlxfleet.bench.serve_options import (
    ArrivalOptions,
    DataOptions,
    Options,
    ReportOptions,
    TargetOptions,
)
from mlxfleet.common.errors import ExitCode

FILE_WIDTH = 120
STATUS = {
    Outcome.PASSED: ExitCode.OK,
    Outcome.UNDECIDED: ExitCode.GATE_UNDECIDED,
    Outcome.FAILED: ExitCode.GATE_FAILED,
}
"""From the best to the worst."""


def compare_command(
    *sides: str,
    compare: CompareOptions = CompareOptions(),  # noqa: B008 - frozen
    target: TargetOptions = TargetOptions(),  # noqa: B008
    arrival: ArrivalOptions = ArrivalOptions(),  # noqa: B008
    data: DataOptions = DataOptions(),  # noqa: B008
    report: ReportOptions = ReportOptions(),  # noqa: B008
) -> None:
    """Measure servers in turns, so that drift of the machine hits all alike, and say whether one
    is faster.

    Parameters
    ----------
    sides
        Two or more servers, each the URL of one that runs, as http://HOST:PORT, or a command that
        starts one, as a quoted string with {port} where it takes its port. The others are compared
        with the first. The same URL twice compares a server with itself.
    """
    parsed = parse_sides(sides)
    options = compare.checked(len(parsed), arrival)
    load = Options(url=parsed[0].url, target=target, arrival=arrival, data=data, report=report)
    load = load.checked()
    found, status = Found(), ExitCode.OK
    try:
        uvloop.run(compared(parsed, load, options, found))
    except (asyncio.CancelledError, KeyboardInterrupt):
        status = ExitCode.FORCED
    finally:
        show(parsed, options, found)
    gate = options.parsed_gate()
    if gate is not None and status is ExitCode.OK:
        status = decide(gate, [v for v in found.verdicts if v.figure == options.figures()[0].path])
    sys.exit(status)


async def compared(
    sides: Sequence[Side], load: Options, options: CompareOptions, found: Found
) -> None:
    """Compare; SIGINT and SIGTERM stop servers and write what there is. CancelledError then."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is not None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
    await compare_sides(sides, load, options, Console(stderr=True), found)


def show(sides: Sequence[Side], options: CompareOptions, found: Found) -> None:
    """Print what came of it."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    if found.turns:
        console.print(sides_table(sides, found.turns, options.figures()))
    if found.verdicts:
        console.print(verdict_table(found.verdicts))
    missing = options.verdicts(len(sides)) - len(found.verdicts)
    if missing:
        least = least_blocks(options.each_confidence(len(sides)))
        console.print(f"{missing} without a verdict: fewer than {least} whole blocks", markup=False)
    if shared := sharing(sides):
        console.print(
            f"{', '.join(sorted(shared))} are one server, so they got different prompts of the same"
            " lengths' distribution: the same ones would have been cached.",
            highlight=False,
        )


def decide(gate: Gate, verdicts: Sequence[Verdict]) -> ExitCode:
    """The exit status of a gate that all sides have to pass; the worst of them counts."""
    outcomes = [gate.decide(verdict) for verdict in verdicts]
    for verdict, outcome in zip(verdicts, outcomes, strict=True):
        print(f"gate {gate} for {verdict.side}: {outcome.value}")
    return STATUS[max(outcomes, key=list(STATUS).index, default=Outcome.UNDECIDED)]
