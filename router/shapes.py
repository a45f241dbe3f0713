"""OpenAI's response objects, for both endpoints, streamed and not."""

from __future__ import annotations

import codecs
import time
from collections import defaultdict
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from mlxfleet.common.messages import FinishReason, TokenText, TokenTextLogprobs
from mlxfleet.router.generation import Choice, Generation
from mlxfleet.router.sequences import Delta


class PromptTokensDetails(Struct):
    """Part of `usage`."""

    cached_tokens: int


class Usage(Struct):
    """Exact token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, generation: Generation) -> Usage:
        """Counts so far."""
        prompt, completion = generation.prompt_tokens, generation.completion_tokens
        cached = PromptTokensDetails(generation.cached_tokens)
        return cls(prompt, completion, prompt + completion, cached)


class ChatTopLogprob(Struct):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(Struct):
    """The chosen token and the alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(Struct):
    """Log-probabilities of a chat choice."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionLogprobs(Struct):
    """Log-probabilities of a completion choice, in columns."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class ChatMessage(Struct):
    """The answer of a chat choice."""

    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatDelta(Struct, omit_defaults=True):
    """What a chunk adds to a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChoiceShape(Struct, kw_only=True):
    """What every choice has."""

    index: int
    finish_reason: FinishReason | None
    logprobs: ChatLogprobs | CompletionLogprobs | None


class ChatChoice(ChoiceShape, kw_only=True):
    """A choice of a chat completion."""

    message: ChatMessage


class ChatChunkChoice(ChoiceShape, kw_only=True):
    """A choice of a chat chunk."""

    delta: ChatDelta


class TextChoice(ChoiceShape, kw_only=True):
    """A choice of a text completion, whole or a chunk."""

    text: str


class Response(Struct, kw_only=True):
    """A whole answer, or one chunk of it."""

    id: str
    object: str
    created: int = field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[Any]
    usage: Usage | UnsetType | None = UNSET


class ChatShape:
    """Answers of POST /v1/chat/completions."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def whole(self, index: int, choice: Choice) -> ChatChoice:
        """A finished choice."""
        return ChatChoice(
            index=index,
            message=ChatMessage(choice.text),
            logprobs=chat_logprobs(choice.logprobs),
            finish_reason=choice.finish_reason,
        )

    def opening(self, index: int) -> ChatChunkChoice | None:
        """The first chunk, which announces the role."""
        delta = ChatDelta(role="assistant", content="")
        return ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=None)

    def chunk(self, index: int, delta: Delta) -> ChatChunkChoice:
        """What is new of a choice."""
        return ChatChunkChoice(
            index=index,
            delta=ChatDelta(content=delta.text or UNSET),
            logprobs=chat_logprobs(delta.logprobs),
            finish_reason=delta.finish_reason,
        )


class CompletionShape:
    """Answers of POST /v1/completions. Keeps the text offsets of a stream's choices."""

    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, logprobs: int | None) -> None:
        self._top = logprobs
        self._texts: defaultdict[int, TextLength] = defaultdict(TextLength)

    def whole(self, index: int, choice: Choice) -> TextChoice:
        """A finished choice."""
        return TextChoice(
            index=index,
            text=choice.text,
            logprobs=self._logprobs(index, choice.logprobs),
            finish_reason=choice.finish_reason,
        )

    def opening(self, index: int) -> None:
        """Completions announce nothing."""

    def chunk(self, index: int, delta: Delta) -> TextChoice:
        """What is new of a choice."""
        return TextChoice(
            index=index,
            text=delta.text,
            logprobs=self._logprobs(index, delta.logprobs),
            finish_reason=delta.finish_reason,
        )

    def _logprobs(self, index: int, entries: list[TokenTextLogprobs]) -> CompletionLogprobs | None:
        if not entries:
            return None
        text = self._texts[index]
        return CompletionLogprobs(
            tokens=[entry.chosen.token for entry in entries],
            token_logprobs=[entry.chosen.logprob for entry in entries],
            top_logprobs=[completion_top(entry) for entry in entries] if self._top else None,
            text_offset=[text.add(bytes(entry.chosen.bytes)) for entry in entries],
        )


class TextLength:
    """Counts the characters of tokens that may each be only part of one."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def add(self, token: bytes) -> int:
        """The number of whole characters before a token, which is counted for the next."""
        before = self._characters
        self._characters += len(self._decoder.decode(token))
        return before


def completion_top(entry: TokenTextLogprobs) -> dict[str, float]:
    """Alternatives by text; the chosen token is always among them, as in OpenAI's API."""
    top = {token.token: token.logprob for token in entry.top}
    top.setdefault(entry.chosen.token, entry.chosen.logprob)
    return top


def chat_logprobs(entries: list[TokenTextLogprobs]) -> ChatLogprobs | None:
    """Entries in the chat endpoint's shape; None if there are none."""
    if not entries:
        return None
    return ChatLogprobs(
        [
            ChatTokenLogprob(
                token=entry.chosen.token,
                logprob=entry.chosen.logprob,
                bytes=entry.chosen.bytes,
                top_logprobs=[top_logprob(token) for token in entry.top],
            )
            for entry in entries
        ]
    )


def top_logprob(token: TokenText) -> ChatTopLogprob:
    """One alternative."""
    return ChatTopLogprob(token.token, token.logprob, token.bytes)
