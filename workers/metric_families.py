"""Every metric of a node's /metrics that is about its work; all have the labels node and model."""

from __future__ import annotations

from mlxfleet.common.metric_family import (
    COUNTS,
    PASS_SECONDS,
    counter,
    gauge,
    histogram,
)
from mlxfleet.common.tally import STAGE_SECONDS

NODE = ("node", "model")

BUILD_INFO = gauge(
    "mlxfleet_build_info", "1; which version runs here.", *NODE, "role", "version", "python"
)
WORKER_UP = gauge(
    "mlxfleet_worker_up",
    "1 for the state that the worker is in: loading, ready, hung or dead.",
    *NODE,
    "state",
)
STAGE = histogram(
    "mlxfleet_stage_seconds",
    "What the stages of a request take on the node: queue (the wait for a place in the worker) and"
    " prefill (from there to the first token).",
    *NODE,
    "stage",
    buckets=STAGE_SECONDS,
)
BATCH_ROWS = histogram(
    "mlxfleet_batch_rows", "Sequences that decode in a pass.", *NODE, buckets=COUNTS
)
CHUNK_TOKENS = histogram(
    "mlxfleet_chunk_tokens", "Prompt tokens of a pass that has some.", *NODE, buckets=COUNTS
)
STEP_SECONDS = histogram(
    "mlxfleet_worker_step_seconds", "A pass of the worker.", *NODE, buckets=PASS_SECONDS
)
IDLE_GAP_SECONDS = histogram(
    "mlxfleet_worker_idle_gap_seconds",
    "How long the device waited before a pass although there were sequences to run.",
    *NODE,
    buckets=STAGE_SECONDS,
)

RUNNING = gauge("mlxfleet_running_sequences", "Sequences in the worker.", *NODE)
RUNNING_LIMIT = gauge("mlxfleet_running_limit", "Sequences that may be in the worker.", *NODE)
QUEUED = gauge("mlxfleet_queue_depth", "Sequences that wait on the node.", *NODE)
QUEUE_LIMIT = gauge("mlxfleet_queue_limit", "Sequences that may wait on the node.", *NODE)
WAITING_PREFILL = gauge(
    "mlxfleet_waiting_prefill_tokens",
    "Prompt tokens to be computed for sequences on the node.",
    *NODE,
)
PREFILL_RATE = gauge(
    "mlxfleet_prefill_tokens_per_second",
    "How fast the node computes prompts beside the rows that decode.",
    *NODE,
)
DECODE_STEP = gauge(
    "mlxfleet_decode_step_seconds",
    "A decode step with one row more than now, by the measured cost of passes.",
    *NODE,
)
KV_BYTES = gauge(
    "mlxfleet_kv_bytes",
    "Memory for keys and values: of running sequences, cached for reuse, and free for either.",
    *NODE,
    "state",
)
KV_LIMIT = gauge("mlxfleet_kv_limit_bytes", "Memory for running sequences.", *NODE)
CACHE_BLOCKS = gauge(
    "mlxfleet_prefix_cache_blocks",
    "Blocks of the prefix cache; 0 if the model's prefixes cannot be reused.",
    *NODE,
)
CACHE_USED_BLOCKS = gauge(
    "mlxfleet_prefix_cache_used_blocks", "Blocks of the prefix cache that hold something.", *NODE
)
CACHE_AGE = gauge(
    "mlxfleet_prefix_cache_age_seconds",
    "For how long the block has not been used that makes room next.",
    *NODE,
)
MLX_MEMORY = gauge(
    "mlxfleet_mlx_memory_bytes",
    "Memory of MLX: active (in use), cache (kept for reuse), peak (most that was in use).",
    *NODE,
    "kind",
)

GENERATED_TOKENS = counter("mlxfleet_generated_tokens_total", "Tokens generated.", *NODE)
PREFILLED_TOKENS = counter(
    "mlxfleet_prefilled_tokens_total", "Prompt tokens that were computed.", *NODE
)
HIT_TOKENS = counter(
    "mlxfleet_prefix_cache_hit_tokens_total",
    "Prompt tokens that came out of the prefix cache instead.",
    *NODE,
)
PREEMPTIONS = counter(
    "mlxfleet_preemptions_total",
    "Sequences sent back to the queue because others needed their memory or shared their rows.",
    *NODE,
)
STEPS = counter("mlxfleet_worker_steps_total", "Passes of the worker.", *NODE)
BUSY_SECONDS = counter("mlxfleet_worker_busy_seconds_total", "Time in passes.", *NODE)
IDLE_SECONDS = counter(
    "mlxfleet_worker_idle_seconds_total",
    "Time between passes in which there were sequences to run.",
    *NODE,
)
DROPPED_FRAMES = counter(
    "mlxfleet_dropped_frames_total", "Malformed messages that were dropped.", *NODE, "process"
)
PROCESS_MEMORY = gauge(
    "mlxfleet_process_memory_bytes", "Resident memory.", *NODE, "role", "process"
)
