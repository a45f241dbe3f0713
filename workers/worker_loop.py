"""The worker's loop, whatever its engine: steps by itself, reads commands between steps."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Protocol

import zmq

from mlxfleet.common import channels
from mlxfleet.common.errors import ExitCode, MlxfleetError, RefusedError
from mlxfleet.common.liveness import HEARTBEAT_S, new_incarnation, resident_bytes
from mlxfleet.common.messages import (
    Admit,
    Admitted,
    Drop,
    LoadProgress,
    ModelInfo,
    Ping,
    Prefill,
    Refused,
    Reset,
    SchedulerToWorker,
    Step,
    Store,
    WorkerLoading,
    WorkerStatus,
    WorkerToScheduler,
)
from mlxfleet.common.process import fail, report_ready
from mlxfleet.workers.load_report import LoadReport

SchedulerChannel = channels.Channel[SchedulerToWorker, WorkerToScheduler]


class StepEngine(Protocol):
    """What a worker steps. The methods named after commands obey them."""

    @property
    def memory_bytes(self) -> int:
        """Memory that is in use."""

    @property
    def cache_bytes(self) -> int:
        """Memory that is kept for reuse."""

    @property
    def peak_bytes(self) -> int:
        """The most that was in use."""

    def due_s(self) -> float:
        """Seconds for which `step` has nothing to do if no command comes; asked for before every
        step."""

    def step(self, epoch: str) -> Step:
        """Run or read a pass, or nothing if it is not due."""

    def reset(self) -> None:
        """Drop every row."""

    def admit(self, message: Admit) -> None:
        """Take a new row."""

    def prefill(self, message: Prefill) -> None:
        """Queue a pass's prefill."""

    def store(self, message: Store) -> None:
        """Copy a row's tokens to the cold store."""

    def drop(self, rid: str) -> None:
        """Forget a row in any state."""

    def close(self) -> None:
        """Give the memory back."""


class SchedulerLink:
    """A worker's connection to its scheduler, which it has before its model."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.incarnation = new_incarnation()
        self.channel: SchedulerChannel = channels.client(
            context, SchedulerToWorker, address, self.incarnation
        )

    def tell_progress(self, progress: LoadProgress) -> None:
        """Say how far the loading is."""
        self.channel.send(WorkerLoading(incarnation=self.incarnation, progress=progress))


class Worker:
    """Wires an engine to its scheduler. Whoever runs it gives commands to `obey` and calls `turn`
    after at most `rest_s`."""

    def __init__(self, engine: StepEngine, model: ModelInfo, link: SchedulerLink) -> None:
        self._engine = engine
        self._model = model
        self._incarnation = link.incarnation
        self._epoch = ""
        self._next_heartbeat = 0.0
        self.scheduler = link.channel

    def rest_s(self) -> float:
        """How long a turn would have nothing to do, without commands; 0 if it has now."""
        due_s = self._engine.due_s()
        return max(0.0, min(due_s, self._next_heartbeat - time.monotonic()))

    def turn(self) -> None:
        """Step if that is due, and say so; tell the scheduler regularly that we are here."""
        if self._engine.due_s() <= 0:
            step = self._engine.step(self._epoch)
            if step.rids or step.prefilled:
                self.scheduler.send(step)
        self._heartbeat()

    def obey(self, command: SchedulerToWorker) -> None:
        """Do what the scheduler says."""
        match command:
            case Refused():
                fail(RefusedError(f"the scheduler refused this worker: {command.reason}"))
            case Ping():
                pass
            case Reset():
                self._epoch = command.epoch
                self._engine.reset()
            case Admit():
                self.scheduler.send(Admitted(self._epoch, command.rid))
                self._engine.admit(command)
            case Prefill():
                self._engine.prefill(command)
            case Store():
                self._engine.store(command)
            case Drop():
                self._engine.drop(command.rid)

    def close(self) -> None:
        """Give the memory back, close the link."""
        self._engine.close()
        self.scheduler.close()

    def _heartbeat(self) -> None:
        now = time.monotonic()
        if now < self._next_heartbeat:
            return
        self._next_heartbeat = now + HEARTBEAT_S
        self.scheduler.send(
            WorkerStatus(
                incarnation=self._incarnation,
                model=self._model,
                epoch=self._epoch,
                memory_bytes=self._engine.memory_bytes,
                mlx_cache_bytes=self._engine.cache_bytes,
                mlx_peak_bytes=self._engine.peak_bytes,
                rss_bytes=resident_bytes(),
                dropped_frames=self.scheduler.dropped_frames,
            )
        )


# Loads a model, and reports how far that is; ModelError if it fails.
Load = Callable[[LoadReport], tuple[StepEngine, ModelInfo]]


class WorkerRun:
    """A worker that is alone in its process, from start to end."""

    def __init__(self, load: Load, scheduler_address: str) -> None:
        self._load = load
        self._scheduler_address = scheduler_address
        self._stopping = False

    def startup(self) -> None:
        """Connect and load the model; the scheduler hears how far that is. A worker presents
        itself when it can generate. A SIGTERM ends the loading at once, and the process."""
        signal.signal(signal.SIGTERM, end_at_once)
        self._context = zmq.Context()
        link = SchedulerLink(self._context, self._scheduler_address)
        report = LoadReport(link.tell_progress)
        report.begin("starting")
        engine, model = self._load(report)
        signal.signal(signal.SIGTERM, self._on_terminate)
        self._worker = Worker(engine, model, link)

    def main_loop(self) -> None:
        """Step while there is work, wait for commands while there is none."""
        while not self._stopping:
            if (rest_s := self._worker.rest_s()) > 0:
                self._worker.scheduler.wait(rest_s)
            for _, command in self._worker.scheduler.receive():
                self._worker.obey(command)
            self._worker.turn()

    def shutdown(self) -> None:
        """Close everything."""
        self._worker.close()
        self._context.term()

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True


def end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal that comes before there is anything to finish. Python unwinds, so that the
    memory of a GPU is given back; a second signal would only break that off."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(ExitCode.OK)


def run_worker(load: Load, scheduler_address: str) -> NoReturn:
    """Run a worker to its end, then exit the process."""
    run = WorkerRun(load, scheduler_address)
    try:
        run.startup()
    except MlxfleetError as error:
        fail(error)
    report_ready()
    run.main_loop()
    run.shutdown()
    sys.exit(ExitCode.OK)
