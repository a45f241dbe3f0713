"""Runs requests through an Engine as a scheduler would, and alone through mlx-lm."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step

from mlxfleet.common.messages import Admit, FinishReason, Prefill, Sampling, Step, TokenLogprobs
from mlxfleet.workers.engine import Engine
from mlxfleet.workers.kv_storage import KVStorage, create_storage, slab_layout
from mlxfleet.workers.mlx_lm_storage import prefill
from tests.workers.tiny_models import VOCAB_SIZE

MAX_STEPS = 1000
BUDGET_BYTES = 10**9
COLD_BLOCKS = 64


def storage_for(model: Any, *, slabs: bool = True, kv_bits: int | None = None) -> KVStorage:
    """The storage that the model would get, or mlx-lm's."""
    layout = slab_layout(model, prefill(model, [1, 2, 3]), kv_bits) if slabs else None
    return create_storage(
        model, layout, budget_bytes=BUDGET_BYTES, cold_blocks=COLD_BLOCKS if layout else 0
    )


def engine_for(model: Any, eos_ids: Iterable[int] = (), *, slabs: bool = True) -> Engine:
    """An engine over a model of tiny_models."""
    return Engine(
        storage_for(model, slabs=slabs), vocab_size=VOCAB_SIZE, eos_ids=frozenset(eos_ids)
    )


@dataclass(kw_only=True)
class Request:
    """`arrives` is the number of the step before which it is admitted. It is aborted as soon as
    `abort_after` (prompt tokens prefilled, output tokens) are reached."""

    rid: str
    prompt: list[int]
    output: list[int] = field(default_factory=list)
    sampling: Sampling
    arrives: int = 0
    abort_after: tuple[int, int] | None = None


@dataclass
class Result:
    """What an engine reported for a request."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: FinishReason | None = None
    failed: bool = False
    prefilled: int = 0


class Driver:
    """Admits requests when they are due and sends one prefill chunk a step, in turns to the rows
    that need one, so that chunks of several rows and decode steps alternate."""

    def __init__(self, engine: Engine, requests: Sequence[Request], chunks: Iterable[int]) -> None:
        self.engine = engine
        self.waiting = list(requests)
        self.watched = [request for request in requests if request.abort_after is not None]
        self.to_prefill: dict[str, int] = {}
        self.chunks = itertools.cycle(chunks)
        self.results = {request.rid: Result() for request in requests}

    def run(self) -> dict[str, Result]:
        """Step until everything has ended."""
        for number in range(MAX_STEPS):
            self.admit(number)
            self.send_chunk()
            self.take(self.engine.step("epoch"))
            self.abort()
            if not (self.waiting or self.to_prefill or self.engine.busy):
                return self.results
        raise AssertionError(f"not done after {MAX_STEPS} steps")

    def admit(self, number: int) -> None:
        for request in [r for r in self.waiting if r.arrives <= number]:
            self.waiting.remove(request)
            token_ids = request.prompt + request.output
            self.engine.admit(
                Admit(
                    rid=request.rid,
                    token_ids=token_ids,
                    n_output=len(request.output),
                    sampling=request.sampling,
                )
            )
            if len(token_ids) > 1:
                self.to_prefill[request.rid] = len(token_ids) - 1

    def send_chunk(self) -> None:
        if not self.to_prefill:
            return
        rid = next(iter(self.to_prefill))
        missing = self.to_prefill.pop(rid)
        size = min(next(self.chunks), missing)
        self.engine.prefill(Prefill([rid], [size]))
        if missing > size:
            self.to_prefill[rid] = missing - size

    def take(self, step: Step) -> None:
        for position, (rid, token) in enumerate(zip(step.rids, step.ids, strict=True)):
            result = self.results[rid]
            assert result.finish is None, "a token after the end"
            assert not result.failed, "a token after the failure"
            if position in step.failed:
                result.failed = True
                self.engine.drop(rid)
                continue
            result.ids.append(token)
            if position in step.logprobs:
                result.logprobs.append(step.logprobs[position])
            result.finish = step.finish.get(position)
            if result.finish:
                self.engine.drop(rid)
        for rid, tokens in step.prefilled:
            self.results[rid].prefilled += tokens

    def abort(self) -> None:
        for request in list(self.watched):
            assert request.abort_after is not None
            result = self.results[request.rid]
            if (result.prefilled, len(result.ids)) >= request.abort_after:
                self.watched.remove(request)
                self.to_prefill.pop(request.rid, None)
                self.engine.drop(request.rid)


@dataclass
class Reference:
    """Greedy tokens of mlx-lm with their log-probabilities, and the least lead of a chosen token
    over the next best."""

    ids: list[int]
    logprobs: list[float]
    lead: float


def generate_alone(model: Any, prompt: Sequence[int], max_tokens: int) -> Reference:
    """What mlx-lm generates for a prompt that has the model to itself."""
    reference = Reference([], [], float("inf"))
    for token, logprobs in generate_step(mx.array(prompt), model, max_tokens=max_tokens):
        second, first = mx.sort(logprobs)[-2:].tolist()
        reference.ids.append(int(token))
        reference.logprobs.append(first)
        reference.lead = min(reference.lead, first - second)
    return reference
