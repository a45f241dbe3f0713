"""What the runs of a sweep are, and the conversations of each."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from msgspec import Struct

from mlxfleet.bench.arrivals import Arrival, ClosedLoop, OpenLoop, gamma_times, replay_times
from mlxfleet.bench.conversations import Conversation, of_prompts
from mlxfleet.bench.lengths import parse_lengths
from mlxfleet.bench.prompt_tokens import WordBook
from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.serve_options import ArrivalOptions, DataOptions
from mlxfleet.bench.sharegpt import read_sharegpt, sharegpt
from mlxfleet.bench.synthetic import Shape, synthetic
from mlxfleet.bench.traces import Line, read_lines, requests_of, timestamps_s
from mlxfleet.common.errors import ConfigError

DEFAULT_CONCURRENCY = 8
DEFAULT_OUTPUT_TOKENS = "64"
REQUESTS_PER_STREAM = 8
LEAST_REQUESTS = 100
# All texts are made before a run, so that making them does not slow the client down in it.
MOST_CHARACTERS = 2**30
REST_EVERY_S = 0.1


class Plan(Struct, frozen=True, kw_only=True):
    """A run of the sweep: either of the first two, or else the trace's timestamps."""

    concurrency: int | None = None
    rate: float | None = None
    seed: int

    def described(self, options: ArrivalOptions) -> dict[str, Any]:
        """As it is written down."""
        if self.concurrency is not None:
            return {"kind": "closed_loop", "concurrency": self.concurrency}
        if self.rate is not None:
            # JSON has no infinite numbers.
            rate = "inf" if math.isinf(self.rate) else self.rate
            burstiness = options.burstiness
            return {"kind": "open_loop", "request_rate": rate, "burstiness": burstiness}
        return {"kind": "replay", "trace_speed": options.trace_speed}


def plans(arrival: ArrivalOptions, data: DataOptions) -> list[Plan]:
    """One for each concurrency or rate, in the order given."""
    if arrival.request_rate:
        return [Plan(rate=r, seed=data.seed + i) for i, r in enumerate(arrival.request_rate)]
    if data.trace is not None and not arrival.concurrency:
        return [Plan(seed=data.seed)]
    concurrencies = arrival.concurrency or (DEFAULT_CONCURRENCY,)
    return [Plan(concurrency=c, seed=data.seed + i) for i, c in enumerate(concurrencies)]


class Source:
    """Where conversations come from; files are read once."""

    def __init__(self, data: DataOptions, book: WordBook | None) -> None:
        """ConfigError if something is needed that is not there."""
        self._data = data
        self._book = book
        self._lines: list[Line] = []
        output = data.output_tokens
        if data.trace is not None:
            self._lines = read_lines(data.trace, "--trace")
        elif data.prompts is not None:
            self._lines = read_lines(data.prompts, "--prompts")
        elif data.sharegpt is not None:
            self._talks = read_sharegpt(data.sharegpt)
        elif book is None:
            raise ConfigError(
                "random prompts need the model's tokenizer to have the right length: give"
                " --tokenizer DIR, or prompts with --sharegpt or --prompts"
            )
        self._output = parse_lengths(output or DEFAULT_OUTPUT_TOKENS, "--output-tokens")

    async def conversations(self, plan: Plan, requests: int | None) -> list[Conversation]:
        """Those of a run, cut at its number of requests."""
        return await take(self._endless(f"{plan.seed}"), self.wanted(plan, requests))

    def wanted(self, plan: Plan, requests: int | None) -> int:
        """How many requests a run has."""
        if requests is not None:
            return requests
        if self._data.trace is not None:
            return len(self._lines)
        return max(REQUESTS_PER_STREAM * (plan.concurrency or 0), LEAST_REQUESTS)

    def _endless(self, seed: str) -> Iterable[Conversation]:
        data, book = self._data, self._book
        count_prompt = book.count_prompt if book else None
        if self._lines:
            return requests_of(self._lines, book, count_prompt, self._output, seed)
        if data.sharegpt is not None:
            output = self._output if data.output_tokens else None
            count = book.count if book else None
            return sharegpt(self._talks, data.turns, output, count_prompt, count, seed)
        if book is None:
            raise ConfigError("random prompts need --tokenizer")
        shape = Shape(
            input=parse_lengths(data.input_tokens, "--input-tokens"),
            output=self._output,
            turns=data.turns,
            groups=data.prefix_groups,
            prefix_tokens=data.prefix_tokens,
            think_s=data.think_s,
        )
        return synthetic(shape, book, seed)

    def arrival(self, plan: Plan, options: ArrivalOptions, count: int) -> Arrival:
        """When `count` conversations begin."""
        if plan.concurrency is not None:
            return ClosedLoop(plan.concurrency)
        if plan.rate is not None:
            rng = random.Random(f"{plan.seed}/arrival")
            return OpenLoop(gamma_times(plan.rate, options.burstiness, count, rng))
        return OpenLoop(replay_times(timestamps_s(self._lines)[:count], options.trace_speed))


async def take(made: Iterable[Conversation], requests: int) -> list[Conversation]:
    """Conversations of so many requests together, or of fewer if there are no more. ConfigError if
    they are too much text. Can be cancelled while it makes them."""
    found: list[Conversation] = []
    left, characters, rest_at = requests, 0, 0.0
    for conversation in made:
        turns = conversation.turns[:left]
        found.append(Conversation(turns, conversation.before))
        left -= len(turns)
        characters += sum(len(turn.text) for turn in turns)
        if characters > MOST_CHARACTERS:
            raise ConfigError("the prompts are more than 1 GB of text: lower --requests")
        if left == 0:
            break
        if time.perf_counter() > rest_at:
            await asyncio.sleep(0)
            rest_at = time.perf_counter() + REST_EVERY_S
    return found


def warm_up(conversations: Sequence[Conversation], count: int, seed: str) -> list[Conversation]:
    """`count` requests of random words, as long in words as the first of a run are, so that nothing
    of the run is cached by them."""
    found = []
    for number, conversation in enumerate(islice(conversations, count)):
        first = conversation.turns[0]
        words = max(len(first.text.split()), 1)
        prompts = random_prompts(1, words, seed=f"{seed}/warm-up/{number}")
        found += of_prompts(prompts, first.max_tokens)
    return found
