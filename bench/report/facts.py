"""With what it was measured: machine, versions, settings, git state."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

from mlxfleet.bench.machine import Machine
from mlxfleet.bench.records import GitState, Run, Start
from mlxfleet.bench.report.groups import in_words, model_of, short_value
from mlxfleet.bench.report.loaded import Loaded

GB = 1e9
COMMIT_CHARACTERS = 12

Fact = tuple[str, str]


def facts(loaded: Loaded) -> list[Fact]:
    """Pairs of a name and what is so; what differs between runs stands side by side."""
    runs = [one.run for one in loaded.runs]
    comparisons = [one.comparison for one in loaded.comparisons]
    machines = [run.machine for run in runs] + [one.machine for one in comparisons]
    git = [run.git for run in runs] + [one.git for one in comparisons]
    found: list[tuple[str, list[str]]] = [
        ("command", [command_words(run.command_line) for run in runs]),
        ("began", [span_of(runs)] if runs else []),
        ("machine", [machine_words(machine) for machine in machines]),
        ("system", [machine.platform for machine in machines]),
        ("settings of OpenBLAS", [pairs_words(machine.blas_settings) for machine in machines]),
        ("load average before", [load_average_words(machines)]),
        ("model", [model_of(run) for run in runs]),
        (
            "endpoint",
            [f"{run.endpoint} of {run.url}" for run in runs if run.url and not loaded.starts],
        ),
        ("data", [in_words(run.data.items()) for run in runs]),
        ("arrival", [in_words(run.arrival.items()) for run in runs]),
        ("SLOs, ms", [in_words(run.slos.items()) for run in runs]),
        ("seeds", [", ".join(dict.fromkeys(str(run.seed) for run in runs))]),
        ("versions", [pairs_words(run.versions) for run in runs]),
        ("git", [git_words(state) for state in git if state is not None]),
        ("server", [server_words(run) for run in runs]),
        (
            "started by",
            [f"{start.side}: {command_words(start.command)}" for start in first_starts(loaded)],
        ),
        (
            "their versions",
            [f"{start.side}: {pairs_words(start.versions)}" for start in first_starts(loaded)],
        ),
        ("options of the comparison", [in_words(one.options.items()) for one in comparisons]),
        (
            "sides",
            [
                f"{name}: {command_words(shlex.split(what))}"
                for one in comparisons
                for name, what in one.sides.items()
            ],
        ),
        ("files", [path.name for path in loaded.files]),
    ]
    return [(name, "\n".join(kept)) for name, values in found if (kept := distinct(values))]


def endpoint_words(run: Run) -> str:
    """Where requests were sent; nothing for what has no address."""
    return f"{run.endpoint} of {run.url}" if run.url else ""


def first_starts(loaded: Loaded) -> list[Start]:
    """Of each server the first life; the others differ in their ports."""
    starts: dict[str, Start] = {}
    for start in loaded.starts:
        starts.setdefault(start.side, start)
    return list(starts.values())


def distinct(values: Iterable[str]) -> list[str]:
    """Each once, without the empty ones."""
    return [value for value in dict.fromkeys(values) if value]


def span_of(runs: Iterable[Run]) -> str:
    """When the first run began, and the last."""
    times = sorted({run.began for run in runs})
    return times[0] if len(times) == 1 else f"{times[0]}, the last run at {times[-1]}"


def machine_words(machine: Machine) -> str:
    """A machine in a line."""
    return (
        f"{machine.processor}, {machine.usable_cpus} of {machine.cpu_count} cores,"
        f" {machine.memory_bytes / GB:.1f} GB"
    )


def load_average_words(machines: Iterable[Machine]) -> str:
    """How busy the machine was when runs began."""
    loads = [machine.load_average[0] for machine in machines]
    if not loads:
        return ""
    return f"{min(loads):.2f} to {max(loads):.2f}" if len(loads) > 1 else f"{loads[0]:.2f}"


def pairs_words(pairs: dict[str, str]) -> str:
    """Packages with their versions, or variables with their values."""
    return ", ".join(f"{name} {value}" for name, value in pairs.items())


def git_words(state: GitState) -> str:
    """A commit, and whether it was all."""
    return state.commit[:COMMIT_CHARACTERS] + (" with uncommitted changes" if state.dirty else "")


def server_words(run: Run) -> str:
    """What a server says of itself."""
    known: dict[str, Any] = run.server
    return f"{run.side}: {in_words(known.items())}".removeprefix(": ") if known else ""


def command_words(command: Iterable[str]) -> str:
    """A command without the folders of the machine."""
    words = [short_argument(word) for word in command]
    return shlex.join(words)


def short_argument(word: str) -> str:
    """An argument whose path, also behind `--flag=`, is cut down to its last part."""
    flag, equals, value = word.partition("=")
    if equals and flag.startswith("-"):
        return f"{flag}={short_value(value)}"
    return PurePath(word).name if word.startswith(("/", "~", ".")) and "/" in word else word
