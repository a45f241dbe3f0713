"""What is computed at every border: the same prompts, of which each gets as many tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from msgspec import Struct

from mlxfleet.bench.prompts import random_prompts
from mlxfleet.bench.records import ClientCost, Request
from mlxfleet.common.tokenizer_files import load_fast_tokenizer

WARM_UP_TOKENS = 8


class Prompt(Struct, frozen=True):
    """As text, and as the token ids that the server would make of it."""

    text: str
    ids: list[int]


class Part(Struct, frozen=True, kw_only=True):
    """Prompts that `concurrency` streams go through, each with `max_tokens` to generate."""

    concurrency: int
    prompts: list[Prompt]
    max_tokens: int


class Pair(Struct, frozen=True):
    """What is measured, and what is run before it, which is not."""

    warm_up: Part
    measured: Part


class Outcome(Struct, frozen=True):
    """What came of a part."""

    requests: list[Request]
    client: ClientCost


Run = Callable[[Part], Awaitable[Outcome]]
Ended = Callable[[Part, Outcome], None]


class Workload:
    """Makes the parts of a round; the same for the same seed."""

    def __init__(self, model_dir: Path, *, words: int, max_tokens: int, requests: int) -> None:
        """`requests` is what each stream sends, one after the other. ModelError if the model has no
        fast tokenizer."""
        self._tokenizer = load_fast_tokenizer(model_dir, trust_remote_code=False)
        self._words = words
        self._max_tokens = max_tokens
        self._requests = requests

    def pairs(self, concurrencies: Sequence[int], seed: str) -> list[Pair]:
        """One for each concurrency. No two prompts of a round share a prefix."""
        return [
            Pair(
                self._part(c, c, min(self._max_tokens, WARM_UP_TOKENS), f"{seed}/{c}/warm-up"),
                self._part(c, c * self._requests, self._max_tokens, f"{seed}/{c}"),
            )
            for c in concurrencies
        ]

    def _part(self, concurrency: int, count: int, max_tokens: int, seed: str) -> Part:
        texts = random_prompts(count, self._words, seed=seed)
        ids = [self._tokenizer.encode(text, add_special_tokens=True).ids for text in texts]
        prompts = [Prompt(text, tokens) for text, tokens in zip(texts, ids, strict=True)]
        return Part(concurrency=concurrency, prompts=prompts, max_tokens=max_tokens)


async def run_pairs(run: Run, pairs: Sequence[Pair], ended: Ended) -> None:
    """All warm-ups, then all parts; `ended` is told of each part at once."""
    for pair in pairs:
        await run(pair.warm_up)
    for pair in pairs:
        ended(pair.measured, await run(pair.measured))


def make_request(index: int, prompt: Prompt, sent_s: float, times_s: list[float]) -> Request:
    """The record of a request that is not sent over HTTP: one token at each of these times, which
    count from its sending."""
    return Request(
        run="",
        index=index,
        conversation=index,
        due_s=sent_s,
        sent_s=sent_s,
        duration_s=times_s[-1] if times_s else 0.0,
        token_times_s=times_s,
        input_tokens=len(prompt.ids),
        output_tokens=len(times_s),
        tokens_counted_by="tokenizer",
        finish_reason="length",
    )
