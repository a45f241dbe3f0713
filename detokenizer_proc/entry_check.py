"""Whether what a node sent of a stream can be true.

A node may send wrong tokens, nobody else knows the right ones. But it may not send what no model
says: then it is broken, of another version or malicious.
"""

from __future__ import annotations

import math

from mlxfleet.common.limits import MAX_TOKEN_ID
from mlxfleet.common.messages import Finish, TokenLogprobs

# Of log-probabilities, which are at most 0 but for rounding.
ROUNDING = 0.01


class BrokenError(Exception):
    """An entry that no node may send. If it is `sick`, a model may have made it."""

    def __init__(self, why: str, *, sick: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.sick = sick


def highest_id(vocab_size: int) -> int:
    """The highest token id of a vocabulary; its size is 0 if that is not known."""
    return min(vocab_size - 1, MAX_TOKEN_ID) if vocab_size else MAX_TOKEN_ID


def check_entry(
    start: int,
    ids: list[int],
    finish: Finish | None,
    logprobs: list[TokenLogprobs],
    max_tokens: int,
    highest: int,
) -> None:
    """Raise BrokenError for an entry of tokens from position `start` on, of a sequence of
    `max_tokens`, 0 if that is not known, whose token ids go up to `highest`."""
    end = start + len(ids)
    if start < 0 or (max_tokens and end > max_tokens):
        raise BrokenError(f"tokens {start} to {end} of a sequence that may have {max_tokens}")
    if finish is not None and finish.reason == "length" and end < max_tokens:
        raise BrokenError(f"at its full length after {end} of {max_tokens} tokens")
    check_ids(ids, highest)
    for entry in logprobs:
        check_logprobs(entry, highest)


def check_logprobs(entry: TokenLogprobs, highest: int) -> None:
    """Raise BrokenError for log-probabilities that are none."""
    if len(entry.top_ids) != len(entry.top_logprobs):
        raise BrokenError("not one log-probability per alternative")
    check_ids(entry.top_ids, highest)
    values = (entry.logprob, *entry.top_logprobs)
    if any(math.isnan(value) for value in values):
        raise BrokenError("log-probabilities that are not numbers", sick=True)
    if any(value > ROUNDING for value in values):
        raise BrokenError(f"log-probabilities above 0: {max(values):g}")


def check_ids(ids: list[int], highest: int) -> None:
    """Raise BrokenError for token ids outside the vocabulary."""
    for token_id in ids:
        if not 0 <= token_id <= highest:
            raise BrokenError(f"token id {token_id}, outside the vocabulary")
