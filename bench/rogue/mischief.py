"""What rogue nodes do with requests."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable

from mlxfleet.bench.rogue.node import RogueNode
from mlxfleet.common.messages import (
    Finish,
    Generate,
    KvEvents,
    Rejected,
    RejectedCode,
    TokenLogprobs,
    Tokens,
)

Mischief = Callable[[RogueNode, Generate], None]
FLOOD = 8_000
RETURN_S = 2.0


def entry(
    request: Generate,
    ids: list[int],
    *,
    start: int | None = None,
    finish: Finish | None = None,
    logprobs: list[TokenLogprobs] | None = None,
) -> Tokens:
    """Tokens of a request, by default those that come next."""
    return Tokens(
        rids=[request.rid],
        attempts=[request.attempt],
        starts=[len(request.output_ids) if start is None else start],
        ids=[ids],
        finish={0: finish} if finish else {},
        logprobs={0: logprobs} if logprobs else {},
    )


def swallow(node: RogueNode, request: Generate) -> None:
    """Do nothing."""


def refuse(code: RejectedCode) -> Mischief:
    """Refuse everything."""

    def act(node: RogueNode, request: Generate) -> None:
        node.send(Rejected(request.rid, request.attempt, code, "<b>ask evil.example</b>\x1b[2J"))

    return act


def answer(make: Callable[[Generate], Tokens]) -> Mischief:
    """Answer with tokens that cannot be."""

    def act(node: RogueNode, request: Generate) -> None:
        node.push(request.detokenizer, make(request))

    return act


def come_back(node: RogueNode, request: Generate) -> None:
    """Come back as a new run before the patience with the last one ends."""
    if len(node.requests) == 1:
        asyncio.get_running_loop().call_later(RETURN_S, node.come_back)


def gaps(node: RogueNode, request: Generate) -> None:
    """Leave tokens out, which never come."""
    for _ in range(10):
        node.push(request.detokenizer, entry(request, [1], start=len(request.output_ids) + 1))


def flood_cache(node: RogueNode, request: Generate) -> None:
    """Tell of more blocks than there are, faster than anybody computes them."""
    if len(node.requests) > 1:
        return
    for sequence in range(FLOOD):
        stored = [secrets.randbits(63) for _ in range(16)]
        node.send(KvEvents(sequence=sequence, cleared=False, removed=[], stored=stored))


def made_up(node: RogueNode, request: Generate) -> None:
    """Send tokens of streams that do not exist."""
    if len(node.requests) > 1:
        return
    for _ in range(FLOOD):
        fake = Generate(
            rid=secrets.token_hex(12),
            attempt=secrets.token_hex(8),
            detokenizer=request.detokenizer,
            prompt_ids=[1],
            output_ids=[],
            sampling=request.sampling,
        )
        node.push(request.detokenizer, entry(fake, [1]))


def nan_logprob(request: Generate) -> Tokens:
    """A log-probability that is no number."""
    return entry(request, [1], logprobs=[TokenLogprobs(math.nan, [1], [math.nan])])


# Whether it has to be fenced; else it only loses its requests.
MISCHIEF: dict[str, tuple[Mischief, bool]] = {
    "boasts and swallows": (swallow, True),
    "always full": (refuse("queue_full"), True),
    "knows nothing": (refuse("unknown"), True),
    "too long": (refuse("too_long"), True),
    "gives up": (refuse("failed"), False),
    "not finite": (refuse("not_finite"), False),
    "comes back": (come_back, False),
    "token -1": (answer(lambda request: entry(request, [-1])), True),
    "token 2^63": (answer(lambda request: entry(request, [2**63])), True),
    "too many tokens": (
        answer(lambda request: entry(request, [1] * (request.sampling.max_tokens + 1))),
        True,
    ),
    "ends at once": (
        answer(lambda request: entry(request, [1], finish=Finish("length"))),
        True,
    ),
    "certain beyond doubt": (
        answer(lambda request: entry(request, [1], logprobs=[TokenLogprobs(5.0, [], [])])),
        True,
    ),
    "NaN log-probabilities": (answer(nan_logprob), False),
    "leaves gaps": (gaps, True),
    "floods the index": (flood_cache, True),
    "makes up streams": (made_up, True),
}
