"""A comparison from begin to end: prepared, run, judged and written down."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from mlxfleet.bench.compare.arena import Arena
from mlxfleet.bench.compare.options import CompareOptions
from mlxfleet.bench.compare.order import plan_rounds
from mlxfleet.bench.compare.progress import Shown
from mlxfleet.bench.compare.rounds import Rounds
from mlxfleet.bench.compare.seeds import Seeds
from mlxfleet.bench.compare.sides import Side, sharing
from mlxfleet.bench.compare.verdict import Turn, judge
from mlxfleet.bench.git_state import git_state
from mlxfleet.bench.machine import command_line, describe_machine
from mlxfleet.bench.recorder import Recorder
from mlxfleet.bench.records import Comparison, Round, Verdict
from mlxfleet.bench.run_record import plain
from mlxfleet.bench.serve import Bench
from mlxfleet.bench.serve_options import Options


@dataclass
class Found:
    """What came of it, filled while it runs."""

    turns: list[Turn] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)


async def compare_sides(
    sides: Sequence[Side], load: Options, options: CompareOptions, console: Console, found: Found
) -> None:
    """All rounds and the verdicts, which `found` has even if this is cancelled or fails, as far as
    there are enough blocks for them."""
    logs = options.logs or Path(tempfile.mkdtemp(prefix="mlxfleet-compare-"))
    logs.mkdir(parents=True, exist_ok=True)
    console.print(f"the servers' output is in {logs}", highlight=False)
    names = [side.name for side in sides]
    plan = plan_rounds(names, options.blocks, random.Random(f"{load.data.seed}/order"))
    with Recorder(load.report.out) as recorder, Shown(len(plan) * len(sides), console) as shown:
        recorder.write(comparison_record(sides, load, options))

        def on_round(record: Round) -> None:
            recorder.write(record)
            recorder.flush()
            shown.round(record)

        benches = {
            side.name: Bench(replace(load, url=side.url), recorder, console) for side in sides
        }
        arena = Arena(sides, benches, load, options, logs)
        rounds = Rounds(
            arena,
            plan,
            options.figures()[0],
            options.pace(),
            Seeds(load.data.seed, sharing(sides)).of,
            on_round,
            shown.step,
        )
        try:
            async with arena:
                await rounds.run()
        finally:
            found.turns = rounds.turns
            found.verdicts = verdicts(names, rounds.turns, options)
            for verdict in found.verdicts:
                recorder.write(verdict)


def verdicts(names: Sequence[str], turns: Sequence[Turn], options: CompareOptions) -> list[Verdict]:
    """On each side but the first, for each figure."""
    first, *others = names
    confidence = options.each_confidence(len(names))
    found = [
        judge(turns, side, first, figure, confidence)
        for side in others
        for figure in options.figures()
    ]
    return [verdict for verdict in found if verdict is not None]


def comparison_record(sides: Sequence[Side], load: Options, options: CompareOptions) -> Comparison:
    """What is compared, as it is written down."""
    figure = options.figures()[0]
    return Comparison(
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        command_line=command_line(),
        sides={side.name: side.given for side in sides},
        figure=figure.path,
        higher_is_better=figure.higher_is_better,
        options=plain(asdict(options)),
        machine=describe_machine(),
        git=git_state(),
    )
