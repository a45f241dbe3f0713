"""A process of several simulated nodes, each with a scheduler and a worker of its own, on one event
loop. They exchange the same messages as separate processes do."""

from __future__ import annotations

import asyncio
import contextlib
import math

import zmq

from mlxfleet.common.config import SimNodesProcess, SimWorkerProcess
from mlxfleet.common.messages import ModelInfo, SchedulerToWorker
from mlxfleet.common.process import MAX_FILES, Service, run_service
from mlxfleet.common.tracing import make_tracer
from mlxfleet.workers.load_report import LoadReport
from mlxfleet.workers.scheduler_main import SchedulerService
from mlxfleet.workers.sim_engine import SimEngine
from mlxfleet.workers.sim_faults import Faults
from mlxfleet.workers.sim_load import SimLoad
from mlxfleet.workers.sim_model import sim_model
from mlxfleet.workers.sim_times import SimTimes
from mlxfleet.workers.worker_loop import SchedulerLink, Worker


class SharedWorker:
    """Turns a worker on the running event loop, which others use too."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        worker.scheduler.attach(self._on_command)
        self._wait()

    def close(self) -> None:
        """Stop turning, close the link."""
        if self._timer is not None:
            self._timer.cancel()
        self._worker.close()

    def _on_command(self, _: bytes, command: SchedulerToWorker) -> None:
        self._worker.obey(command)
        self._wait()

    def _turn(self) -> None:
        self._worker.turn()
        self._wait()

    def _wait(self) -> None:
        """Turn again when there is something to do. The loop counts in whole milliseconds; rounded
        up, because it would turn in vain until a pass is over."""
        if self._timer is not None:
            self._timer.cancel()
        rest_ms = math.ceil(self._worker.rest_s() * 1000)
        self._timer = self._loop.call_later(rest_ms / 1000, self._turn)


class SimNodesService(Service):
    """Runs the schedulers and workers of a group of nodes."""

    def __init__(self, told: SimNodesProcess) -> None:
        super().__init__()
        self._told = told
        self._schedulers: list[SchedulerService] = []
        self._workers: list[SharedWorker] = []
        self._loading: list[asyncio.Task[None]] = []

    async def startup(self) -> None:
        """Read the model's configuration once, start all nodes."""
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, MAX_FILES)
        self._tracer = make_tracer(self._told.observe, "scheduler", self._told.name)
        _, first = self._told.nodes[0]
        model = sim_model(first.model_dir, first.options, first.max_context)
        for scheduler_told, worker_told in self._told.nodes:
            scheduler = SchedulerService(scheduler_told, self._context, self._tracer)
            await scheduler.connect()
            self._schedulers.append(scheduler)
            self._loading.append(asyncio.create_task(self._load(worker_told, model)))
        await asyncio.gather(*self._loading)
        for scheduler in self._schedulers:
            await scheduler.joined.wait()

    async def _load(self, told: SimWorkerProcess, model: ModelInfo) -> None:
        """Start a worker; its scheduler hears how far its loading is."""
        link = SchedulerLink(self._context, told.scheduler_address)
        report = LoadReport(link.tell_progress)
        faults = Faults(told.options.sim_faults, told.node)
        loading = SimLoad(model, told.options.sim_load_s, faults, report)
        while (rest_s := loading.turn()) > 0:  # noqa: ASYNC110 - there is no event, only time
            await asyncio.sleep(rest_s)
        engine = SimEngine(model, SimTimes.of(told.options), faults)
        self._workers.append(SharedWorker(Worker(engine, model, link)))

    async def shutdown(self) -> None:
        """Close every link."""
        for worker in self._workers:
            worker.close()
        for scheduler in self._schedulers:
            await scheduler.shutdown()
        self._context.term()
        self._tracer.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        run_service(SimNodesProcess, SimNodesService)
