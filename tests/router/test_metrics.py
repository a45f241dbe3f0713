"""What the router's metrics show before anything has happened."""

from __future__ import annotations

from mlxfleet.router.metrics import Metrics


def test_counters_begin_at_zero() -> None:
    metrics = Metrics()
    metrics.start_at_zero(["first", "second"])
    lines = metrics.render().decode().splitlines()
    for model in ("first", "second"):
        for outcome in ("ok", "client_error", "cancelled", "backpressure", "error"):
            labels = f'{{endpoint="chat",model="{model}",outcome="{outcome}"}}'
            assert f"mlxfleet_requests_answered_total{labels} 0.0" in lines
        assert f'mlxfleet_prompt_tokens_total{{model="{model}"}} 0.0' in lines
    assert 'mlxfleet_refused_nodes_total{reason="version"} 0.0' in lines
    assert 'mlxfleet_requests_received_total{endpoint="completions"} 0.0' in lines
