"""Single tokens as the API shows them beside log-probabilities."""

from __future__ import annotations

from mlxfleet.common.messages import TokenLogprobs, TokenText, TokenTextLogprobs
from mlxfleet.detokenizer_proc.vocabulary import Vocabulary

IMPOSSIBLE = -9999.0


def describe(vocabulary: Vocabulary, token: int, logprobs: TokenLogprobs) -> TokenTextLogprobs:
    """A position's log-probabilities with texts for ids."""
    top = zip(logprobs.top_ids, logprobs.top_logprobs, strict=True)
    return TokenTextLogprobs(
        token_text(vocabulary, token, logprobs.logprob),
        [token_text(vocabulary, other, value) for other, value in top],
    )


def token_text(vocabulary: Vocabulary, token: int, logprob: float) -> TokenText:
    """One token; part of a character shows as U+FFFD, its bytes are exact. What cannot be has the
    log-probability that the API has for it, as JSON knows no infinity."""
    logprob = max(logprob, IMPOSSIBLE)
    raw = vocabulary.bytes_of(token)
    return TokenText(raw.decode(errors="replace"), list(raw), logprob)
