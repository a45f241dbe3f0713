"""A simulated node without sockets: the real scheduler on the simulated engine, on a clock that
stands still until somebody waits."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from mlxfleet.common.config import SchedulerOptions, SimOptions
from mlxfleet.common.messages import (
    Admit,
    Drop,
    Generate,
    ModelInfo,
    Party,
    Prefill,
    Sampling,
    SchedulerToWorker,
    Step,
    Store,
)
from mlxfleet.workers.scheduler import Scheduler
from mlxfleet.workers.sim_engine import SimEngine
from mlxfleet.workers.sim_faults import Faults
from mlxfleet.workers.sim_times import SimTimes

EOS = 2
VOCAB_SIZE = 1000
MAX_TURNS = 100_000
OPTIONS = SimOptions(
    engine="sim",
    sim_prefill_tokens_per_s=1000.0,
    sim_step_ms=10.0,
    sim_row_ms=1.0,
    sim_kv_tokens=8192,
    sim_cache_tokens=4096,
)


@dataclass
class Clock:
    """Seconds, as many as somebody says."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def model_of(options: SimOptions) -> ModelInfo:
    return ModelInfo(
        vocab_size=VOCAB_SIZE,
        context_length=4096,
        eos_ids=[EOS],
        kv_budget_bytes=options.sim_kv_tokens,
        fixed_bytes=0,
        bytes_per_token=1,
        windowed=[],
        weights_bytes=0,
        in_slabs=True,
        cold_blocks=options.sim_cache_tokens // 32,
        passes=SimTimes.of(options).passes(),
    )


def engine_of(
    options: SimOptions = OPTIONS, clock: Clock | None = None, faults: Faults | None = None
) -> SimEngine:
    return SimEngine(
        model_of(options),
        SimTimes.of(options),
        faults or Faults(None, "node-0"),
        clock=clock or Clock(),
    )


def obey(engine: SimEngine, command: SchedulerToWorker) -> None:
    match command:
        case Admit():
            engine.admit(command)
        case Prefill():
            engine.prefill(command)
        case Store():
            engine.store(command)
        case Drop():
            engine.drop(command.rid)
        case _:
            raise AssertionError(command)


def admit(
    prompt: list[int],
    output: Iterable[int] = (),
    rid: str = "a",
    max_tokens: int = 20,
    seed: int = 1,
) -> Admit:
    so_far = list(output)
    return Admit(
        rid=rid,
        token_ids=prompt + so_far,
        n_output=len(so_far),
        sampling=Sampling(seed=seed, max_tokens=max_tokens),
    )


def next_step(engine: SimEngine, clock: Clock) -> Step:
    """Wait until a step is due, and make it."""
    due_s = engine.due_s()
    assert due_s < math.inf
    clock.now += due_s
    return engine.step("")


@dataclass
class Node:
    """A node; of each request its tokens and when, in seconds, the first and the last came."""

    options: SimOptions = OPTIONS
    scheduling: SchedulerOptions = field(default_factory=SchedulerOptions)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.scheduling, now=self.clock)
        self.engine = engine_of(self.options, self.clock)
        self.scheduler.worker_ready(model_of(self.options))
        self.tokens: dict[str, list[int]] = {}
        self.first_s: dict[str, float] = {}
        self.done_s: dict[str, float] = {}

    def submit(
        self,
        rid: str,
        prompt: list[int],
        max_tokens: int,
        *,
        party: Party | None = None,
        siblings: bool = False,
    ) -> None:
        self.tokens[rid] = []
        rejected = self.scheduler.submit(
            Generate(
                rid=rid,
                attempt="1",
                detokenizer="d",
                prompt_ids=prompt,
                output_ids=[],
                sampling=Sampling(seed=1, max_tokens=max_tokens),
                party=party or Party(),
                siblings=siblings,
            )
        )
        assert rejected is None

    def turn(self) -> None:
        """Until the next pass is over."""
        for command in self.scheduler.schedule():
            obey(self.engine, command)
        if self.scheduler.held_s > 0:
            # A moment later, or rounding might leave the clock just before.
            self.clock.now += self.scheduler.held_s + 1e-9
            return
        step = next_step(self.engine, self.clock)
        if not step.rids and not step.prefilled:
            return
        for _, tokens in self.scheduler.on_step(step):
            for position, rid in enumerate(tokens.rids):
                assert tokens.starts[position] == len(self.tokens[rid])
                self.tokens[rid] += tokens.ids[position]
                self.first_s.setdefault(rid, self.clock.now)
                if position in tokens.finish:
                    self.done_s[rid] = self.clock.now

    def run(self, *rids: str) -> None:
        """Until these requests are done."""
        for _ in range(MAX_TURNS):
            if all(rid in self.done_s for rid in rids):
                return
            self.turn()
        raise AssertionError("requests do not end")
