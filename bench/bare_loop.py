"""The limit that a server is measured against: the same model work without scheduler or HTTP.

Usage: `python -m mlxfleet.bench.bare_loop --model DIR --concurrency 8 --max-tokens 32`

Prompts of a wave are prefilled in passes of up to 512 tokens, then all rows decode to the end with
one step in flight and an argmax, and the next wave begins.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import cyclopts
from rich.console import Console

from mlxfleet.bench.peer_options import Commas
from mlxfleet.common.blas import worker_environment

INSIDE = "MLXFLEET_BARE_LOOP"
PASS_TOKENS = 512


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured."""

    model: Path
    """MLX model folder."""

    concurrency: Annotated[tuple[int, ...], Commas] = (1, 8, 32)
    """Rows at once, with commas."""

    prompt_tokens: int = 66
    """Length of a prompt, in tokens; 64 common words have 65 or 66."""

    max_tokens: int = 64
    """Tokens to generate for each row."""

    waves: int = 5
    """How often; the median is reported, after one wave to warm up."""

    blas_threads: int | None = None
    """As for `mlxfleet launch`."""


def run(options: Options) -> None:
    """Measure in this process, which has the worker's environment."""
    # Only the MLX worker imports mlx; this stands in for it.
    from mlxfleet.common.config import WorkerOptions, WorkerProcess
    from mlxfleet.workers.model import load_model

    told = WorkerProcess(
        name="bare-loop",
        model_dir=options.model,
        scheduler_address="",
        max_running=max(options.concurrency),
        max_chunk_tokens=PASS_TOKENS,
        options=WorkerOptions(prefix_cache_gb=0.0, blas_threads=options.blas_threads),
    )
    storage, info = load_model(told)
    console = Console(highlight=False)
    for concurrency in options.concurrency:
        rng = random.Random(concurrency)
        waves = [
            wave(storage, options, concurrency, info.vocab_size, rng)
            for _ in range(options.waves + 1)
        ]
        tokens = concurrency * options.max_tokens
        console.print(f"c={concurrency}: {tokens / median(waves[1:]):,.0f} tokens/s")


def wave(
    storage: Any, options: Options, concurrency: int, vocab_size: int, rng: random.Random
) -> float:
    """Seconds for as many prompts and their answers."""
    import mlx.core as mx

    from mlxfleet.common.messages import Sampling
    from mlxfleet.workers.cpu_head import argmax
    from mlxfleet.workers.row import Chunk, Row
    from mlxfleet.workers.sampling import SamplingRow

    greedy = Sampling(seed=0, max_tokens=options.max_tokens, temperature=0.0)
    prompts = [
        [rng.randrange(vocab_size) for _ in range(options.prompt_tokens)]
        for _ in range(concurrency)
    ]
    storage.reset()
    began = time.perf_counter()
    rows = [Row(str(i), ids, SamplingRow(greedy, ids, 0)) for i, ids in enumerate(prompts)]
    at_once = max(1, PASS_TOKENS // options.prompt_tokens)
    for row in rows:
        storage.add(row)
    for first in range(0, concurrency, at_once):
        chunks = [Chunk(row, row.token_ids[:-1]) for row in rows[first : first + at_once]]
        result = storage.run([], None, chunks)
        mx.eval(result.arrays)
    inputs = mx.array([ids[-1] for ids in prompts], dtype=mx.uint32)
    last = None
    for _ in range(options.max_tokens):
        result = storage.run(rows, inputs, [])
        inputs = argmax(result.logits)[:concurrency]
        mx.async_eval([inputs, *result.arrays])  # type: ignore[no-untyped-call]
        if last is not None:
            last.tolist()
        last = inputs
    mx.eval(inputs)
    return time.perf_counter() - began


def main(options: Options) -> None:
    """Start again with the environment that the worker has, and measure."""
    if os.environ.get(INSIDE):
        run(options)
        return
    environment = {**os.environ, **worker_environment(options.blas_threads), INSIDE: "1"}
    command = [sys.executable, "-m", "mlxfleet.bench.bare_loop", *sys.argv[1:]]
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    cyclopts.run(main)
