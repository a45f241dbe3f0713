"""The engine: rows that prefill, rows that decode, and one step of both at a time.

The next decode step is launched before the last one's tokens are read, so the device works while
Python does. A row that turns out to have ended was decoded once too often; that token is dropped.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from mlxfleet.common.messages import Admit, FinishReason, Prefill, Step
from mlxfleet.workers.kv import Cache, RunningCache, choose_running_cache
from mlxfleet.workers.sampling import Sampled, Sampler, SamplingRow, read_logprobs


@dataclass(eq=False)
class Row:
    """A sequence in the worker. `cache` holds its KV state until it joins the running batch."""

    rid: str
    token_ids: list[int]
    sampling: SamplingRow
    cache: Cache
    prefilled: int = 0
    generated: int = 0
    done: bool = False

    @property
    def prefill_tokens(self) -> int:
        """Tokens to prefill: all but the last, which is the first decode input."""
        return len(self.token_ids) - 1


@dataclass
class InFlight:
    """A launched decode step whose tokens have not been read; `waited_for` if they are there."""

    rows: list[Row]
    sampled: Sampled
    waited_for: bool = False


class Engine:
    """Runs a model over rows. `eos_ids` end a row unless its sampling ignores them."""

    def __init__(self, model: Any, *, vocab_size: int, eos_ids: frozenset[int]) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._cache_type = choose_running_cache(model)
        self.reset()

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._running or self._joining or self._chunks or self._in_flight)

    def reset(self) -> None:
        """Drop every row."""
        self._rows: dict[str, Row] = {}
        self._chunks: deque[tuple[Row | None, Prefill]] = deque()
        self._joining: list[Row] = []
        self._running: list[Row] = []
        self._cache: RunningCache = self._cache_type()
        self._sampler = Sampler()
        self._inputs: mx.array | None = None
        self._in_flight: InFlight | None = None

    def admit(self, message: Admit) -> None:
        """Take a new row; it decodes as soon as its prompt is prefilled."""
        sampling = SamplingRow(message.sampling, message.token_ids, message.n_output)
        row = Row(message.rid, message.token_ids, sampling, make_prompt_cache(self._model))
        row.generated = message.n_output
        self._rows[row.rid] = row
        if row.prefill_tokens == 0:
            self._joining.append(row)

    def prefill(self, message: Prefill) -> None:
        """Queue a prefill chunk; it is reported once, with 0 tokens if its row is gone (also if
        another has come by the same name) or needs no more."""
        self._chunks.append((self._rows.get(message.rid), message))

    def abort(self, rid: str) -> None:
        """Drop a row."""
        if (row := self._rows.pop(rid, None)) is not None:
            row.done = True

    def step(self, epoch: str) -> Step:
        """Launch the next decode step, read the last one, run one prefill chunk."""
        began = time.perf_counter()
        last, self._in_flight = self._in_flight, None
        self._drop_done()
        self._join()
        if self._running:
            self._in_flight = self._launch()
        step = self._read(last, epoch)
        if self._chunks:
            self._run_next_chunk(step, began)
        elif last is not None and self._in_flight is not None and not last.waited_for:
            step.decode_s = time.perf_counter() - began
        return step

    def _run_next_chunk(self, step: Step, began: float) -> None:
        """Run a prefill chunk after the launched decode step, which began at `began`."""
        if self._in_flight is not None:
            # The chunk runs after it anyway; waiting tells their times apart.
            mx.eval(self._in_flight.sampled.arrays())
            self._in_flight.waited_for = True
            step.decode_s = time.perf_counter() - began
        began = time.perf_counter()
        step.prefilled.append(self._run_chunk(*self._chunks.popleft()))
        step.prefill_s = time.perf_counter() - began

    def _drop_done(self) -> None:
        """Take finished and aborted rows out of the batch."""
        keep = [i for i, row in enumerate(self._running) if not row.done]
        if len(keep) == len(self._running):
            return
        self._running = [self._running[i] for i in keep]
        self._cache.keep(keep)
        self._sampler.keep(keep)
        self._inputs = self._inputs[mx.array(keep)] if keep and self._inputs is not None else None

    def _join(self) -> None:
        """Move rows whose prompts are prefilled into the batch."""
        rows = [row for row in self._joining if not row.done]
        self._joining = []
        if not rows:
            return
        self._cache.join([row.cache for row in rows])
        self._sampler.join([row.sampling for row in rows], self._vocab_size)
        self._running.extend(rows)
        inputs = mx.array([row.token_ids[-1] for row in rows], dtype=mx.uint32)
        self._inputs = inputs if self._inputs is None else mx.concatenate([self._inputs, inputs])
        for row in rows:
            row.cache = []

    def _launch(self) -> InFlight:
        """Start computing the next token of every running row."""
        assert self._inputs is not None
        sampled = self._sampler(self._cache.forward(self._model, self._inputs))
        mx.async_eval(sampled.arrays())  # type: ignore[no-untyped-call]
        self._inputs = sampled.tokens
        return InFlight(list(self._running), sampled)

    def _read(self, launched: InFlight | None, epoch: str) -> Step:
        """Wait for a launched step and report the tokens of the rows that still want them."""
        step = Step(
            epoch=epoch,
            rids=[],
            ids=[],
            finish={},
            logprobs={},
            prefilled=[],
            decode_s=0.0,
            prefill_s=0.0,
        )
        if launched is None:
            return step
        tokens: Any = launched.sampled.tokens.tolist()
        logprobs = read_logprobs(launched.sampled, [row.sampling for row in launched.rows])
        for index, (row, token) in enumerate(zip(launched.rows, tokens, strict=True)):
            if row.done:
                continue
            row.generated += 1
            position = len(step.rids)
            step.rids.append(row.rid)
            step.ids.append(token)
            if index in logprobs:
                step.logprobs[position] = logprobs[index]
            if reason := self._finish_reason(row, token):
                step.finish[position] = reason
                self.abort(row.rid)
        return step

    def _finish_reason(self, row: Row, token: int) -> FinishReason | None:
        sampling = row.sampling.sampling
        if token in self._eos_ids and not sampling.ignore_eos:
            return "stop"
        return "length" if row.generated >= sampling.max_tokens else None

    def _run_chunk(self, row: Row | None, chunk: Prefill) -> tuple[str, int]:
        """Run the next prompt tokens of a row; returns (rid, tokens run)."""
        if row is None or row.done or row.prefilled == row.prefill_tokens:
            return chunk.rid, 0
        end = min(row.prefilled + chunk.tokens, row.prefill_tokens)
        tokens = row.token_ids[row.prefilled : end]
        self._model(mx.array(tokens)[None], cache=row.cache)
        mx.eval([layer.state for layer in row.cache])
        row.prefilled = end
        if end == row.prefill_tokens:
            self._joining.append(row)
        return chunk.rid, len(tokens)
