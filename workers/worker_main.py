"""The MLX worker process: the only one that touches the GPU. Steps by itself, reads commands
between steps."""

from __future__ import annotations

import logging
import signal
import sys
import time
from types import FrameType

import mlx.core as mx
import zmq

from mlxfleet.common import channels
from mlxfleet.common.config import WorkerProcess
from mlxfleet.common.errors import ExitCode, MlxfleetError, RefusedError
from mlxfleet.common.liveness import HEARTBEAT_S, new_incarnation
from mlxfleet.common.messages import (
    Admit,
    Admitted,
    Drop,
    Ping,
    Prefill,
    Refused,
    Reset,
    SchedulerToWorker,
    Store,
    WorkerStatus,
    WorkerToScheduler,
)
from mlxfleet.common.process import bootstrap, fail, report_ready
from mlxfleet.workers.engine import Engine
from mlxfleet.workers.model import load_model

log = logging.getLogger(__name__)


class Worker:
    """Wires an Engine to the scheduler."""

    def __init__(self, told: WorkerProcess) -> None:
        self._told = told
        self._incarnation = new_incarnation()
        self._epoch = ""
        self._stopping = False
        self._next_heartbeat = 0.0

    def startup(self) -> None:
        """Load the model, then connect: a worker that presents itself can generate."""
        signal.signal(signal.SIGTERM, self._on_terminate)
        storage, self._model = load_model(self._told)
        self._engine = Engine(
            storage, vocab_size=self._model.vocab_size, eos_ids=frozenset(self._model.eos_ids)
        )
        self._context = zmq.Context()
        self._scheduler: channels.Channel[SchedulerToWorker, WorkerToScheduler] = channels.client(
            self._context, SchedulerToWorker, self._told.scheduler_address, self._incarnation
        )

    def main_loop(self) -> None:
        """Step while there is work, wait for commands while there is none."""
        while not self._stopping:
            if not self._engine.busy:
                self._scheduler.wait(max(0.0, self._next_heartbeat - time.monotonic()))
            for _, command in self._scheduler.receive():
                self._obey(command)
            if self._engine.busy:
                step = self._engine.step(self._epoch)
                if step.rids or step.prefilled:
                    self._scheduler.send(step)
            self._heartbeat()

    def shutdown(self) -> None:
        """Give the memory back."""
        self._engine.reset()
        self._scheduler.close()
        self._context.term()
        mx.clear_cache()

    def _obey(self, command: SchedulerToWorker) -> None:
        match command:
            case Refused():
                fail(RefusedError(f"the scheduler refused this worker: {command.reason}"))
            case Ping():
                pass
            case Reset():
                self._epoch = command.epoch
                self._engine.reset()
            case Admit():
                self._scheduler.send(Admitted(self._epoch, command.rid))
                self._engine.admit(command)
            case Prefill():
                self._engine.prefill(command)
            case Store():
                self._engine.store(command)
            case Drop():
                self._engine.drop(command.rid)

    def _heartbeat(self) -> None:
        now = time.monotonic()
        if now < self._next_heartbeat:
            return
        self._next_heartbeat = now + HEARTBEAT_S
        self._scheduler.send(
            WorkerStatus(
                incarnation=self._incarnation,
                model=self._model,
                epoch=self._epoch,
                memory_bytes=mx.get_active_memory() + mx.get_cache_memory(),
                dropped_frames=self._scheduler.dropped_frames,
            )
        )

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True


def main() -> None:
    """Run the worker to its end."""
    worker = Worker(bootstrap(WorkerProcess))
    try:
        worker.startup()
    except MlxfleetError as error:
        fail(error)
    report_ready()
    worker.main_loop()
    worker.shutdown()
    sys.exit(ExitCode.OK)


if __name__ == "__main__":
    main()
