"""The child process that shows the limit: the same model work without scheduler, sockets or HTTP.

Prompts of a wave are prefilled in passes of up to 512 tokens, then all rows decode to the end with
one step in flight and an argmax, and the next wave begins. The times of each part's waves go to
standard output as a line of JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

import mlx.core as mx
import msgspec

from mlxfleet.bench.offline.wave import BareLoopProcess, Wave
from mlxfleet.bench.offline.work import Part
from mlxfleet.common.errors import MlxfleetError
from mlxfleet.common.messages import Sampling
from mlxfleet.common.process import bootstrap, fail
from mlxfleet.workers.cpu_argmax import argmax
from mlxfleet.workers.kv_storage import KVStorage
from mlxfleet.workers.model import load_model
from mlxfleet.workers.row import Chunk, Row
from mlxfleet.workers.sampling import SamplingRow

PASS_TOKENS = 512


def run_part(storage: KVStorage, part: Part) -> list[Wave]:
    """As many waves as there are prompts for."""
    began = time.perf_counter()
    waves = []
    for first in range(0, len(part.prompts), part.concurrency):
        prompts = [p.ids for p in part.prompts[first : first + part.concurrency]]
        sent_s = time.perf_counter() - began
        times_s = run_wave(storage, prompts, part.max_tokens)
        waves.append(Wave(sent_s, times_s))
    return waves


def run_wave(storage: KVStorage, prompts: Sequence[list[int]], max_tokens: int) -> list[float]:
    """When each token of all rows was there, in s since the start of the wave."""
    storage.reset()
    began = time.perf_counter()
    greedy = Sampling(seed=0, max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    rows = [Row(str(i), ids, SamplingRow(greedy, ids, 0)) for i, ids in enumerate(prompts)]
    for row in rows:
        storage.add(row)
    for chunks in passes(rows):
        mx.eval(storage.run([], None, chunks).arrays)
    inputs = mx.array([ids[-1] for ids in prompts], dtype=mx.uint32)
    last, times_s = None, []
    for _ in range(max_tokens):
        result = storage.run(rows, inputs, [])
        assert result.logits is not None  # only without rows
        inputs = argmax(result.logits)[: len(rows)]
        mx.async_eval([inputs, *result.arrays])  # type: ignore[no-untyped-call]
        if last is not None:
            last.tolist()
            times_s.append(time.perf_counter() - began)
        last = inputs
    inputs.tolist()
    return [*times_s, time.perf_counter() - began]


def passes(rows: Sequence[Row]) -> Iterator[list[Chunk]]:
    """All prompts but their last tokens, cut and packed into passes."""
    chunks: list[Chunk] = []
    room = PASS_TOKENS
    for row in rows:
        ids = row.token_ids[:-1]
        while ids:
            chunks.append(Chunk(row, ids[:room]))
            ids, room = ids[room:], room - len(chunks[-1].token_ids)
            if room == 0:
                yield chunks
                chunks, room = [], PASS_TOKENS
    if chunks:
        yield chunks


def main() -> None:
    """Load the model, run all parts, end."""
    told = bootstrap(BareLoopProcess)
    try:
        storage, _ = load_model(told.worker)
    except MlxfleetError as error:
        fail(error)
    for part in told.parts:
        sys.stdout.buffer.write(msgspec.json.encode(run_part(storage, part)) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
