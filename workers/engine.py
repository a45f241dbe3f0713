"""The engine: rows that prefill, rows that decode, and passes that do both at once.

The next pass is launched before the last one's tokens are read, so the device works while Python
does. A row that turns out to have ended was decoded once too often; that token is dropped.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxfleet.common.messages import Admit, FinishReason, Prefill, Step, Store
from mlxfleet.workers.cpu_argmax import NOT_FINITE
from mlxfleet.workers.kv_storage import KVStorage
from mlxfleet.workers.prefill_queue import PrefillQueue
from mlxfleet.workers.row import Chunk, Row
from mlxfleet.workers.sampling import Sampled, Sampler, SamplingRow, read_logprobs


@dataclass
class InFlight:
    """A launched pass of which nothing has been read; `prefilled` is what it does for prompts.

    `seconds` is the time that the engine has been held up by it, `idle_s` how long the device had
    nothing to do before it. Launching takes no time on a GPU, and almost all of the pass on a CPU,
    where MLX lets only a few operations wait; reading takes the rest.
    """

    rows: list[Row]
    sampled: Sampled | None
    marker: mx.array | None
    prefilled: list[tuple[str, int]]
    seconds: float
    idle_s: float


class Engine:
    """Runs rows in a storage. `eos_ids` end a row unless its sampling ignores them."""

    def __init__(self, storage: KVStorage, *, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self._storage = storage
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._idle_since: float | None = None
        self.reset()

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running or self._joining or self._prefills or self._in_flight)

    def due_s(self) -> float:
        """Seconds until a step does something: it waits for the device itself."""
        return 0.0 if self.busy else math.inf

    @property
    def memory_bytes(self) -> int:
        """Memory that MLX has in use."""
        return int(mx.get_active_memory())

    @property
    def cache_bytes(self) -> int:
        """Memory that MLX keeps for reuse."""
        return int(mx.get_cache_memory())

    @property
    def peak_bytes(self) -> int:
        """The most memory that MLX has had in use."""
        return int(mx.get_peak_memory())

    def close(self) -> None:
        """Give the memory back."""
        self.reset()
        mx.clear_cache()

    def reset(self) -> None:
        """Drop every row."""
        self._storage.reset()
        self._rows: dict[str, Row] = {}
        self._prefills: PrefillQueue[Row] = PrefillQueue()
        self._joining: list[Row] = []
        self._running: list[Row] = []
        self._sampler = Sampler()
        self._inputs: mx.array | None = None
        self._in_flight: InFlight | None = None
        self._idle_since = None

    def admit(self, message: Admit) -> None:
        """Take a new row; it decodes as soon as its prompt is prefilled."""
        self.drop(message.rid)
        sampling = SamplingRow(message.sampling, message.token_ids, message.n_output)
        row = Row(message.rid, message.token_ids, sampling)
        row.generated = message.n_output
        row.prefilled = min(message.cached_tokens, row.prefill_tokens)
        self._storage.add(row)
        if row.prefilled:
            self._storage.load(row, message.cached_blocks, row.prefilled)
        self._rows[row.rid] = row
        if row.prefilled == row.prefill_tokens:
            self._joining.append(row)

    def prefill(self, message: Prefill) -> None:
        """Queue a pass's prefill."""
        self._prefills.add(message, self._rows)

    def store(self, message: Store) -> None:
        """Copy a row's tokens to the cold store. A row that has ended is here until `drop`."""
        if (row := self._rows.get(message.rid)) is not None:
            self._storage.store(row, message.start, message.blocks)

    def drop(self, rid: str) -> None:
        """Forget a row in any state."""
        if (row := self._rows.pop(rid, None)) is not None:
            row.done = True
            self._storage.drop(row)

    def step(self, epoch: str) -> Step:
        """Launch the next pass, then read the last one."""
        last, self._in_flight = self._in_flight, None
        chunks, prefilled = self._next_chunks()
        self._change_rows()
        if self._running or chunks:
            self._in_flight = self._launch(chunks, prefilled)
            prefilled = []
        step = self._read(last, epoch)
        step.prefilled += prefilled
        return step

    def _next_chunks(self) -> tuple[list[Chunk], list[tuple[str, int]]]:
        """The prefill of the next pass, and the report on it."""
        decoding = any(not row.done for row in self._running)
        pieces, report = self._prefills.take(decoding=decoding)
        chunks = []
        for row, start, end in pieces:
            chunks.append(Chunk(row, row.token_ids[start:end]))
            if end == row.prefill_tokens:
                self._joining.append(row)
        return chunks, report

    def _change_rows(self) -> None:
        """Take finished and dropped rows out of the batch, put those in that have their prompt."""
        keep = [i for i, row in enumerate(self._running) if not row.done]
        if len(keep) < len(self._running):
            self._running = [self._running[i] for i in keep]
            self._sampler.keep(keep)
            inputs = self._inputs
            self._inputs = inputs[mx.array(keep)] if keep and inputs is not None else None
        rows = [row for row in self._joining if not row.done]
        self._joining = []
        if not rows:
            return
        self._sampler.join([row.sampling for row in rows], self._vocab_size)
        self._running.extend(rows)
        inputs = mx.array([row.token_ids[-1] for row in rows], dtype=mx.uint32)
        self._inputs = inputs if self._inputs is None else mx.concatenate([self._inputs, inputs])

    def _launch(self, chunks: list[Chunk], prefilled: list[tuple[str, int]]) -> InFlight:
        """Start computing the next token of every running row, and the chunks."""
        began = time.perf_counter()
        idle_s = 0.0 if self._idle_since is None else began - self._idle_since
        self._idle_since = None
        result = self._storage.run(self._running, self._inputs, chunks)
        sampled = None
        arrays = list(result.arrays)
        if result.marker is not None:
            arrays.append(result.marker)
        if result.logits is not None:
            sampled = self._sampler(result.logits)
            self._inputs = sampled.tokens
            arrays += sampled.arrays()
        mx.async_eval(arrays)  # type: ignore[no-untyped-call]
        seconds = time.perf_counter() - began
        return InFlight(list(self._running), sampled, result.marker, prefilled, seconds, idle_s)

    def _read(self, launched: InFlight | None, epoch: str) -> Step:
        """Wait for a launched pass and report what it did for the rows that still want it."""
        step = Step(epoch=epoch)
        if launched is None:
            return step
        step.prefilled = launched.prefilled
        began = time.perf_counter()
        if launched.sampled is not None:
            mx.eval(launched.sampled.arrays())
        elif launched.marker is not None:
            mx.eval(launched.marker)
        now = time.perf_counter()
        step.decoded_rows = len(launched.rows)
        step.pass_s = launched.seconds + now - began
        step.idle_s = launched.idle_s
        if launched.sampled is not None:
            self._read_tokens(launched.rows, launched.sampled, step)
        if self._in_flight is None and any(not row.done for row in self._rows.values()):
            self._idle_since = now
        return step

    def _read_tokens(self, rows: list[Row], sampled: Sampled, step: Step) -> None:
        tokens: Any = sampled.tokens.tolist()
        logprobs = read_logprobs(sampled, [row.sampling for row in rows])
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row.done:
                continue
            row.generated += 1
            position = len(step.rids)
            step.rids.append(row.rid)
            step.ids.append(max(token, 0))
            if token == NOT_FINITE:
                step.failed[position] = "not_finite"
                row.done = row.failed = True
                continue
            if index in logprobs:
                step.logprobs[position] = logprobs[index]
            if reason := self._finish_reason(row, token):
                step.finish[position] = reason
                row.done = True

    def _finish_reason(self, row: Row, token: int) -> FinishReason | None:
        sampling = row.sampling.sampling
        if token in self._eos_ids and not sampling.ignore_eos:
            return "stop"
        return "length" if row.generated >= sampling.max_tokens else None
