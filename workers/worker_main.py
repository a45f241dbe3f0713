"""The MLX worker process: the only one that touches the GPU."""

from __future__ import annotations

from functools import partial

from mlxfleet.common.config import WorkerProcess
from mlxfleet.common.messages import ModelInfo
from mlxfleet.common.process import bootstrap
from mlxfleet.workers.engine import Engine
from mlxfleet.workers.load_report import LoadReport
from mlxfleet.workers.model import load_model
from mlxfleet.workers.worker_loop import run_worker


def load(told: WorkerProcess, report: LoadReport) -> tuple[Engine, ModelInfo]:
    """The engine with its model; ModelError if that fails."""
    storage, model = load_model(told, report)
    engine = Engine(storage, vocab_size=model.vocab_size, eos_ids=frozenset(model.eos_ids))
    return engine, model


def main() -> None:
    """Run the worker to its end."""
    told = bootstrap(WorkerProcess)
    run_worker(partial(load, told), told.scheduler_address)


if __name__ == "__main__":
    main()
