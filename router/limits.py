"""How long a sequence may be: on one node, and on the largest of several."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from mlxfleet.common.errors import InvalidRequestError
from mlxfleet.common.messages import ModelInfo
from mlxfleet.router.parameters import Parameters

# More than any context; what a node says of its own is not trusted.
MOST_TOKENS = 1 << 40
# Some 25 MB of JSON, which takes several times that to make and to send.
MOST_LOGPROBS = 500_000


@dataclass(frozen=True)
class Limits:
    """A node's longest sequence, prompt and answer together: `tokens`, by its context length and
    by the memory that it has for keys and values. Where they differ the memory is the limit."""

    model: ModelInfo
    tokens: int

    @classmethod
    def of(cls, model: ModelInfo) -> Limits:
        """The limits of a node that has loaded this."""
        lengths = range(1, min(model.context_length, MOST_TOKENS) + 1)
        tokens = bisect_right(lengths, model.kv_budget_bytes, key=model.kv_bytes)
        return cls(model, tokens)


def largest(limits: Iterable[Limits]) -> Limits | None:
    """The one that takes the longest sequence, None of none."""
    return max(limits, key=lambda one: one.tokens, default=None)


def check_prompts(prompts: list[list[int]], limits: Limits, param: str) -> None:
    """Refuse prompts that have no tokens or leave no room for an answer."""
    for prompt in prompts:
        if not prompt:
            raise InvalidRequestError("the prompt has no tokens", param=param, code="empty_prompt")
        if len(prompt) >= limits.model.context_length:
            raise InvalidRequestError(
                f"the prompt has {len(prompt)} tokens, but the context has only"
                f" {limits.model.context_length}",
                param=param,
                code="context_length_exceeded",
            )


def check_answer(request: Parameters, max_tokens: int, logprobs: int | None) -> None:
    """Refuse answers whose log-probabilities would be too much to hold, because they are not
    streamed."""
    if request.stream or logprobs is None:
        return
    count = request.sequences * max_tokens * (1 + logprobs)
    if count > MOST_LOGPROBS:
        raise InvalidRequestError(
            f"the answer may have {count:,} log-probabilities, more than the {MOST_LOGPROBS:,} that"
            " fit an answer which is not streamed; stream it, or ask for fewer tokens, choices or"
            " alternatives",
            param="logprobs",
            code="answer_too_large",
        )


def check_length(prompts: list[list[int]], max_tokens: int, limits: Limits, param: str) -> None:
    """Refuse prompts that with their answers would not fit the context or the memory."""
    longest = max(map(len, prompts))
    total = longest + max_tokens
    if total <= limits.tokens:
        return
    model = limits.model
    stated = f"{longest} prompt tokens and {max_tokens} of the answer"
    if total > model.context_length:
        why = f"{stated} are more than the context length of {model.context_length}"
    else:
        why = (
            f"{stated} need {model.kv_bytes(total) / 1e6:.0f} MB of KV cache, more than the"
            f" {model.kv_budget_bytes / 1e6:.0f} MB there are"
        )
    raise InvalidRequestError(why, param=param, code="context_length_exceeded")
