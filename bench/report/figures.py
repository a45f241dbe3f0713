"""The figures that reports show, and what they are called."""

from __future__ import annotations

from mlxfleet.bench.compare.figure import Figure

OUTPUT_RATE = Figure("output_tokens_per_s")
REQUEST_RATE = Figure("requests_per_s")
GOODPUT = Figure("goodput_per_s")
TIMES = [
    Figure(f"{time}_ms.{part}")
    for time in ("ttft", "tpot", "itl", "e2e")
    for part in ("p50", "p99")
]
FIGURES = [OUTPUT_RATE, REQUEST_RATE, GOODPUT, *TIMES]

NAMES = {
    "output_tokens_per_s": "output tokens/s",
    "input_tokens_per_s": "input tokens/s",
    "cached_tokens_per_s": "cached tokens/s",
    "requests_per_s": "requests/s",
    "goodput_per_s": "goodput, requests/s",
    "within_slos": "share within SLOs",
    "duration_s": "duration, s",
    "longest_gap_ms": "longest gap, ms",
}


def name_of(figure: Figure) -> str:
    """What a figure is called: `ttft_ms.p50` is TTFT p50."""
    time, dot, part = figure.path.partition("_ms.")
    return f"{time.upper()} {part}" if dot else NAMES.get(figure.path, figure.path)
