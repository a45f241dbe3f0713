"""`mlxfleet tap`: look at the messages that cross the borders of a fleet's processes."""

from __future__ import annotations

import contextlib
import heapq
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import psutil
from cyclopts import Parameter

from mlxfleet.common.errors import ConfigError, MlxfleetError
from mlxfleet.common.runtime import running_fleets
from mlxfleet.common.tap import lines
from mlxfleet.common.tap.live import Follower, ask_for_dumps, processes_of
from mlxfleet.common.tap.selection import MALFORMED, Selection, Sighting, rid_of
from mlxfleet.common.tap.stream import Frame, StreamError, unpack
from mlxfleet.common.tap.visibility import SHOWN

ROUND_S = 0.1

Several = Parameter(negative=())
Flag = Parameter(negative=())


class TapError(MlxfleetError):
    """There is nothing to look at."""


def tap(
    *processes: str,
    rid: str | None = None,
    type: Annotated[list[str] | None, Several] = None,
    link: Annotated[list[str] | None, Several] = None,
    heartbeats: Annotated[bool, Flag] = False,
    show_prompts: Annotated[bool, Flag] = False,
    json: Annotated[bool, Flag] = False,
    last: Annotated[bool, Flag] = False,
    follow: bool = True,
    fleet: int | None = None,
    file: Annotated[list[Path] | None, Several] = None,
    dump: Annotated[bool, Flag] = False,
) -> None:
    """Show the messages between the processes of a fleet on this machine, until Ctrl-C.

    Prompts and answers are hidden, only their lengths are shown.

    Parameters
    ----------
    processes
        Only these processes, for example router or 'worker-*'.
    rid
        Only messages about this request, or this beginning of its id; of messages about several
        requests only its part. The id of an answer will do.
    type
        Only messages of this type, for example generate; may be given several times.
    link
        Only messages on this link, for example nodes; may be given several times.
    heartbeats
        Also what processes tell each other regularly.
    show_prompts
        Show prompts, answers and token ids.
    json
        A line of JSON for each message.
    last
        Begin with the messages that the processes still have of before.
    follow
        Go on with new messages; without it, only show what there is of before.
    fleet
        The process id of the launch, router or node command to look at, if there are several.
    file
        Show what is in a dump instead; several are put together by time.
    dump
        Have the processes write the messages that they still have to files, and say where.
    """
    selection = Selection(
        processes=processes,
        links=link or (),
        kinds=known_types(type or []),
        rid=rid_of(rid or ""),
        heartbeats=heartbeats,
    )
    out = Output(selection, json=json, show_prompts=show_prompts)
    with contextlib.suppress(KeyboardInterrupt), ended_by_reader():
        if file:
            out.show(read_dumps(file, quiet=json))
        elif dump:
            write_dumps(chosen_fleet(fleet, selection), selection)
        else:
            watch(chosen_fleet(fleet, selection), out, from_start=last or not follow, follow=follow)


class Output:
    """Prints what is to be seen."""

    def __init__(self, selection: Selection, *, json: bool, show_prompts: bool) -> None:
        self.selection = selection
        self._json = json
        self._line: Callable[[Sighting], str] = lambda seen: (
            lines.as_json if json else lines.as_text
        )(seen, show_prompts=show_prompts)

    def show(self, frames: Iterator[Frame]) -> None:
        """A line for each frame that is to be seen."""
        for frame in frames:
            if seen := self.selection.see(frame):
                print(self._line(seen))
        sys.stdout.flush()

    def show_loss(self, process: str, count: int) -> None:
        """Say that frames were lost."""
        if self._json:
            print(lines.lost_as_json(process, count), flush=True)
        else:
            print(lines.lost_as_text(process, count), file=sys.stderr)


def watch(runtime: Path, out: Output, *, from_start: bool, follow: bool) -> None:
    """Show a fleet's frames as long as it runs, or what it has now."""
    silent: frozenset[str] = frozenset()
    with Follower(runtime, out.selection.has_process, from_start=from_start) as follower:
        while True:
            out.show(iter(follower.round()))
            for process, count in follower.take_losses():
                out.show_loss(process, count)
            for process in follower.silent() - silent:
                print(f"# {process} does not answer", file=sys.stderr)
            silent = follower.silent()
            if not follow:
                out.show(iter(follower.rest()))
                return
            if not runtime.exists():
                print("# the fleet has ended", file=sys.stderr)
                return
            time.sleep(ROUND_S)


def write_dumps(runtime: Path, selection: Selection) -> None:
    """Have dumps written; TapError if one could not be."""
    failed = []
    for process, dumped in ask_for_dumps(runtime, selection.has_process):
        if dumped.error:
            failed.append(f"{process}: {dumped.error}")
        elif dumped.path:
            print(dumped.path)
    if failed:
        raise TapError(f"not everything was written; {'; '.join(failed)}")


def read_dumps(files: list[Path], *, quiet: bool) -> Iterator[Frame]:
    """The frames of all files, by time."""
    streams = [read_dump(path, quiet=quiet) for path in files]
    return heapq.merge(*streams, key=lambda frame: frame.time)


def read_dump(path: Path, *, quiet: bool) -> Iterator[Frame]:
    """The frames of a file. TapError if it cannot be read or is no dump."""
    try:
        with path.open("rb") as file:
            for entry in unpack(file):
                if isinstance(entry, Frame):
                    yield entry
                elif not quiet:
                    print(lines.describe(entry), file=sys.stderr)
    except OSError as error:
        raise TapError(f"cannot read {path}: {error.strerror}") from error
    except StreamError as error:
        raise TapError(f"{path} is not a dump, or damaged: {error}") from error


def known_types(types: list[str]) -> list[str]:
    """Types of messages. ConfigError for one that there is not."""
    known = {*SHOWN, MALFORMED}
    for kind in types:
        if kind not in known:
            raise ConfigError(f"--type: there is no {kind}; there are {', '.join(sorted(known))}")
    return types


def chosen_fleet(pid: int | None, selection: Selection) -> Path:
    """The private folder of the fleet to look at. ConfigError if it is not clear which that is, or
    it has none of the processes."""
    fleets = running_fleets()
    if pid is None and len(fleets) > 1:
        choices = ", ".join(f"--fleet {pid} ({command_of(pid)})" for pid in sorted(fleets))
        raise ConfigError(f"several fleets run here, choose one: {choices}")
    if pid is not None and pid not in fleets:
        known = ", ".join(map(str, sorted(fleets))) or "none"
        raise ConfigError(f"--fleet: no fleet of this user has process id {pid}; there are {known}")
    if not fleets:
        raise TapError("no fleet of this user runs on this machine; --file reads a dump")
    [runtime] = [fleets[pid]] if pid is not None else fleets.values()
    names = processes_of(runtime)
    if not names:
        raise TapError("this fleet records nothing: it is starting, or has --recorder-mb 0")
    if not any(map(selection.has_process, names)):
        wanted = " or ".join(selection.processes)
        raise ConfigError(f"this fleet has no {wanted}; it has {', '.join(names)}")
    return runtime


def command_of(pid: int) -> str:
    """The command line of a process, as far as it helps to know it again."""
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        return "?"
    start = next((i for i, word in enumerate(words) if Path(word).name == "mlxfleet"), 0)
    return " ".join([Path(words[start]).name, *words[start + 1 :]])[:100] if words else "?"


@contextlib.contextmanager
def ended_by_reader() -> Iterator[None]:
    """Let the reader of our standard output go away without a complaint."""
    try:
        yield
    except BrokenPipeError:
        # Python flushes once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
