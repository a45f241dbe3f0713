"""What is asked: conversations of one turn or more, made before a run begins."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Endpoint = Literal["completions", "chat"]


class Turn(Struct, frozen=True, kw_only=True):
    """A question. `input_tokens` is what a server should count of the prompt of a first turn, if
    that is known; `think_s` passes between the answer before it and its sending."""

    text: str
    max_tokens: int
    input_tokens: int | None = None
    think_s: float = 0.0


class Message(Struct, frozen=True):
    """Something said in a chat."""

    role: str
    content: str


class Conversation(Struct, frozen=True):
    """Its turns are asked one after the other, each with all that was said before; `before` is what
    was said before the first."""

    turns: tuple[Turn, ...]
    before: tuple[Message, ...] = ()


class History:
    """What has been said in a conversation, as the endpoint wants it."""

    def __init__(self, conversation: Conversation, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._text = "".join(f"{message.content}\n" for message in conversation.before)
        self._messages = list(conversation.before)

    def ask(self, question: str) -> dict[str, object]:
        """The fields of a request's body that hold the prompt. Texts of a completion follow each
        other as they are."""
        if self._endpoint == "chat":
            self._messages.append(Message("user", question))
            return {"messages": self._messages}
        self._text += question
        return {"prompt": self._text}

    def answered(self, answer: str) -> None:
        """Remember an answer for the next turn."""
        if self._endpoint == "chat":
            self._messages.append(Message("assistant", answer))
        else:
            self._text += answer


def of_prompts(prompts: list[str], max_tokens: int) -> list[Conversation]:
    """Each prompt on its own."""
    return [Conversation((Turn(text=prompt, max_tokens=max_tokens),)) for prompt in prompts]
