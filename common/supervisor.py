"""The parent: starts processes, waits for ready or death of each, restarts, and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlxfleet.common.errors import ExitCode, MlxfleetError
from mlxfleet.common.process import STATUS_FD_ENV
from mlxfleet.common.tap.flight import DUMP_SIGNAL

log = logging.getLogger(__name__)

BACKOFF_FIRST_S = 0.1
CRASH_LOOP_DEATHS = 6
SERIES_GAP_S = 60.0
STOP_GRACE_S = 5.0
LAST_WORDS_S = 1.0


class ChildFailedError(MlxfleetError):
    """A process died before it was ready, or keeps dying."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class ProcessSpec:
    """What to execute. `stop_order`: lower ones are stopped, and waited for, first.
    `stop_grace_s` is how long SIGTERM may take before SIGKILL; None waits without a limit. One that
    is not `vital` is started again without a limit, because others do its work meanwhile; but it
    has to have been ready once. One that is not `awaited` neither holds up nor ends the start.
    `witnesses` are at the other ends of its links and have recorded what it cannot tell if it is
    killed."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    stop_order: int
    stop_grace_s: float | None = STOP_GRACE_S
    vital: bool = True
    awaited: bool = True
    witnesses: Sequence[str] = ()


@dataclass
class Run:
    """One run of a process and what it has told us; `silent` when no more can come."""

    process: asyncio.subprocess.Process
    ready: asyncio.Future[None]
    reason: str = ""
    silent: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Child:
    """A process that is kept running."""

    spec: ProcessSpec
    run: Run
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    deaths: deque[float] = field(default_factory=lambda: deque(maxlen=CRASH_LOOP_DEATHS))
    keeper: asyncio.Task[None] | None = None


class Supervisor:
    """Keeps a set of processes running until told to stop.

    `failure` fails with ChildFailedError when a process cannot be kept running.
    """

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}
        self._forced = asyncio.Event()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: child.run.process.pid for name, child in self._children.items()}

    async def start(self, specs: Sequence[ProcessSpec]) -> None:
        """Start all and wait until each that is awaited is ready; ChildFailedError if one of them
        dies before that."""
        for spec in specs:
            try:
                child = Child(spec, await spawn(spec))
            except OSError as error:
                self._cannot_start(spec, error)
                continue
            self._children[spec.name] = child
            child.keeper = asyncio.create_task(self._keep(child))
        awaited = [child for child in self._children.values() if child.spec.awaited]
        ready: set[asyncio.Future[Any]] = {child.run.ready for child in awaited}
        while ready and not self.failure.done():
            _, pending = await asyncio.wait(
                ready | {self.failure}, return_when=asyncio.FIRST_COMPLETED
            )
            ready = pending - {self.failure}
        if self.failure.done():
            self.failure.result()

    async def stop(self) -> None:
        """Stop all in order, first politely. `force` cuts the waiting short."""
        for order in sorted({child.spec.stop_order for child in self._children.values()}):
            group = [c for c in self._children.values() if c.spec.stop_order == order]
            await asyncio.gather(*(self._stop_child(child) for child in group))

    def force(self) -> None:
        """Stop now: running requests are cut off."""
        self._forced.set()

    def dump(self, names: Iterable[str] | None = None) -> None:
        """Have processes, by default all, write the last frames that they have recorded."""
        for name in self._children if names is None else names:
            child = self._children.get(name)
            # The signal would end one that has not come so far as to handle it.
            if child is not None and child.run.ready.done():
                signal_process(child.run.process, DUMP_SIGNAL)

    async def _stop_child(self, child: Child) -> None:
        child.stopping.set()
        process = child.run.process
        signal_process(process, signal.SIGTERM)
        ended = asyncio.ensure_future(process.wait())
        forced = asyncio.ensure_future(self._forced.wait())
        await asyncio.wait(
            {ended, forced},
            timeout=child.spec.stop_grace_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        forced.cancel()
        if not ended.done():
            # A second SIGTERM skips the child's drain; SIGKILL can leak wired Metal memory.
            signal_process(process, signal.SIGTERM)
            await asyncio.wait({ended}, timeout=STOP_GRACE_S)
        if not ended.done():
            log.warning("%s does not stop; killing it", child.spec.name)
            signal_process(process, signal.SIGKILL)
        await ended
        if child.keeper is not None:
            await child.keeper

    async def _keep(self, child: Child) -> None:
        """Restart a child whenever it dies, with growing pauses, until stopped or hopeless: one
        that was refused would only be refused again."""
        started = not child.spec.awaited
        while True:
            run = child.run
            code = await run.process.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(run.silent.wait(), LAST_WORDS_S)
            if child.stopping.is_set():
                return
            why = f"{child.spec.name} {describe_exit(code)}"
            if run.reason:
                why = f"{child.spec.name}: {run.reason}"
            if code < 0:
                self.dump(child.spec.witnesses)
            started = started or run.ready.done()
            if not started or (child.spec.awaited and code == ExitCode.REFUSED):
                self._give_up(ChildFailedError(why, as_exit_code(code)))
                return
            child.deaths.append(time.monotonic())
            if child.spec.vital and looping(list(child.deaths)):
                self._give_up(ChildFailedError(f"{why}, again and again", ExitCode.CRASH_LOOP))
                return
            pause_s = backoff_s(list(child.deaths))
            log.warning("%s; starting it again in %.1f s", why, pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.stopping.wait(), pause_s)
                return
            if not await self._respawn(child):
                return

    async def _respawn(self, child: Child) -> bool:
        """Start a child once more; False if that is impossible."""
        try:
            child.run = await spawn(child.spec)
        except OSError as error:
            self._cannot_start(child.spec, error)
            return False
        if child.stopping.is_set():
            # It was too late for the stop that waits for the run before.
            signal_process(child.run.process, signal.SIGKILL)
        return True

    def _cannot_start(self, spec: ProcessSpec, error: OSError) -> None:
        """The system does not execute a process, and would not a second time."""
        why = f"cannot start {spec.name}: {error}"
        if spec.awaited:
            self._give_up(ChildFailedError(why, ExitCode.INTERNAL))
        else:
            log.error("%s; going on without it", why)

    def _give_up(self, error: ChildFailedError) -> None:
        if not self.failure.done():
            self.failure.set_exception(error)


async def spawn(spec: ProcessSpec) -> Run:
    """Execute a process in a process group of its own, with a pipe on which it reports.

    Its standard input is a pipe that nobody writes: it closes when this process dies.
    """
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *spec.command,
            stdin=asyncio.subprocess.PIPE,
            env={**spec.environment, STATUS_FD_ENV: str(writer)},
            pass_fds=(writer,),
            process_group=0,
        )
    finally:
        os.close(writer)
    run = Run(process, loop.create_future())
    await loop.connect_read_pipe(lambda: NewsProtocol(run), os.fdopen(reader, "rb"))
    return run


class NewsProtocol(asyncio.Protocol):
    """Reads what a child reports: `ready`, or `failed` and the reason."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._text = ""

    def data_received(self, data: bytes) -> None:
        """Take whole lines."""
        self._text += data.decode(errors="replace")
        *lines, self._text = self._text.split("\n")
        for line in lines:
            if line == "ready" and not self._run.ready.done():
                self._run.ready.set_result(None)
            elif line.startswith("failed "):
                self._run.reason = line.removeprefix("failed ")

    def connection_lost(self, error: Exception | None) -> None:
        """The process has closed its end, or is gone."""
        self._run.silent.set()


def signal_process(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


def describe_exit(code: int) -> str:
    """Say in words how a process ended."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    try:
        return f"exited with {ExitCode(code).name} ({code})"
    except ValueError:
        return f"exited with {code}"


def as_exit_code(code: int) -> ExitCode:
    """The exit code to pass on for a child that ended with `code`."""
    try:
        known = ExitCode(code)
    except ValueError:
        return ExitCode.INTERNAL
    return known if known != ExitCode.OK else ExitCode.INTERNAL


def series(deaths: Sequence[float]) -> int:
    """How many of the last deaths (monotonic seconds) came soon after the one before."""
    count = 1
    for earlier, later in zip(reversed(deaths[:-1]), reversed(deaths[1:]), strict=True):
        if later - earlier >= SERIES_GAP_S:
            break
        count += 1
    return count


def looping(deaths: Sequence[float]) -> bool:
    """Whether a process died so often in a row that restarting it is hopeless."""
    return series(deaths) >= CRASH_LOOP_DEATHS


def backoff_s(deaths: Sequence[float]) -> float:
    """Pause before the next start: doubles with each death of a series."""
    return BACKOFF_FIRST_S * 2.0 ** (series(deaths) - 1)
