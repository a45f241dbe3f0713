"""How many prompt tokens a pass may take so that running streams keep their inter-token budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from mlxfleet.common.kv_sizes import CHUNK_TILE

FORGETTING = 0.95
INERTIA = 0.01
TINY = 1e-12
FEATURES = 5
COLUMNS = range(FEATURES)
MOST_SOLUTIONS = 20
FIRST_CHUNK_TOKENS = 32
MIN_CHUNK_TOKENS = 4
DECODE_STEPS_PER_GAP = 1.5
# With nothing decoding: what a pass has in common for all its tokens is little of so long a pass,
# so a longer one is hardly faster, and a node must not look hung.
IDLE_PASS_S = 2.0
# Weights of passes are finite.
SHORTEST_PASS_S = 1e-6
# Of the budget, so that passes that take a little longer than expected stay inside. Where a decode
# step is slower than that, prompts need all of what they may take, to the nearest tile: a tile or
# two is all there is, and one less makes them wait several times as long.
MARGIN = 0.9
# After a pass with prompt tokens so many without may follow, taking at most this share of its time.
MAX_RESTS = 2
REST_SHARE = 0.15


class Parts(NamedTuple):
    """Seconds that a pass takes, see PassCost."""

    fixed_s: float
    per_row_s: float
    prompt_s: float
    per_token_s: float
    per_pair_s: float


class PassCost:
    """Seconds of a pass = fixed, in which all weights are read, + per row that decodes, whose next
    token has to be chosen, + once if there are prompt tokens, + for each of these, + per pair of a
    prompt token and a token before it, which attention compares.

    Least squares of the relative errors over the passes that ran, old ones fading, drawn a little
    towards what was known: passes of one size do not tell the parts apart.
    """

    def __init__(self) -> None:
        # Of the normal equations: faded sums over the passes of products of their features, of
        # two different ones once.
        self._products = [[0.0] * FEATURES for _ in range(FEATURES)]
        self._seconds = [0.0] * FEATURES
        self.known = False
        self._parts = Parts(0.0, 0.0, 0.0, 0.0, 0.0)
        self._unsolved = 0

    def observe(self, rows: int, tokens: int, pairs: float, seconds: float) -> None:
        """Learn from a pass."""
        # In shares of the pass, or long ones would say what short ones take.
        share = 1.0 / max(seconds, SHORTEST_PASS_S)
        features = (share, rows * share, (tokens > 0) * share, tokens * share, pairs * share)
        for i, one in enumerate(features):
            self._seconds[i] = FORGETTING * self._seconds[i] + one * share * seconds
            products = self._products[i]
            for j in range(i, FEATURES):
                products[j] = FORGETTING * products[j] + one * features[j]
        if self.known:
            self._unsolved += 1
        else:
            # All of it per token: a careful guess.
            each_s = seconds / (rows + tokens)
            self._parts = Parts(0.0, each_s, 0.0, each_s, 0.0)
            self.known = True

    @property
    def parts(self) -> Parts:
        """What was learned, solved for when somebody asks: once for every pass since, as every
        time it comes nearer to what the passes say, but no more often than helps."""
        for _ in range(min(self._unsolved, MOST_SOLUTIONS)):
            products, right = self._products, list(self._seconds)
            left = [[products[min(i, j)][max(i, j)] for j in COLUMNS] for i in COLUMNS]
            for i, before in enumerate(self._parts):
                pull = INERTIA * left[i][i] + TINY
                left[i][i] += pull
                right[i] += pull * before
            self._parts = Parts(*(max(part, 0.0) for part in solve(left, right)))
        self._unsolved = 0
        return self._parts

    def decode_s(self, rows: int) -> float:
        """Seconds of a pass without prompt tokens."""
        parts = self.parts
        return parts.fixed_s + rows * parts.per_row_s

    def pass_s(self, rows: int, tokens: int, start: int) -> float:
        """Seconds of a pass with prompt tokens from position `start` on."""
        pairs = tokens * (start + tokens / 2)
        parts = self.parts
        prompt_s = parts.prompt_s + tokens * parts.per_token_s + pairs * parts.per_pair_s
        return self.decode_s(rows) + prompt_s

    def tokens_in(self, seconds: float, start: int) -> float:
        """How many prompt tokens from position `start` on a pass can run in so long, beside the
        fixed part."""
        parts = self.parts
        slope = parts.per_token_s + parts.per_pair_s * start
        curve = parts.per_pair_s / 2
        if seconds <= 0 or slope + curve == 0:
            return 0.0 if seconds <= 0 else math.inf
        # The positive root of curve * n^2 + slope * n = seconds, in the form without cancellation.
        return 2 * seconds / (slope + math.sqrt(slope * slope + 4 * curve * seconds))


def solve(rows: list[list[float]], right: list[float]) -> list[float]:
    """Solve a small positive definite system of linear equations; changes its arguments."""
    size = len(right)
    for i in range(size):
        for j in range(i + 1, size):
            factor = rows[j][i] / rows[i][i]
            right[j] -= factor * right[i]
            for k in range(i, size):
                rows[j][k] -= factor * rows[i][k]
    solution = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][k] * solution[k] for k in range(i + 1, size))
        solution[i] = (right[i] - known) / rows[i][i]
    return solution


class ChunkSizer:
    """Sizes the prefill of a pass from measured times.

    Beside decoding rows a pass may take the budget, or 1.5 decode steps where a step is so slow
    that this is more. With nothing decoding it is as large as is fastest: nobody waits for it but
    an abort and those that come meanwhile.
    """

    def __init__(self, budget_s: float, max_tokens: int) -> None:
        self._budget_s = budget_s
        self._max_tokens = max_tokens
        self.cost = PassCost()

    def forget(self) -> None:
        """Know nothing of costs any more."""
        self.cost = PassCost()

    def observe(self, *, rows: int, tokens: int, pairs: float, seconds: float) -> None:
        """Learn from a pass of `rows` decoding rows and `tokens` prompt tokens, which attention
        compared with `pairs` tokens; 0 seconds say that it was not measured."""
        if seconds > 0 and rows + tokens > 0:
            self.cost.observe(rows, tokens, pairs, seconds)

    def size(self, rows: int, start: int) -> int:
        """Prompt tokens of the next pass, in which `rows` rows decode, and whose first prompt
        continues from position `start` on."""
        cost = self.cost
        if not cost.known:
            return min(FIRST_CHUNK_TOKENS, self._max_tokens)
        budget_s, rounding = MARGIN * self._budget_s, 0
        if rows == 0:
            budget_s = IDLE_PASS_S
        elif (slow_s := DECODE_STEPS_PER_GAP * cost.decode_s(rows)) > budget_s:
            budget_s, rounding = slow_s, CHUNK_TILE // 2
        left_s = budget_s - cost.decode_s(rows) - cost.parts.prompt_s
        flat = rows + rounding + int(min(cost.tokens_in(left_s, start), self._max_tokens))
        # A matrix product of part of a tile takes as long as that of a whole one.
        least = -(-(rows + MIN_CHUNK_TOKENS) // CHUNK_TILE) * CHUNK_TILE
        flat = max(flat - flat % CHUNK_TILE, least)
        return min(flat - rows, self._max_tokens)

    def prefill_rate(self, rows: int) -> float:
        """Prompt tokens per second beside so many decoding rows, with the passes that have none;
        0 if no pass was measured."""
        if not self.cost.known:
            return 0.0
        tokens = self.size(rows, 0)
        seconds = self.cost.pass_s(rows, tokens, 0)
        seconds += self.rests(rows, tokens, 0) * self.cost.decode_s(rows)
        return tokens / seconds if seconds > 0 else 0.0

    def rests(self, rows: int, tokens: int, start: int) -> int:
        """How many passes without prompt tokens should follow one with so many. Where they are
        cheap beside it, streams run several times as fast for a prompt that takes a little longer.
        """
        decode_s = self.cost.decode_s(rows)
        if rows == 0 or decode_s <= 0:
            return 0
        pass_s = self.cost.pass_s(rows, tokens, start)
        return min(MAX_RESTS, int(REST_SHARE * pass_s / decode_s))


def share_out(room: int, wanted: Sequence[int]) -> list[int]:
    """Tokens of a pass for sequences that still want so many, the oldest first.

    Prompts that are short enough to be done with this pass get up to half of it, the shortest
    first, so that a long prompt does not hold them up; the oldest get what is left, so that none
    starves.
    """
    shares = [0] * len(wanted)
    half = room // 2
    for index in sorted(range(1, len(wanted)), key=wanted.__getitem__):
        if wanted[index] > half:
            break
        shares[index] = wanted[index]
        half -= wanted[index]
        room -= wanted[index]
    for index, tokens in enumerate(wanted):
        more = min(tokens - shares[index], room)
        shares[index] += more
        room -= more
    return shares
