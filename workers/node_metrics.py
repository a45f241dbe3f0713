"""What a node shows of its work at its /metrics."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import get_args

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from mlxfleet.common.kv_sizes import BLOCK_TOKENS
from mlxfleet.common.messages import NodeStatus, Step, WorkerState, WorkerStatus
from mlxfleet.common.metric_family import Family
from mlxfleet.workers import metric_families as families

Read = Callable[[NodeStatus], float]

FIGURES: list[tuple[Family, Read]] = [
    (families.RUNNING, lambda s: s.running),
    (families.RUNNING_LIMIT, lambda s: s.max_running),
    (families.QUEUED, lambda s: s.queued),
    (families.QUEUE_LIMIT, lambda s: s.max_queue),
    (families.WAITING_PREFILL, lambda s: s.queued_prefill_tokens + s.running_prefill_tokens),
    (families.PREFILL_RATE, lambda s: s.prefill_tokens_per_s),
    (families.DECODE_STEP, lambda s: s.decode_step_s),
    (families.KV_LIMIT, lambda s: s.model.kv_budget_bytes if s.model else 0),
    (families.CACHE_BLOCKS, lambda s: s.model.cold_blocks if s.model else 0),
    (families.CACHE_USED_BLOCKS, lambda s: s.cold_blocks_used),
    (families.CACHE_AGE, lambda s: s.cold_age_s),
    (families.GENERATED_TOKENS, lambda s: s.generated_tokens),
    (families.PREFILLED_TOKENS, lambda s: s.prefilled_tokens),
    (families.HIT_TOKENS, lambda s: s.cached_tokens),
    (families.PREEMPTIONS, lambda s: s.preemptions),
    (families.STEPS, lambda s: s.steps),
    (families.BUSY_SECONDS, lambda s: s.busy_s),
    (families.IDLE_SECONDS, lambda s: s.idle_s),
]


class NodeMetrics:
    """Histograms of passes and of stages, and the registry of everything that the node shows."""

    def __init__(self, node: str, model: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self.model = model
        self.labels = node, model
        stage = families.STAGE.histogram(registry)
        self._queue = stage.labels(node, model, "queue")
        self._prefill = stage.labels(node, model, "prefill")
        self._rows = families.BATCH_ROWS.histogram(registry).labels(node, model)
        self._chunk = families.CHUNK_TOKENS.histogram(registry).labels(node, model)
        self._step_s = families.STEP_SECONDS.histogram(registry).labels(node, model)
        self._idle_s = families.IDLE_GAP_SECONDS.histogram(registry).labels(node, model)
        build = families.BUILD_INFO.gauge(registry)
        build.labels(node, model, "node", version("mlxfleet"), platform.python_version()).set(1)

    def waited(self, seconds: float) -> None:
        """A sequence has left the queue."""
        self._queue.observe(seconds)

    def prefilled(self, seconds: float) -> None:
        """A sequence that left the queue so long ago has its next token."""
        self._prefill.observe(seconds)

    def on_step(self, step: Step) -> None:
        """The worker has run a pass."""
        if step.pass_s <= 0:
            return
        self._rows.observe(step.decoded_rows)
        self._step_s.observe(step.pass_s)
        self._idle_s.observe(step.idle_s)
        if tokens := sum(tokens for _, tokens in step.prefilled):
            self._chunk.observe(tokens)

    def render(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)


class NodeCollector(Collector):
    """The node's report, made anew at scrape time. `status` gives it, `worker` the worker's."""

    def __init__(
        self,
        labels: tuple[str, str],
        status: Callable[[], NodeStatus],
        worker: Callable[[], WorkerStatus | None],
    ) -> None:
        self._labels = labels
        self._status = status
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        status, worker, labels = self._status(), self._worker(), self._labels
        for family, read in FIGURES:
            yield family.of([(labels, read(status))])
        yield families.WORKER_UP.of(
            ((*labels, state), status.worker == state) for state in get_args(WorkerState)
        )
        yield families.KV_BYTES.of(
            ((*labels, state), size) for state, size in kv_bytes(status).items()
        )
        yield families.DROPPED_FRAMES.of(
            [
                ((*labels, "scheduler"), status.dropped_frames),
                ((*labels, "worker"), status.worker_dropped_frames),
            ]
        )
        memory = {"scheduler": status.rss_bytes}
        if worker is not None:
            memory["worker"] = worker.rss_bytes
            yield families.MLX_MEMORY.of(
                [
                    ((*labels, "active"), worker.memory_bytes),
                    ((*labels, "cache"), worker.mlx_cache_bytes),
                    ((*labels, "peak"), worker.mlx_peak_bytes),
                ]
            )
        yield families.PROCESS_MEMORY.of(
            ((*labels, role, role), size) for role, size in memory.items()
        )


def kv_bytes(status: NodeStatus) -> dict[str, int]:
    """Memory for keys and values by what it is used for; nothing without a model."""
    if (model := status.model) is None:
        return {}
    block_bytes = BLOCK_TOKENS * model.bytes_per_token
    free_blocks = model.cold_blocks - status.cold_blocks_used
    return {
        "running": status.kv_used_bytes,
        "cached": status.cold_blocks_used * block_bytes,
        "free": model.kv_budget_bytes - status.kv_used_bytes + free_blocks * block_bytes,
    }
