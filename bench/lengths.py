"""Distributions of lengths in tokens, as they are given on the command line."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from msgspec import Struct

from mlxfleet.common.errors import ConfigError

FORMS = "N, uniform:LEAST:MOST, or lognormal:MEDIAN:SIGMA[:MOST]"
MOST_TOKENS = 10_000_000
MOST_SIGMA = 5.0
# Where a lognormal length is cut if nothing is said, in medians.
LOGNORMAL_MOST = 10


class Fixed(Struct, frozen=True):
    """Always the same."""

    tokens: int

    def draw(self, _: random.Random) -> int:
        """The length."""
        return self.tokens


class Uniform(Struct, frozen=True):
    """Any from `least` to `most`, both included."""

    least: int
    most: int

    def draw(self, rng: random.Random) -> int:
        """A length."""
        return rng.randint(self.least, self.most)


class Lognormal(Struct, frozen=True):
    """A logarithm that is normally distributed with deviation `sigma`, cut at 1 and `most`."""

    median: int
    sigma: float
    most: int

    def draw(self, rng: random.Random) -> int:
        """A length."""
        drawn = rng.lognormvariate(math.log(self.median), self.sigma)
        return max(1, min(round(drawn), self.most))


Lengths = Fixed | Uniform | Lognormal


def parse_lengths(text: str, flag: str) -> Lengths:
    """One of FORMS; ConfigError, which names the flag, for anything else."""
    kind, *values = text.split(":") if ":" in text else ("fixed", text)
    try:
        lengths = make(kind, values)
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{flag} {text}: give {FORMS}, in tokens") from error
    return lengths


def make(kind: str, values: Sequence[str]) -> Lengths:
    """ValueError if there are too many or too few values, or they make no sense."""
    match kind, values:
        case "fixed", [tokens]:
            lengths: Lengths = Fixed(int(tokens))
            sensible = 1 <= int(tokens) <= MOST_TOKENS
        case "uniform", [least, most]:
            lengths = Uniform(int(least), int(most))
            sensible = 1 <= lengths.least <= lengths.most <= MOST_TOKENS
        case "lognormal", [median, sigma, *rest] if len(rest) < 2:
            longest = int(rest[0]) if rest else LOGNORMAL_MOST * int(median)
            lengths = Lognormal(int(median), float(sigma), longest)
            fits = 1 <= lengths.median <= longest <= MOST_TOKENS
            sensible = fits and 0 <= lengths.sigma <= MOST_SIGMA
        case _:
            raise ValueError(kind)
    if not sensible:
        raise ValueError(values)
    return lengths
