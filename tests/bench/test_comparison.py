"""Medians over rounds and ratios to the best peer."""

from __future__ import annotations

from mlxfleet.bench.comparison import Measurement, medians, ratios
from mlxfleet.bench.figures import summarize
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.records import ClientCost, Request


def measure(server: str, round_number: int, concurrency: int, seconds: float) -> Measurement:
    """A server that makes two tokens in this time."""
    request = Request(
        run="",
        index=0,
        due_s=0.0,
        sent_s=0.0,
        duration_s=seconds,
        token_times_s=[seconds / 2, seconds],
        output_tokens=2,
        finish_reason="length",
    )
    cost = ClientCost(cpu_share=0, event_lag_p99_ms=0, late_sends_p99_ms=0, saturated=False)
    return Measurement(
        server=server,
        round=round_number,
        concurrency=concurrency,
        summary=summarize("", [request], {}, cost),
        processes=[],
        served_cpu_s=0.0,
        other_cpu_s=0.0,
        other_cpu_share=0.0,
        failures=[],
    )


def test_median_is_taken_for_each_server_and_concurrency() -> None:
    runs = [measure("ours", number, 8, seconds) for number, seconds in enumerate([1, 2, 4])]
    runs += [measure("ours", 0, 1, 5), measure("peer", 0, 8, 10)]
    rows = medians(runs)
    assert [(row.concurrency, row.server, row.rounds) for row in rows] == [
        (1, "ours", 1),
        (8, "ours", 3),
        (8, "peer", 1),
    ]
    assert rows[1].output_tokens_per_s == 1.0
    assert (rows[1].lowest_output_tokens_per_s, rows[1].highest_output_tokens_per_s) == (0.5, 2.0)


def test_ratio_is_to_the_peer_that_is_best_in_the_figure() -> None:
    rows = medians([measure("ours", 0, 8, 1), measure("slow", 0, 8, 4), measure("fast", 0, 8, 2)])
    found = {ratio.figure: ratio for ratio in ratios(rows, "ours")}
    assert (found["output tokens/s"].best_peer, found["output tokens/s"].ratio) == ("fast", 2.0)
    assert (found["TTFT p50"].best_peer, found["TTFT p50"].ratio) == ("fast", 0.5)


def test_without_peers_there_are_no_ratios() -> None:
    assert ratios(medians([measure("ours", 0, 8, 1)]), "ours") == []


def test_prompts_are_the_same_for_a_seed_and_differ_otherwise() -> None:
    prompts = random_prompts(20, 64, seed="a")
    assert prompts == random_prompts(20, 64, seed="a")
    assert len({*prompts, *random_prompts(20, 64, seed="b")}) == 40
    assert all(len(prompt.split()) == 64 for prompt in prompts)
