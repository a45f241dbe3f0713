"""Traces of requests with timestamps, as Mooncake published them, and files of prompts.

Both are JSON lines. A line of Mooncake's has a `timestamp` in ms, `input_length` and
`output_length` in tokens, and `hash_ids`, one for each block of 512 tokens of the prompt: equal ids
at the beginning stand for an equal prefix. Instead of lengths, a line may have the prompt itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from mlxfleet.bench.conversations import Conversation, Message, Turn
from mlxfleet.bench.lengths import Lengths
from mlxfleet.bench.prompt_tokens import Count, WordBook
from mlxfleet.common.errors import ConfigError

BLOCK_TOKENS = 512
MOST_LINES = 1_000_000
MS = 1000.0

Positive = Annotated[int, Meta(ge=1)]


class Line(Struct, frozen=True):
    """A request of a file, either kind of it."""

    timestamp: Annotated[float, Meta(ge=0)] | None = None
    input_length: Positive | None = None
    output_length: Positive | None = None
    hash_ids: list[int] = []
    prompt: str | None = None
    messages: list[Message] = []
    max_tokens: Positive | None = None

    @property
    def text(self) -> str | None:
        """The prompt, if the line has it."""
        return self.messages[-1].content if self.messages else self.prompt


def read_lines(path: Path, flag: str) -> list[Line]:
    """All lines of a file; ConfigError with the line's number if one is not as it should be."""
    decoder = msgspec.json.Decoder(Line | str)
    lines: list[Line] = []
    try:
        with path.open("rb") as file:
            for number, data in enumerate(file, 1):
                if len(lines) >= MOST_LINES:
                    raise ConfigError(f"{flag}: {path} has more than {MOST_LINES:,} lines")
                if data.strip():
                    try:
                        line = decoder.decode(data)
                    except (msgspec.DecodeError, UnicodeDecodeError) as error:
                        raise ConfigError(f"{flag}: {path}, line {number}: {error}") from error
                    lines.append(Line(prompt=line) if isinstance(line, str) else line)
    except OSError as error:
        raise ConfigError(f"{flag}: cannot read {path}: {error}") from error
    if not lines:
        raise ConfigError(f"{flag}: {path} is empty")
    return lines


def timestamps_s(lines: list[Line]) -> list[float]:
    """When each is due, in s; ConfigError if a line does not say."""
    times = [line.timestamp / MS for line in lines if line.timestamp is not None]
    if len(times) < len(lines):
        raise ConfigError("--trace: not every line has a timestamp; give --concurrency instead")
    return times


def requests_of(
    lines: list[Line],
    book: WordBook | None,
    count: Count | None,
    output: Lengths,
    seed: str,
) -> Iterator[Conversation]:
    """A conversation of one turn for each line. ConfigError if one has lengths only and there is
    no tokenizer to make a prompt of."""
    rng = random.Random(seed)
    for number, line in enumerate(lines):
        max_tokens = line.max_tokens or line.output_length or output.draw(rng)
        before = tuple(line.messages[:-1])
        if (text := line.text) is not None:
            tokens = count(text) if count is not None and not before else None
        elif line.input_length is None:
            raise ConfigError(
                f"line {number + 1} has neither `prompt`, `messages` nor `input_length`"
            )
        elif book is None:
            raise ConfigError("to make prompts of lengths, give --tokenizer DIR")
        else:
            tokens = line.input_length
            text = book.prompt(words_of(line, tokens, book, f"{seed}/{number}"), tokens)
        turn = Turn(text=text, max_tokens=max_tokens, input_tokens=tokens)
        yield Conversation((turn,), before)


def words_of(line: Line, tokens: int, book: WordBook, seed: str) -> list[str]:
    """A prompt's words, block by block; blocks that no id stands for are its own."""
    words: list[str] = []
    for hash_id in line.hash_ids:
        words += book.draw(BLOCK_TOKENS, f"block {hash_id}")
    if len(words) < tokens:
        words += book.draw(tokens - len(words), seed)
    return words
