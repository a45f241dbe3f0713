"""Runs that belong in one picture: of one comparison, or else of one model and data; by side and
load."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from statistics import median
from typing import Any

import msgspec

from mlxfleet.bench.compare.figure import Figure
from mlxfleet.bench.records import Run, Summary
from mlxfleet.bench.report.loaded import Loaded, LoadedRun

# What may differ from load to load without the data being other data.
AMOUNTS = {"requests", "seed"}


@dataclass(frozen=True, order=True)
class Load:
    """How hard a server was pressed: a number to sort by, and in words."""

    amount: float
    words: str


@dataclass
class Group:
    """Runs of one model with the same data; the sides in the order in which they appear."""

    model: str
    data: dict[str, Any]
    runs: list[tuple[LoadedRun, Summary]]

    @property
    def sides(self) -> list[str]:
        """Names of the sides."""
        return list(dict.fromkeys(side_of(one.run) for one, _ in self.runs))

    @property
    def loads(self) -> list[Load]:
        """Ascending."""
        return sorted({load_of(one.run.arrival) for one, _ in self.runs})

    def at(self, side: str, load: Load) -> list[tuple[LoadedRun, Summary]]:
        """All rounds of a side at a load."""
        return [
            (one, summary)
            for one, summary in self.runs
            if side_of(one.run) == side and load_of(one.run.arrival) == load
        ]

    def values(self, figure: Figure, side: str, load: Load) -> list[float]:
        """A figure in all rounds that have it."""
        found = (figure.of(summary) for _, summary in self.at(side, load))
        return [value for value in found if value is not None]

    def median(self, figure: Figure, side: str, load: Load) -> float | None:
        """Its median over the rounds."""
        values = self.values(figure, side, load)
        return median(values) if values else None


def groups_of(loaded: Loaded) -> list[Group]:
    """The finished runs that count, group by group."""
    thrown_out = loaded.thrown_out()
    found: dict[tuple[int, str, bytes], Group] = {}
    for one, summary in loaded.finished:
        if one.run.id in thrown_out:
            continue
        data = {key: value for key, value in one.run.data.items() if key not in AMOUNTS}
        model = model_of(one.run)
        key = one.comparison, model, msgspec.json.encode(data, order="deterministic")
        found.setdefault(key, Group(model, data, [])).runs.append((one, summary))
    return list(found.values())


def model_of(run: Run) -> str:
    """The model's name, of a folder only the last part."""
    return PurePath(run.model).name if run.model else ""


def side_of(run: Run) -> str:
    """What a run's line is called."""
    return run.side or model_of(run) or run.url


def load_of(arrival: dict[str, Any]) -> Load:
    """How hard a run's arrival presses."""
    rate, streams = arrival.get("request_rate"), arrival.get("concurrency")
    if arrival.get("kind") == "open_loop":
        burstiness = arrival.get("burstiness")
        bursts = f", burstiness {burstiness:g}" if burstiness not in (None, 1) else ""
        # JSON has no infinity.
        amount, words = (math.inf, "all at once") if rate is None else (rate, f"{rate:g} req/s")
        return Load(amount, words + bursts)
    if streams is not None:
        return Load(streams, f"{streams:g} stream{'s' if streams != 1 else ''}")
    speed = arrival.get("trace_speed")
    return Load(speed or 0.0, f"trace, {speed:g} times as fast" if speed else "as it comes")


def in_words(options: Iterable[tuple[str, Any]]) -> str:
    """Options as `name value, ...`; those that are not set are left out."""
    set_ones = ((name, value) for name, value in options if value not in (None, "", [], {}, False))
    return ", ".join(f"{name.replace('_', ' ')} {short_value(value)}" for name, value in set_ones)


def short_value(value: Any) -> str:
    """A value without folders of this machine."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and "/" in value and "://" not in value:
        return PurePath(value).name
    if isinstance(value, (list, tuple)):
        return " ".join(short_value(item) for item in value)
    return "yes" if value is True else str(value)
