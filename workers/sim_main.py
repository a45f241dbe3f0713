"""The simulated worker process: a stand-in for the MLX worker, on the same link."""

from __future__ import annotations

import time
from functools import partial

from mlxfleet.common.config import SimWorkerProcess
from mlxfleet.common.messages import ModelInfo
from mlxfleet.common.process import bootstrap
from mlxfleet.workers.load_report import LoadReport
from mlxfleet.workers.sim_engine import SimEngine
from mlxfleet.workers.sim_faults import Faults
from mlxfleet.workers.sim_load import SimLoad
from mlxfleet.workers.sim_model import sim_model
from mlxfleet.workers.sim_times import SimTimes
from mlxfleet.workers.worker_loop import run_worker


def load(told: SimWorkerProcess, report: LoadReport) -> tuple[SimEngine, ModelInfo]:
    """The engine with what it knows of its model; ModelError if that fails."""
    model = sim_model(told.model_dir, told.options, told.max_context)
    faults = Faults(told.options.sim_faults, told.node)
    loading = SimLoad(model, told.options.sim_load_s, faults, report)
    while (rest_s := loading.turn()) > 0:
        time.sleep(rest_s)
    return SimEngine(model, SimTimes.of(told.options), faults), model


def main() -> None:
    """Run the worker to its end."""
    told = bootstrap(SimWorkerProcess)
    run_worker(partial(load, told), told.scheduler_address)


if __name__ == "__main__":
    main()
