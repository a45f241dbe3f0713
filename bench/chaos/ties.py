"""Whether an answer parts from the undisturbed one only where two tokens tie.

A batch of another size, or keys and values that are computed at once instead of token by token,
change logits in their last bits. Where two candidates differ by no more than that, either may be
chosen, and the answer goes on differently. Whether they tie is asked of the server: the same
request with all candidates changed a little, by as much as rounding does, then parts at the same
place, with the same text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from mlxfleet.bench.chaos.answers import Answer
from mlxfleet.bench.chaos.cases import Case

# Of the tiny models' logits, whose standard deviation is 3, rounding changes some by 4e-5.
TEMPERATURE_CHANGES = (1e-5, -1e-5, 3e-5, -3e-5, 1e-4, -1e-4)
# A draw at this temperature is greedy, but for candidates that differ by less than a few times it.
ALMOST_GREEDY = 3e-5
GREEDY_SEEDS = range(8)
COMPARED_CHARACTERS = 8


@dataclass(frozen=True)
class Parting:
    """Where a choice parts from the undisturbed one, and how it goes on from there."""

    choice: int
    at: int
    text: str

    def shared_by(self, answer: Answer, expected: Answer) -> bool:
        """Whether another answer parts from the undisturbed one there as well, in the same way."""
        other = parting_of(self.choice, answer, expected)
        return other is not None and (other.at, other.text) == (self.at, self.text)


def parting(answer: Answer, expected: Answer) -> Parting | None:
    """Where the first choice that differs does so; None if all texts are equal, or one only goes on
    where the other ends."""
    for choice in range(len(expected.choices)):
        if found := parting_of(choice, answer, expected):
            return found
    return None


def parting_of(choice: int, answer: Answer, expected: Answer) -> Parting | None:
    """Where a choice parts."""
    text, wanted = answer.choices[choice].text, expected.choices[choice].text
    pairs = enumerate(zip(text, wanted, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), None)
    return None if at is None else Parting(choice, at, text[at : at + COMPARED_CHARACTERS])


def nudged(case: Case) -> Iterator[Case]:
    """The request with changes that are no larger than rounding."""
    for fields in nudges(case.body["temperature"]):
        yield msgspec.structs.replace(case, body=case.body | fields)


def nudges(temperature: float) -> Iterator[dict[str, Any]]:
    """What is changed in its body."""
    if temperature == 0:
        for seed in GREEDY_SEEDS:
            yield {"temperature": ALMOST_GREEDY, "seed": seed}
    else:
        for change in TEMPERATURE_CHANGES:
            yield {"temperature": temperature * (1 + change)}
