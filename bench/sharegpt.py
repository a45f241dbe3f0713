"""Conversations out of a file as ShareGPT's: a JSON array of objects with `conversations`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from mlxfleet.bench.conversations import Conversation, Turn
from mlxfleet.bench.lengths import Lengths
from mlxfleet.bench.prompt_tokens import Count
from mlxfleet.common.errors import ConfigError

MOST_BYTES = 2 * 2**30
HUMAN = ("human", "user")


class Said(Struct, frozen=True):
    """Something that one side said, by the names of either format."""

    speaker: str = msgspec.field(default="", name="from")
    value: str = ""
    role: str = ""
    content: str = ""

    @property
    def by_human(self) -> bool:
        """Whether it is a question."""
        return (self.speaker or self.role) in HUMAN

    @property
    def text(self) -> str:
        """What was said."""
        return self.value or self.content


class Talk(Struct, frozen=True):
    """A conversation of the file."""

    conversations: list[Said] = []
    messages: list[Said] = []


def read_sharegpt(path: Path) -> list[Talk]:
    """The conversations that begin with a question; ConfigError if it is no such file."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"--sharegpt: {path} is larger than {MOST_BYTES / 2**30:.0f} GB")
        talks = msgspec.json.decode(path.read_bytes(), type=list[Talk])
    except OSError as error:
        raise ConfigError(f"--sharegpt: cannot read {path}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--sharegpt: {path} is not as ShareGPT's files are: {error}") from error
    usable = [talk for talk in talks if first_question(talk) is not None]
    if not usable:
        raise ConfigError(f"--sharegpt: no conversation of {path} has a question")
    return usable


def said(talk: Talk) -> list[Said]:
    """What was said, in order."""
    return talk.conversations or talk.messages


def first_question(talk: Talk) -> str | None:
    """The text of the first question, if there is one."""
    return next((one.text for one in said(talk) if one.by_human and one.text), None)


def sharegpt(
    talks: list[Talk],
    turns: int,
    output: Lengths | None,
    count_prompt: Count | None,
    count: Count | None,
    seed: str,
) -> Iterator[Conversation]:
    """The conversations in random order, again and again, up to `turns` turns of each. Answers are
    as long as the file's, unless `output` says how long."""
    rng = random.Random(seed)
    while True:
        for talk in rng.sample(talks, len(talks)):
            asked: list[Turn] = []
            parts = said(talk)
            for position, part in enumerate(parts):
                if not part.by_human or not part.text or len(asked) == turns:
                    continue
                if output is not None:
                    max_tokens = output.draw(rng)
                elif count is None:
                    raise ConfigError("--sharegpt needs --tokenizer or --output-tokens")
                else:
                    answer = parts[position + 1].text if position + 1 < len(parts) else ""
                    max_tokens = max(count(answer), 1)
                tokens = count_prompt(part.text) if count_prompt and not asked else None
                text = f"\n{part.text}\n" if asked else part.text
                asked.append(Turn(text=text, max_tokens=max_tokens, input_tokens=tokens))
            yield Conversation(tuple(asked))
