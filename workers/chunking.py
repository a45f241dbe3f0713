"""How large a prefill chunk may be so that running streams keep their inter-token budget."""

from __future__ import annotations

SMOOTHING = 0.3
FORGETTING = 0.9
FIRST_CHUNK_TOKENS = 32
MIN_CHUNK_TOKENS = 16
DECODE_STEPS_PER_GAP = 1.5
IDLE_BUDGETS = 3.0


class ChunkSizer:
    """Sizes chunks from measured times.

    A chunk costs a fixed part, in which all weights are read, and a part per token; both are
    fitted by least squares over the chunks that ran, old ones fading. The gap between two tokens
    of a running stream, a decode step and a chunk, may take the budget, or 1.5 decode steps where
    a step is so slow that this is more. With nothing decoding a chunk may take three budgets:
    nobody waits for it but an abort, and larger chunks are faster.
    """

    def __init__(self, budget_s: float, max_tokens: int) -> None:
        self._budget_s = budget_s
        self._max_tokens = max_tokens
        self._decode_s = 0.0
        # Faded sums over chunks of: 1, tokens, seconds, tokens squared, tokens times seconds.
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)

    def observe_chunk(self, tokens: int, seconds: float) -> None:
        """Learn from a chunk that ran."""
        if tokens <= 0 or seconds <= 0:
            return
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        old = self._sums
        self._sums = tuple(FORGETTING * a + b for a, b in zip(old, new, strict=True))  # type: ignore[assignment]

    def observe_decode(self, seconds: float) -> None:
        """Learn from a decode step; 0 says that it was not measured."""
        if seconds > 0:
            known = self._decode_s or seconds
            self._decode_s = known + SMOOTHING * (seconds - known)

    def size(self, decoding: bool) -> int:
        """Tokens of the next chunk."""
        if self._sums[0] == 0:
            return min(FIRST_CHUNK_TOKENS, self._max_tokens)
        allowed_s = self._budget_s * IDLE_BUDGETS
        if decoding:
            gap_s = max(self._budget_s, DECODE_STEPS_PER_GAP * self._decode_s)
            allowed_s = gap_s - self._decode_s
        fixed_s, per_token_s = self._fit()
        tokens = min((allowed_s - fixed_s) / per_token_s, self._max_tokens)
        return min(max(int(tokens), MIN_CHUNK_TOKENS), self._max_tokens)

    def _fit(self) -> tuple[float, float]:
        """Seconds of an empty chunk and seconds per token."""
        n, tokens, seconds, squares, products = self._sums
        spread = n * squares - tokens * tokens
        # Chunks of about one size do not tell the two apart.
        if spread > 0.01 * tokens * tokens:
            slope = (n * products - tokens * seconds) / spread
            fixed = (seconds - slope * tokens) / n
            if slope > 0 and fixed > 0:
                return fixed, slope
        return 0.0, seconds / tokens
