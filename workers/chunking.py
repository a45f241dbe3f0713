"""How large a prefill chunk may be so that running streams keep their inter-token budget."""

from __future__ import annotations

SMOOTHING = 0.3
FIRST_CHUNK_TOKENS = 32
MIN_CHUNK_TOKENS = 8
TIMED_TOKENS = 8


class ChunkSizer:
    """Sizes chunks from the measured prefill rate.

    With nothing decoding a chunk may take `idle_factor` budgets: nobody waits for it but an
    abort, and larger chunks are faster.
    """

    idle_factor = 3.0

    def __init__(self, budget_s: float, max_tokens: int) -> None:
        self._budget_s = budget_s
        self._max_tokens = max_tokens
        self._tokens_per_s: float | None = None

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from a chunk that ran. Very short ones tell more about overhead than rate."""
        if tokens < TIMED_TOKENS or seconds <= 0:
            return
        rate = tokens / seconds
        if self._tokens_per_s is None:
            self._tokens_per_s = rate
        else:
            self._tokens_per_s += SMOOTHING * (rate - self._tokens_per_s)

    def size(self, decoding: bool) -> int:
        """Tokens of the next chunk."""
        if self._tokens_per_s is None:
            return min(FIRST_CHUNK_TOKENS, self._max_tokens)
        budget_s = self._budget_s if decoding else self._budget_s * self.idle_factor
        tokens = int(self._tokens_per_s * budget_s)
        return min(max(tokens, MIN_CHUNK_TOKENS), self._max_tokens)
