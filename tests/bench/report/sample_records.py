"""Files of records as measurements would leave them, made up from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlxfleet.bench.figures import summarize
from mlxfleet.bench.machine import Machine
from mlxfleet.bench.records import (
    ClientCost,
    Comparison,
    Failure,
    GitState,
    Record,
    Request,
    Round,
    Run,
    Sample,
    Verdict,
    encode_line,
)
from mlxfleet.common.messages import Telemetry

BEGAN = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
MACHINE = Machine(
    platform="macOS-26.1-arm64",
    processor="Apple M3 Ultra",
    cpu_count=32,
    usable_cpus=32,
    memory_bytes=512 * 10**9,
    load_average=(1.2, 1.0, 0.9),
    blas_settings={"OPENBLAS_CORETYPE": "Haswell"},
)
CLIENT = ClientCost(cpu_share=0.07, event_lag_p99_ms=0.6, late_sends_p99_ms=0.9, saturated=False)
TOKENS = 64


def make_run(
    name: str,
    arrival: dict[str, Any],
    *,
    at_s: float = 0.0,
    side: str = "",
    round_number: int = 0,
    **changes: Any,
) -> Run:
    """A run that began so long after the first."""
    settings: dict[str, Any] = {
        "id": name,
        "began": (BEGAN + timedelta(seconds=at_s)).isoformat(),
        "url": "http://127.0.0.1:8000",
        "endpoint": "completions",
        "model": "SmolLM2-135M",
        "arrival": arrival,
        "data": {"dataset": "synthetic", "input_tokens": 64, "output_tokens": TOKENS},
        "slos": {"ttft": 500.0, "tpot": 50.0},
        "seed": 7,
        "command_line": ["/opt/venv/bin/mlxfleet", "bench", "serve", "http://127.0.0.1:8000"],
        "machine": MACHINE,
        "versions": {"python": "3.13.1", "mlx": "0.32.4", "mlxfleet": "0.1.0"},
        "git": GitState(commit="0123456789abcdef0123", dirty=True),
        "server": {"engine": "mlx", "nodes": 1},
        "side": side,
        "round": round_number,
    }
    return Run(**{**settings, **changes})


def make_requests(
    run: Run, rng: random.Random, *, streams: int, each: int, ttft_s: float, gap_s: float
) -> list[Request]:
    """Closed loop, with times around these; the last one of many fails."""
    found = []
    for stream in range(streams):
        now = 0.0
        for _ in range(each):
            times = [ttft_s * rng.lognormvariate(0.0, 0.35)]
            while len(times) < TOKENS:
                times.append(times[-1] + gap_s * rng.lognormvariate(0.0, 0.25))
            found.append(
                Request(
                    run=run.id,
                    index=len(found),
                    conversation=stream,
                    due_s=now,
                    sent_s=now,
                    duration_s=times[-1] + 0.001,
                    token_times_s=times,
                    input_tokens=64,
                    cached_tokens=0,
                    output_tokens=TOKENS,
                    finish_reason="length",
                )
            )
            now += times[-1] + 0.002
    if len(found) > 40:
        found[-1].error = Failure("http_503", "no node can generate <script>alert(1)</script>")
    return found


def make_samples(run: Run, seconds: float, heat: float) -> list[Sample]:
    """A machine that gets hot: `heat` 0 is cool, 1 throttles."""
    found = []
    for second in range(math.ceil(seconds) + 1):
        warm = heat + 0.02 * second
        telemetry = Telemetry(
            source="macos",
            cpu_temperature_c=48 + 30 * warm,
            gpu_temperature_c=51 + 38 * warm,
            cpu_power_w=22.0 + second % 3,
            gpu_power_w=96 - 26 * warm,
            gpu_frequency_hz=1.38e9 * (1 - 0.25 * min(1.0, warm)),
            gpu_utilization=0.97,
            memory_pressure=1 if warm > 0.9 else 0,
            memory_total_bytes=512 * 10**9,
            memory_used_bytes=int(190e9 + 1e9 * second),
            thermal_state=int(min(2, 2.5 * warm)),
        )
        found.append(Sample(run=run.id, at_s=float(second), telemetry=telemetry))
    return found


def sweep(
    sides: dict[str, float], loads: Iterable[int] = (1, 4, 16, 32), *, rounds: int = 1
) -> Iterator[Record]:
    """A sweep over concurrencies of several sides, each with its slowness; one side "" is a plain
    sweep. The machine gets hotter, the largest load saturates the client of the first side."""
    rng, now, loads = random.Random(1), 0.0, list(loads)
    for number in range(rounds):
        for side, slowness in sides.items():
            for load in loads:
                name = f"{side}-{number}-{load}"
                run = make_run(
                    name,
                    {"kind": "closed_loop", "concurrency": load},
                    at_s=now,
                    side=side,
                    round_number=number,
                )
                gap_s = slowness * (0.006 + 0.0006 * load)
                requests = make_requests(
                    run,
                    rng,
                    streams=load,
                    each=4,
                    ttft_s=slowness * (0.02 + 0.004 * load),
                    gap_s=gap_s,
                )
                why = "its event loop was 31 ms late"
                client = (
                    ClientCost(
                        cpu_share=0.98,
                        event_lag_p99_ms=31.0,
                        late_sends_p99_ms=40.0,
                        saturated=True,
                        why=why,
                    )
                    if load == 32 and number == 0 and side == next(iter(sides))
                    else CLIENT
                )
                summary = summarize(run.id, requests, run.slos, client)
                yield run
                yield from requests
                yield from make_samples(run, summary.duration_s, min(1.0, now / 40))
                yield summary
                now += summary.duration_s + 1.0


def comparison(blocks: int = 6) -> Iterator[Record]:
    """B, 4% faster, against A, on a machine that drifts; one round is thrown out and repeated."""
    rng, now, values = random.Random(2), 0.0, {"A": 1.0, "B": 0.96}
    yield Comparison(
        began=BEGAN.isoformat(),
        command_line=["/opt/venv/bin/mlxfleet", "bench", "compare", "A", "B"],
        sides={"A": "http://127.0.0.1:8001", "B": "/srv/bin/serve --port 8002"},
        figure="output_tokens_per_s",
        higher_is_better=True,
        options={"blocks": blocks, "gate": ">=1.0"},
        machine=MACHINE,
    )
    for number in range(2 * blocks):
        block, second = divmod(number, 2)
        if not second:
            order = rng.choice((["A", "B"], ["B", "A"]))
        for out in ["memory pressure rose to warning", ""] if number == 5 else [""]:
            for side in order[::-1] if second else order:
                name = f"{side}-{number}-{bool(out)}"
                run = make_run(
                    name,
                    {"kind": "closed_loop", "concurrency": 8},
                    at_s=now,
                    side=side,
                    round_number=number,
                )
                slowness = values[side] * (1 + 0.3 * now / 60) * rng.gauss(1.0, 0.008)
                slowness *= 1.15 if out and side == "B" else 1.0
                requests = make_requests(
                    run, rng, streams=8, each=3, ttft_s=0.05 * slowness, gap_s=0.008 * slowness
                )
                summary = summarize(run.id, requests, run.slos, CLIENT)
                yield run
                yield from requests
                yield from make_samples(run, summary.duration_s, now / 60)
                yield summary
                yield Round(
                    number=number,
                    block=block,
                    side=side,
                    run=name,
                    value=summary.output_tokens_per_s,
                    cooled_s=1.5,
                    thrown_out=out,
                )
                now += summary.duration_s + 1.5
    yield Verdict(
        side="B",
        against="A",
        figure="output_tokens_per_s",
        rounds=2 * blocks,
        ratio=1.041,
        low=1.029,
        high=1.054,
        confidence=0.95,
        verdict="faster",
        smallest_visible=0.018,
    )


def write(path: Path, records: Iterable[Record]) -> Path:
    """A file of records."""
    with path.open("wb") as file:
        for record in records:
            file.write(encode_line(record))
    return path
