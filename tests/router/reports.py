"""Nodes' reports for tests."""

from __future__ import annotations

from typing import Any

from mlxfleet.common.messages import ModelInfo, NodeStatus


def make_model(cold_blocks: int = 1000) -> ModelInfo:
    """A model whose KV cache does not fill up."""
    return ModelInfo(
        vocab_size=50_000,
        context_length=100_000,
        eos_ids=[],
        kv_budget_bytes=10**9,
        fixed_bytes=0,
        bytes_per_token=1,
        windowed=[],
        weights_bytes=0,
        cold_blocks=cold_blocks,
    )


def node_status(**fields: Any) -> NodeStatus:
    """A report of an idle node that can generate, but for what is given."""
    given: dict[str, Any] = {
        "name": "n0",
        "incarnation": "1",
        "model": None,
        "worker": "ready",
        "running": 0,
        "queued": 0,
        "max_running": 8,
        "max_queue": 8,
        "kv_used_bytes": 0,
        "steps": 0,
        "busy_s": 0.0,
        "idle_s": 0.0,
        "preemptions": 0,
        "generated_tokens": 0,
        "prefilled_tokens": 0,
        "cached_tokens": 0,
        "cold_blocks_used": 0,
        "worker_restarts": 0,
        "dropped_frames": 0,
        "worker_dropped_frames": 0,
        "worker_memory_bytes": 0,
    }
    return NodeStatus(**{**given, **fields})


def make_status(name: str, *, cold_blocks: int = 1000, **fields: Any) -> NodeStatus:
    """A node's report; idle, but for what is given."""
    known = {"name": name, "incarnation": name, "model": make_model(cold_blocks)}
    return node_status(**{**known, "max_running": 32, "max_queue": 256, **fields})
