"""How many prompt tokens a pass may take so that running streams keep their inter-token budget."""

from __future__ import annotations

SMOOTHING = 0.3
FORGETTING = 0.9
FIRST_CHUNK_TOKENS = 32
MIN_CHUNK_TOKENS = 16
DECODE_STEPS_PER_GAP = 1.5
IDLE_BUDGETS = 3.0
MARGIN = 0.85


class ChunkSizer:
    """Sizes the prefill of a pass from measured times.

    Beside decoding rows a pass may take the budget, or 1.5 decode steps where a step is so slow
    that this is more; what a decode step leaves of that is divided by the cost of a token beside
    decoding. With nothing decoding a pass costs a fixed part, in which all weights are read, and a
    part per token, both fitted by least squares over the passes that ran, old ones fading. It may
    then take three budgets: nobody waits for it but an abort, and larger chunks are faster.
    """

    def __init__(self, budget_s: float, max_tokens: int) -> None:
        self._budget_s = budget_s
        self._max_tokens = max_tokens
        self._decode_s = 0.0
        self._beside_s = 0.0
        # Faded sums over passes without decoding of: 1, tokens, seconds, tokens squared, tokens
        # times seconds.
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)

    def observe(self, *, decoding: bool, tokens: int, seconds: float) -> None:
        """Learn from a pass; 0 seconds say that it was not measured."""
        if seconds <= 0:
            return
        if not decoding:
            self._observe_alone(tokens, seconds)
        elif tokens == 0:
            self._decode_s = smoothed(self._decode_s, seconds)
        elif self._decode_s > 0:
            # Noise can make a pass look faster than without its chunk.
            cost_s = max(seconds - self._decode_s, 0.1 * seconds) / tokens
            self._beside_s = smoothed(self._beside_s, cost_s)

    def _observe_alone(self, tokens: int, seconds: float) -> None:
        if tokens == 0:
            return
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        old = self._sums
        self._sums = tuple(FORGETTING * a + b for a, b in zip(old, new, strict=True))  # type: ignore[assignment]

    def size(self, decoding: bool) -> int:
        """Prompt tokens of the next pass."""
        fixed_s, per_token_s = self._fit()
        if decoding:
            gap_s = max(self._budget_s, DECODE_STEPS_PER_GAP * self._decode_s)
            allowed_s = MARGIN * gap_s - self._decode_s
            fixed_s, per_token_s = 0.0, self._beside_s or per_token_s
        else:
            allowed_s = IDLE_BUDGETS * self._budget_s
        if per_token_s == 0:
            return min(FIRST_CHUNK_TOKENS, self._max_tokens)
        tokens = min((allowed_s - fixed_s) / per_token_s, self._max_tokens)
        return min(max(int(tokens), MIN_CHUNK_TOKENS), self._max_tokens)

    def _fit(self) -> tuple[float, float]:
        """Seconds of an empty pass and seconds per token, nothing decoding; 0 if not known."""
        n, tokens, seconds, squares, products = self._sums
        if n == 0:
            return 0.0, 0.0
        spread = n * squares - tokens * tokens
        # Chunks of about one size do not tell the two apart.
        if spread > 0.01 * tokens * tokens:
            slope = (n * products - tokens * seconds) / spread
            fixed = (seconds - slope * tokens) / n
            if slope > 0 and fixed > 0:
                return fixed, slope
        return 0.0, seconds / tokens


def smoothed(known: float, seconds: float) -> float:
    """An exponential mean, 0 if nothing is known."""
    return known + SMOOTHING * (seconds - known) if known else seconds


def share_out(room: int, wanted: list[int]) -> list[int]:
    """Tokens of a pass for sequences that still want so many, the oldest first.

    The oldest gets at least half, so that a long prompt cannot starve; the shortest of the others
    come next, so that a long prompt does not hold up short ones.
    """
    shares = [0] * len(wanted)
    half = room - room // 2 if len(wanted) > 1 else room
    shares[0] = min(wanted[0], half)
    room -= shares[0]
    for index in sorted(range(1, len(wanted)), key=wanted.__getitem__):
        shares[index] = min(wanted[index], room)
        room -= shares[index]
    shares[0] += min(wanted[0] - shares[0], room)
    return shares
