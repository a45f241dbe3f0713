"""Rows of the Node dashboard: memory for keys and values, and processes."""

from __future__ import annotations

from mlxfleet.common.dashboards import states
from mlxfleet.common.dashboards.looks import Limits
from mlxfleet.common.dashboards.node_shares import BY, HERE, hit_share, kv_share
from mlxfleet.common.dashboards.panels import Panel, Query, graph, timeline
from mlxfleet.common.dashboards.promql import code, rate, select, share, total

FULL = Limits(0.7, 0.9)


def keys_and_values() -> list[Panel]:
    """Memory for keys and values, and what is reused of them."""
    blocks = total("mlxfleet_prefix_cache_blocks", *HERE, by=BY)
    used_blocks = total("mlxfleet_prefix_cache_used_blocks", *HERE, by=BY)
    return [
        graph(
            "Memory by state",
            "Keys and values of running sequences, cached for reuse, and free for either.",
            "bytes",
            Query(select("mlxfleet_kv_bytes", *HERE), "{{node}} {{state}}"),
            stacked=True,
        ),
        graph(
            "Memory for running sequences",
            "Share that is used; at 100% new sequences wait and others may be preempted.",
            "percentunit",
            Query(kv_share(), "{{node}}"),
            limits=FULL,
            top=1,
        ),
        graph(
            "Limit for running sequences",
            "What the memory plan leaves for them.",
            "bytes",
            Query(select("mlxfleet_kv_limit_bytes", *HERE), "{{node}}"),
        ),
        graph(
            "Prefix cache",
            "Blocks that hold something, of all; nothing if prefixes of the model cannot be"
            " reused.",
            "percentunit",
            Query(share(used_blocks, blocks), "{{node}}"),
            top=1,
        ),
        graph(
            "Age of what is evicted next",
            "How long ago the block was used that makes room next. Minutes: the cache is too small"
            " for the conversations that go on.",
            "s",
            Query(select("mlxfleet_prefix_cache_age_seconds", *HERE), "{{node}}"),
        ),
        graph(
            "Prompt tokens out of the cache",
            "Share of prompt tokens that did not have to be computed.",
            "percentunit",
            Query(hit_share(), "{{node}}"),
            top=1,
        ),
    ]


def memory() -> list[Panel]:
    """Processes of the node."""
    state = code("mlxfleet_worker_up", states.names(states.WORKER), *HERE, by=BY)
    return [
        timeline(
            "State of the worker",
            "As its scheduler sees it.",
            states.WORKER,
            Query(state, "{{node}}"),
        ),
        graph(
            "Memory of MLX",
            "active is in use, cache kept by MLX for reuse, peak the most that was in use.",
            "bytes",
            Query(select("mlxfleet_mlx_memory_bytes", *HERE), "{{node}} {{kind}}"),
            width=12,
        ),
        graph(
            "Memory of processes",
            "Resident memory of scheduler and worker.",
            "bytes",
            Query(select("mlxfleet_process_memory_bytes", *HERE), "{{node}} {{process}}"),
            width=12,
        ),
        graph(
            "Dropped frames",
            "Malformed messages per second that were dropped; there should be none.",
            "short",
            Query(
                rate("mlxfleet_dropped_frames_total", *HERE, by="node, process"),
                "{{node}} {{process}}",
            ),
            width=12,
            limits=Limits(0.001),
        ),
    ]
