"""Files of records, put together run by run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from mlxfleet.bench.records import (
    SCHEMA,
    Comparison,
    Record,
    Request,
    Round,
    Run,
    Sample,
    Start,
    Summary,
    Use,
    Verdict,
    read_records,
)
from mlxfleet.common.errors import ConfigError


@dataclass
class LoadedRun:
    """A run with all that belongs to it. One that was cut short may have no summary. `comparison`
    is the number of the comparison that it is part of, 0 if it stands alone."""

    run: Run
    requests: list[Request] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    summary: Summary | None = None
    use: Use | None = None
    comparison: int = 0


@dataclass
class LoadedComparison:
    """A comparison with its rounds and what it found."""

    comparison: Comparison
    rounds: list[Round] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def thrown_out(self) -> dict[str, str]:
        """Why a run does not count, by its id."""
        return {one.run: one.thrown_out for one in self.rounds if one.thrown_out}


@dataclass
class Loaded:
    """All that was in the files."""

    files: list[Path] = field(default_factory=list)
    runs: list[LoadedRun] = field(default_factory=list)
    comparisons: list[LoadedComparison] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    incomplete: list[Path] = field(default_factory=list)
    """Files whose last line was cut off when they were written."""

    @property
    def finished(self) -> list[tuple[LoadedRun, Summary]]:
        """Runs that have a summary, with it."""
        return [(one, one.summary) for one in self.runs if one.summary is not None]

    def thrown_out(self) -> dict[str, str]:
        """Why a run does not count, by its id."""
        return {run: why for one in self.comparisons for run, why in one.thrown_out().items()}


def load_files(paths: Sequence[Path]) -> Loaded:
    """Read files of records; ConfigError if one cannot be read, is something else or has none."""
    loaded = Loaded()
    for path in paths:
        loaded.files.append(path)
        try:
            complete = load_file(loaded, path)
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        if not complete:
            loaded.incomplete.append(path)
    if not loaded.runs and not loaded.comparisons:
        raise ConfigError("there is no run in " + ", ".join(str(path) for path in paths))
    return loaded


def load_file(loaded: Loaded, path: Path) -> bool:
    """Add the records of a file; whether its last line was whole."""
    records, number, earlier = read_records(path), 0, len(loaded.comparisons)
    runs: dict[str, LoadedRun] = {}
    while True:
        try:
            record = next(records, None)
        except msgspec.MsgspecError as error:
            if number and not ends_with_newline(path) and next(records, None) is None:
                return False
            raise ConfigError(
                f"{path}: record {number + 1} is not of the benchmark's schema: {error}"
            ) from error
        if record is None:
            return True
        number += 1
        add(loaded, runs, record, path)
        if isinstance(record, Run) and len(loaded.comparisons) > earlier:
            runs[record.id].comparison = len(loaded.comparisons)


def ends_with_newline(path: Path) -> bool:
    """Whether the last line was written to its end."""
    return path.read_bytes()[-1:] in (b"\n", b"")


def add(loaded: Loaded, runs: dict[str, LoadedRun], record: Record, path: Path) -> None:
    """Add a record to what it belongs to; `runs` are those of its file, by id."""
    match record:
        case Run():
            check_schema(record.schema, path)
            runs[record.id] = LoadedRun(record)
            loaded.runs.append(runs[record.id])
        case Comparison():
            check_schema(record.schema, path)
            loaded.comparisons.append(LoadedComparison(record))
        case Start():
            loaded.starts.append(record)
        case Round() | Verdict():
            add_to_comparison(loaded, record, path)
        case Request() | Sample() | Summary() | Use():
            if (run := runs.get(record.run)) is None:
                raise ConfigError(f"{path}: records of run {record.run}, but not the run itself")
            add_to_run(run, record)


def add_to_comparison(loaded: Loaded, record: Round | Verdict, path: Path) -> None:
    """Add to the comparison that was begun last."""
    if not loaded.comparisons:
        raise ConfigError(f"{path}: a round or a verdict, but not the comparison itself")
    if isinstance(record, Round):
        loaded.comparisons[-1].rounds.append(record)
    else:
        loaded.comparisons[-1].verdicts.append(record)


def add_to_run(run: LoadedRun, record: Request | Sample | Summary | Use) -> None:
    """Add to a run what is said of it."""
    match record:
        case Request():
            run.requests.append(record)
        case Sample():
            run.samples.append(record)
        case Summary():
            run.summary = record
        case Use():
            run.use = record


def check_schema(schema: int, path: Path) -> None:
    """Refuse what a later version has written."""
    if schema != SCHEMA:
        raise ConfigError(f"{path} has schema {schema}; this version reads {SCHEMA}")


def successes(requests: Iterable[Request]) -> list[Request]:
    """Requests that did not fail."""
    return [request for request in requests if request.error is None]
