"""Conversations of random words, of the lengths that are asked for."""

from __future__ import annotations

import random
from collections.abc import Iterator

from msgspec import Struct

from mlxfleet.bench.conversations import Conversation, Turn
from mlxfleet.bench.lengths import Lengths
from mlxfleet.bench.prompt_tokens import WordBook


class Shape(Struct, frozen=True, kw_only=True):
    """What the conversations are like. With `groups`, each prompt begins with the `prefix_tokens`
    of its group, which are the same for all of the group."""

    input: Lengths
    output: Lengths
    turns: int = 1
    groups: int = 0
    prefix_tokens: int = 0
    think_s: float = 0.0
    """Mean time between an answer and the next question; exponentially distributed."""


def synthetic(shape: Shape, book: WordBook, seed: str) -> Iterator[Conversation]:
    """Endless; the same for the same seed."""
    rng = random.Random(seed)
    number = 0
    while True:
        prefix: list[str] = []
        if shape.groups:
            group = rng.randrange(shape.groups)
            prefix = book.draw(shape.prefix_tokens, f"{seed}/group/{group}")
        turns = []
        for turn in range(shape.turns):
            length, output = shape.input.draw(rng), shape.output.draw(rng)
            words = book.draw(length, f"{seed}/{number}/{turn}")
            if turn:
                think_s = rng.expovariate(1 / shape.think_s) if shape.think_s else 0.0
                text = book.question(words)
                turns.append(Turn(text=text, max_tokens=output, think_s=think_s))
            else:
                tokens = len(prefix) + length
                text = book.prompt(prefix + words, tokens)
                turns.append(Turn(text=text, max_tokens=output, input_tokens=tokens))
        yield Conversation(tuple(turns))
        number += 1
