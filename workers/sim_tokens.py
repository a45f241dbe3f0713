"""The tokens of the simulated engine: they depend on prompt, seed and position, on nothing else."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from hashlib import blake2b

from mlxfleet.common.messages import Sampling, TokenLogprobs

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(number: int) -> int:
    """A hash of a 64-bit number: the finalizer of SplitMix64 (Steele, Lea, Flood 2014)."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


def sequence_key(prompt: array[int], sampling: Sampling) -> int:
    """What the tokens of a sequence are made of. Greedy ones do not depend on the seed."""
    seed = sampling.seed & MASK if sampling.temperature > 0 else 0
    hashed = blake2b(seed.to_bytes(8, "little") + prompt.tobytes(), digest_size=8)
    return int.from_bytes(hashed.digest(), "little")


class Vocabulary:
    """Tokens that can be drawn, all but those that end a sequence, each as likely as any other."""

    def __init__(self, size: int, eos_ids: Iterable[int]) -> None:
        self._eos_ids = sorted(token for token in set(eos_ids) if token < size)
        self._size = size - len(self._eos_ids)

    def token(self, key: int, position: int, alternative: int = 0) -> int:
        """The token at a position of the output, or another one at its place."""
        drawn = mix((key + (position + 1) * GOLDEN) & MASK) % self._size
        token = (drawn + alternative) % self._size
        for eos_id in self._eos_ids:
            token += token >= eos_id
        return token

    def logprobs(self, key: int, position: int, alternatives: int) -> TokenLogprobs:
        """Log-probabilities of the token at a position, and of as many alternatives."""
        logprob = -math.log(self._size)
        top = [self.token(key, position, i) for i in range(min(alternatives, self._size))]
        return TokenLogprobs(logprob, top, [logprob] * len(top))
